"""What must never be fused wrongly: the right result always, and a reason where nothing fused."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import fuse
from torch import nn

GATE, VECTOR = torch.randn(6, 40), torch.randn(40)
Tail = Callable[[torch.Tensor], object]


class Model(nn.Module):
    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40)
        nn.init.normal_(self.linear.weight)
        self.tail = tail

    def forward(self, x: torch.Tensor) -> object:
        return self.tail(self.linear(x))


def tanh_gelu(x: torch.Tensor, cubic: float, root: float = math.sqrt(2 / math.pi)) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(root * (x + cubic * x**3)))


# tail -> (epilogues, reason of the only miss)
CASES: dict[str, tuple[Tail, list[str], str | None]] = {
    "(x + c) - c": (lambda z: (z + 1e8) - 1e8, ["add(100000000.0) sub(100000000.0)"], None),
    "gelu of (x + c) - c": (
        lambda z: F.gelu((z + 1e8) - 1e8), ["add(100000000.0) sub(100000000.0) gelu"], None
    ),
    "integer factor": (lambda z: F.gelu(z * GATE.int()), [], "takes a tensor of int32"),
    "a vector of its own": (lambda z: F.gelu(z * z.mean(0)), [], "from the result itself"),
    "gelu with 0.044": (
        lambda z: tanh_gelu(z, 0.044),
        ["v0 = square mul(z) mul(0.044) add(z) mul(0.7978845608028654) tanh add(1.0); "
         "mul(0.5) mul(v0)"],
        None,
    ),
    "gelu with 0.8": (
        lambda z: tanh_gelu(z, 0.044715, 0.8),
        ["v0 = square mul(z) mul(0.044715) add(z) mul(0.8) tanh add(1.0); mul(0.5) mul(v0)"],
        None,
    ),
    "erf with 0.7071": (
        lambda z: z * 0.5 * (1 + torch.erf(z * 0.7071)),
        ["v0 = mul(0.7071) erf add(1.0); mul(0.5) mul(v0)"],
        None,
    ),
    "erf off by 1e-6": (
        lambda z: z * 0.5 * (1 + torch.erf(z * 0.7071077)),
        ["v0 = mul(0.7071077) erf add(1.0); mul(0.5) mul(v0)"],
        None,
    ),
    "1.702 sigmoid": (lambda z: z * torch.sigmoid(1.702 * z), ["quick_gelu"], None),
    "gelu of one element times another": (
        lambda z: 0.5 * z.view(40, 6).t() * (1 + torch.erf(z / 2**0.5)),
        ["div(1.4142135623730951) erf add(1.0)"],
        None,
    ),
    "not in the table": (torch.atan, [], "`atan` is not a stage"),
    "half of the columns": (lambda z: F.gelu(z[:, :20]), [], "`gelu` takes a part of the Linear"),
    "gated by gelu": (
        lambda z: (lambda a, b: a * F.gelu(b))(*z.chunk(2, -1)), [], "`gelu` takes a part of the"
    ),
    "NaN bound": (lambda z: torch.clamp(z, math.nan, 2), [], "NaN constant"),
    "NaN factor": (lambda z: z * math.nan, [], "NaN constant"),
    "complex factor": (lambda z: z * 1j, [], "`mul`"),
    "c / x": (lambda z: 2 / z, ["reciprocal mul(2.0)"], None),
    "floor division": (lambda z: torch.div(z, 2, rounding_mode="floor"), [], "`div`"),
    "z * z": (lambda z: z * z, ["square"], None),
    "broadcast": (lambda z: z * torch.ones(2, 1, 1), [], "changes the shape"),
    "rounded in between": (lambda z: F.gelu(z.bfloat16().float()), [], "cast to bfloat16"),
    "operand from z": (lambda z: z / z.abs().max(), ["abs"], None),
    "more than an epilogue holds": (
        lambda z: functools.reduce(lambda a, _: F.relu(a) * 2.0, range(12), z),
        ["clamp(0.0, inf) mul(2.0) " * 10 + "clamp(0.0, inf)"],  # of 32 numbers
        None,
    ),
    "min > max": (lambda z: torch.clamp(z, 2, -2), ["clamp(2.0, -2.0)"], None),
    "in place, used later": (
        lambda z: (lambda y: (F.gelu(y), y.mul_(3)))(z * 2), ["mul(2.0) gelu, mul(6.0)"], None
    ),
    "in place on z, used later": (lambda z: (F.gelu(z), z.mul_(3)), ["gelu, mul(3.0)"], None),
    "intermediate returned": (
        lambda z: (lambda y: (F.gelu(y), y))(z * 2), ["v0 = mul(2.0); v0 gelu, v0"], None
    ),
    "z returned": (lambda z: (F.gelu(z), z), ["gelu"], None),
    "z summed": (lambda z: (F.gelu(z), z.sum(-1)), ["gelu"], None),
    "a view of z returned": (lambda z: (F.gelu(z), z.view(-1)), ["gelu"], None),
    "a view of z, and no stage": (
        lambda z: (torch.atan(z), z.t().sum(0)), [], "`atan` is not a stage"
    ),
    "cast, then another tensor": (lambda z: torch.clamp(z.double(), -GATE, GATE), [], "in float64"),
    "bits read as another type": (
        lambda z: F.gelu(z.view(torch.float64)).view(torch.float32), [], "goes into `view`"
    ),
    "computed in float64": (lambda z: F.gelu(z.double()).float(), [], "in float64"),
    "stays in float64": (lambda z: F.gelu(z.double()), [], "in float64"),
    "float64 behind a stage": (lambda z: (z * 2).double().cos().float(), ["mul(2.0)"], None),
    "two ends": (lambda z: (F.relu(z), F.gelu(z)), ["gelu, clamp(0.0, inf)"], None),
    "rounding behind": (lambda z: torch.round(z * 2), ["mul(2.0) round"], None),
    "stages, then unknown": (lambda z: torch.atan(F.relu(z)), ["clamp(0.0, inf)"], None),
    "to int": (lambda z: (z * 2).int(), ["mul(2.0)"], None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_right_result_and_reason(name: str) -> None:
    tail, epilogues, reason = CASES[name]
    model, x = Model(tail), torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x), equal_nan=True)
    assert fused.epilogues == epilogues
    assert len(fused.reasons) == (0 if reason is None else 1)
    if reason is not None:
        (miss,) = fused.report.misses
        assert re.search(reason, miss.reason), miss.reason
        assert miss.module == "linear" and "test_match_misses.py:" in (miss.source or "")


def test_a_narrow_result_cast_for_another_tensors_sake() -> None:
    linear, x = nn.Linear(24, 40, dtype=torch.bfloat16), torch.randn(6, 24, dtype=torch.bfloat16)
    with torch.no_grad():
        fused = fuse(lambda x: torch.clamp(linear(x), -VECTOR.abs(), VECTOR.abs()))
        torch.testing.assert_close(fused(x), torch.clamp(linear(x), -VECTOR.abs(), VECTOR.abs()))
    assert fused.epilogues == ["clamp(col0:f32, col1:f32) store:f32"] and fused.reasons == []


def test_a_scalar_drawn_after_other_numbers_is_not_drawn_before_them() -> None:
    def tail(z: torch.Tensor) -> object:
        noise = torch.rand_like(z)
        return F.gelu(z * torch.rand(())), noise

    model, x = Model(tail), torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model)
        torch.manual_seed(3)
        found = fused(x)
        torch.manual_seed(3)
        torch.testing.assert_close(found, model(x))
    assert fused.epilogues == ["mul($0) gelu"] and fused.reasons == []


def test_a_scalar_drawn_before_is_an_operand() -> None:
    linear, x = nn.Linear(24, 40), torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(lambda x: (lambda scale: F.gelu(linear(x) * scale))(torch.rand(())))
        fused(x)
    assert fused.epilogues == ["mul($0) gelu"]


def test_dropout_between() -> None:
    model, x = Model(lambda z: F.gelu(F.dropout(z, 0.5, True))), torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model)
        fused(x)
    assert fused.epilogues == ["mul(mat0:bool) mul(2.0) gelu"] and fused.reasons == []


def _gemm(gemm: Callable[..., torch.Tensor], *args: torch.Tensor) -> tuple[list[str], list[str]]:
    with torch.no_grad():
        fused = fuse(lambda *a: F.relu(gemm(*a)))
        torch.testing.assert_close(fused(*args), F.relu(gemm(*args)))
    return fused.epilogues, fused.reasons


@pytest.mark.parametrize(
    "product",
    [
        lambda x: torch.einsum("bsk,nk->bsn", x, torch.ones(40, 5)),
        lambda x: torch.bmm(x[:1], x[:1]),
    ],
)
def test_a_product_of_one_batch_is_a_miss(product: Tail) -> None:
    sites, reasons = _gemm(product, torch.randn(2, 5, 5))
    assert sites == [] and len(reasons) == 1 and "torch.einsum" in reasons[0]


def test_integers_are_a_miss() -> None:
    a, b = torch.randint(9, (6, 24)), torch.randint(9, (24, 40))
    assert _gemm(torch.mm, a, b) == (
        [], ["int64 is not fused; float16, bfloat16, float32 and float64 are"],
    )  # fmt: skip


def test_complex_numbers_are_a_miss() -> None:
    a, b = torch.randn(6, 24, dtype=torch.cfloat), torch.randn(24, 40, dtype=torch.cfloat)
    with torch.no_grad():
        fused = fuse(lambda a, b: (a @ b) * 2.0)
        torch.testing.assert_close(fused(a, b), (a @ b) * 2)
    assert fused.epilogues == [] and "complex64 is not fused" in fused.reasons[0]


@pytest.mark.parametrize(
    ("gemm", "reason"),
    [
        (lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=3), "addmm weighs its terms"),
        (lambda c, a, b: torch.addmm(c.expand(6, 40), a, b), "addmm adds a matrix"),
    ],
)
def test_an_addmm_that_is_no_linear_is_a_miss(gemm: Callable, reason: str) -> None:
    sites, reasons = _gemm(gemm, torch.randn(40), torch.randn(6, 24), torch.randn(24, 40))
    assert sites == [] and len(reasons) == 1 and reason in reasons[0]


def test_a_matrix_added_to_a_product_is_no_bias() -> None:
    sites, reasons = _gemm(lambda a, b: a @ b + GATE, torch.randn(6, 24), torch.randn(24, 40))
    assert sites == ["add(mat0) clamp(0.0, inf)"] and reasons == []


@pytest.mark.parametrize("shape", [(1, 1, 40), (1, 40), (40,)])
def test_a_bias_that_adds_a_dimension_is_none(shape: tuple[int, ...]) -> None:
    """[6, 40] plus [1, 1, 40] is [1, 6, 40]."""
    bias = torch.randn(shape)
    sites, _ = _gemm(lambda a, b: a @ b + bias, torch.randn(6, 24), torch.randn(24, 40))
    assert sites == ([] if len(shape) == 3 else ["clamp(0.0, inf)"])


def test_a_result_written_to_an_input_fuses() -> None:
    linear, x = nn.Linear(24, 40), torch.randn(6, 24)

    def model(x: torch.Tensor, kept: torch.Tensor) -> None:
        kept.copy_(F.gelu(linear(x)))

    kept, expected = torch.zeros(6, 40), torch.zeros(6, 40)
    with torch.no_grad():
        fused = fuse(model)
        fused(x, kept)
        model(x, expected)
    torch.testing.assert_close(kept, expected)
    assert fused.epilogues == ["gelu"]


def test_sizes_computed_behind_the_linear() -> None:
    """The views behind the op ask for sizes that a node after the GEMM computes."""
    linear = nn.Linear(24, 40)

    def model(x: torch.Tensor) -> torch.Tensor:
        z = linear(x)
        return F.gelu(z.view(z.shape[0] * 2, z.shape[1] // 2)) + z.sum()

    with torch.no_grad():
        fused = fuse(model, dynamic=True)
        for rows in (6, 5):
            x = torch.randn(rows, 24)
            torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == ["gelu"]


def test_a_dynamic_size_as_factor_is_a_miss() -> None:
    model, x = Model(lambda z: F.gelu(z * z.shape[0])), torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model, dynamic=True)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == [] and "size that is only known at run time" in fused.reasons[0]


def test_float64_needs_constants_of_float64() -> None:
    model = Model(lambda z: tanh_gelu(z, 0.044715, 0.7978845608)).double()
    x = torch.randn(6, 24, dtype=torch.float64)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-15, atol=1e-15)
    (epilogue,) = fused.epilogues
    assert "mul(0.7978845608) tanh" in epilogue


def test_torchs_own_fast_path_hides_a_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        hidden, expected = fuse(layer), layer(x)
        torch.testing.assert_close(hidden(x), expected)
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            fused = fuse(layer)
            torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
    (miss,) = hidden.report.misses
    assert "set_fastpath_enabled(False) its Linears can fuse" in miss.reason
    assert miss.node == "_transformer_encoder_layer_fwd"
    assert fused.epilogues == ["gelu", "add(mat0)"] and hidden.epilogues == []
