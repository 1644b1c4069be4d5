"""Every product is told: a Linear, a gate, an attention's, a recurrent layer's, a gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import Fused, Model, fuse
from test_reasons import MANY, NOTHING, VECTOR, WIDER
from torch import Tensor, nn

from fusepass.match.followers import ATTENTION


def told(function: Callable[..., object], *args: Tensor, **kwargs: object) -> Fused:
    fused = fuse(function, **kwargs)
    with torch.no_grad():
        fused(*args)
    return fused


def test_a_gate_is_another_linear() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.gate = nn.Linear(24, 40), nn.Linear(24, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x) * F.silu(self.gate(x))

    report = told(Gated(), torch.randn(6, 24)).report
    assert [(s.module, s.epilogue) for s in report.sites] == [("gate", "silu mul(mat0)")]
    taken = "nothing to fuse: its result goes into the epilogue of `gate`"
    assert [(m.module, m.reason) for m in report.misses] == [("up", taken)]


def test_a_gate_that_fused_is_a_linear_still() -> None:
    a, b = nn.Linear(24, 40), nn.Linear(24, 40)
    fused = told(lambda x: F.relu(a(x)) * b(x), torch.randn(6, 24))
    assert fused.report.sites[0].follows is None and fused.reasons == []  # b's takes it
    assert fused.epilogues == ["clamp(0.0, inf)", "mul(mat0)"]


def test_two_linears_added() -> None:
    a, b = nn.Linear(24, 40), nn.Linear(24, 40)
    reasons = told(lambda x: a(x) + F.gelu(b(x), approximate="tanh"), torch.randn(6, 24)).reasons
    assert reasons == ["nothing to fuse: its result goes into the epilogue of `addmm_1`"]


def test_a_residual_may_be_a_linears_result() -> None:
    a, b = nn.Linear(24, 24), nn.Linear(24, 24)

    def model(x: Tensor) -> Tensor:
        x = a(x).double()
        return x + b(F.layer_norm(x.float(), (24,)))

    assert told(model, torch.randn(6, 24)).reasons == [
        f"LayerNorm {MANY}", f"a residual added: `add` {WIDER}"
    ]  # fmt: skip


def test_a_linear_in_front_of_another_names_it() -> None:
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    assert told(model, torch.randn(6, 24)).reasons == [
        NOTHING + "goes into the next product, `1`",
        NOTHING + "is returned",
    ]


A, B = torch.randn(3, 6, 24), torch.randn(3, 24, 8)
OTHERS: dict[str, tuple[Callable[..., object], tuple[Tensor, ...], str, int]] = {
    "bmm": (torch.bmm, (A, B), "a product of a batch of matrices (`bmm`)", 2 * 3 * 6 * 24 * 8),
    "baddbmm": (
        lambda a, b: torch.baddbmm(torch.ones(8), a, b), (A, B),
        "a product of a batch of matrices (`baddbmm`)", 2 * 3 * 6 * 24 * 8,
    ),
    "mv": (
        torch.mv, (A[0], VECTOR[:24]), "torch computes this `mv` element by element", 2 * 6 * 24
    ),
    "addmv": (
        lambda a, v: torch.addmv(torch.ones(6), a, v), (A[0], VECTOR[:24]),
        "torch computes this `addmv` element by element", 2 * 6 * 24,
    ),
    "of one column": (
        lambda a: a[:, :1] @ a[:1], (A[0],), "torch computes this `mm` element by element",
        2 * 6 * 24,
    ),
    "of one batch": (torch.bmm, (A[:1], B[:1]), "a batched product of one batch", 2 * 6 * 24 * 8),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_product_that_is_no_linear_is_a_miss(name: str) -> None:
    function, args, reason, flops = OTHERS[name]
    (miss,) = told(function, *args).report.misses
    assert miss.reason.startswith(reason) and miss.flops == flops


def test_groups_of_rows() -> None:
    """Experts: rows 0 and 1 with one matrix, the others with the next."""
    name = "fusepass_tests::grouped_mm"

    @torch.library.custom_op(name, mutates_args=())
    def grouped_mm(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        return torch.cat([a @ w for a, w in zip(x.tensor_split(ends[:-1]), weights, strict=True)])

    @grouped_mm.register_fake
    def _(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], weights.shape[2])

    fused = told(grouped_mm, torch.randn(6, 24), torch.randn(2, 24, 8), torch.tensor([2, 6]))
    (miss,) = fused.report.misses
    assert miss.reason.startswith("a product of groups of rows with a matrix each (`grouped_mm`)")
    assert miss.flops == 2 * 6 * 24 * 8


def test_a_recurrent_layer_in_a_graph() -> None:
    lstm = nn.LSTM(24, 8, batch_first=True)
    with torch._dynamo.config.patch(allow_rnn=True):
        misses = told(lambda x: lstm(x)[0], torch.randn(2, 5, 24)).report.misses
    assert misses and all("recurrent layer" in m.reason for m in misses)
    assert sum(m.flops or 0 for m in misses) == 2 * (2 * 5) * 4 * 8 * (24 + 8)


def test_a_layer_run_whole_has_the_flops_of_its_linears() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True).eval()
    (miss,) = told(layer, torch.randn(2, 5, 16)).report.misses
    assert miss.flops == 2 * (2 * 5) * (3 * 16 * 16 + 16 * 16 + 2 * 16 * 32)


def spelled_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 0.125, -1) @ v


@pytest.mark.parametrize("heads", [(), (1,), (2, 3)])
def test_the_products_of_an_attention_are_no_linears(heads: tuple[int, ...]) -> None:
    q, k, v = torch.randn(3, *heads, 6, 24).unbind(0)
    fused = told(lambda q, k, v: spelled_out(q * 2, k * 3, v * 4), q, k, v)
    assert fused.epilogues == [] and fused.reasons == [ATTENTION] * 2
    assert {m.kind for m in fused.report.misses} == {"matmul"}


def test_so_are_those_of_its_backward() -> None:
    project = nn.Linear(24, 24)

    def model(x: Tensor) -> Tensor:
        z = project(x)
        return spelled_out(z * 2, z * 3, z * 4).sum()

    fused = fuse(model)
    fused(torch.randn(3, 6, 24, requires_grad=True)).backward()
    batched = [m for m in fused.report.misses if m.shape and "[3, " in m.shape]
    assert len(batched) == 6 and {m.reason for m in batched} == {ATTENTION}


def test_a_weights_gradient_of_softmax_is_of_no_attention() -> None:
    first, second = nn.Linear(24, 24), nn.Linear(24, 8)
    fused = fuse(lambda x: second(torch.softmax(first(x), -1)).sum())
    fused(torch.randn(6, 24, requires_grad=True)).backward()
    assert ATTENTION not in fused.reasons and len(fused.report.misses) == 5
    assert [(s.epilogue, s.backward) for s in fused.report.sites] == [("mul(mat0)", True)]


def test_an_attention_that_torch_takes_apart_scales_no_linear() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(24, 24, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).view(2, 6, 3, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)

    report = told(Attention(), torch.randn(2, 6, 24)).report
    assert report.sites == ()
    assert [m.reason for m in report.misses if m.module is None] == [ATTENTION] * 2
    assert {m.module: m.reason for m in report.misses if m.module} == {
        "q": "a scale of attention, which is computed with it",
        "k": "a scale of attention, which is computed with it",
        "v": NOTHING + "goes into attention",
    }


def test_a_scale_in_front_of_torchs_own_attention_fuses() -> None:
    """Its operator takes the scaled values; the scale would be a kernel of its own."""
    query = nn.Linear(24, 24)

    def model(x: Tensor) -> Tensor:
        q = (query(x) * 0.35).view(2, 6, 3, 8).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, scale=1.0)

    assert told(model, torch.randn(2, 6, 24)).epilogues == ["mul(0.35)"]


def test_a_scaled_part_goes_into_attention() -> None:
    qkv = nn.Linear(24, 72)

    def model(x: Tensor) -> Tensor:
        q, k, v = qkv(x).view(2, 6, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return torch.softmax((q * 0.35) @ k.transpose(-1, -2), -1) @ v

    reasons = told(model, torch.randn(2, 6, 24)).reasons
    assert reasons == [ATTENTION, ATTENTION, NOTHING + "goes into attention"]


def test_logits_of_two_computed_tensors_are_a_matmul() -> None:
    def logits(text: Tensor, image: Tensor, scale: Tensor) -> Tensor:
        text, image = F.normalize(text, dim=-1), F.normalize(image, dim=-1)
        return text @ image.t() * scale.exp()

    (site,) = told(logits, torch.randn(5, 24), torch.randn(6, 24), torch.tensor(2.0)).report.sites
    assert (site.kind, site.epilogue) == ("matmul", "mul($0)")
    assert str(site).startswith("mm: matmul mul($0)\n")


def test_sizes_of_run_time_have_the_flops_of_the_trace() -> None:
    fused = told(Model(torch.atan), torch.randn(6, 24), dynamic=True)
    (miss,) = fused.report.misses
    assert miss.flops == 2 * 6 * 24 * 40 and "[s" in str(miss.shape)
