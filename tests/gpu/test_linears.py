"""Several weights of one x in one launch on Hopper: every configuration, against float64."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest
import torch
from emitted import include
from epilogues import error
from forced_gemm import ORDERS, bias_of, poison, stored
from torch import Tensor, nn

from fusepass import kernels
from fusepass.kernels.build.build import build_cubins
from fusepass.kernels.plan import several as plan

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional
linears = torch.ops.fusepass.linears


class Variant(NamedTuple):
    """A kernel of several weights."""

    config: plan.Config
    bf16: bool
    w_is_kn: bool
    x_is_km: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float16

    def __str__(self) -> str:
        orders = ("[K, M] " if self.x_is_km else "") + ("[K, N]" if self.w_is_kn else "[N, K]")
        return f"{self.config}, {orders}, {'bf16' if self.bf16 else 'fp16'}"


def _variants() -> Iterator[Variant]:
    large = (4096, (4096, 4096), 4096)
    for i, config in enumerate(c for c in plan.CONFIGS if plan.why_not(c) is None):
        for j, (w_is_kn, x_is_km) in enumerate(ORDERS if i % 3 == 0 else ORDERS[:1]):
            if config in plan.candidates(*large, w_is_kn, 132, x_is_km):
                yield Variant(config, (i + j) % 2 == 0, w_is_kn, x_is_km)


VARIANTS = list(_variants())


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    assert kernels.load_binding()
    build_cubins(
        [
            (
                "sm90/gemm_sm90.cu",
                plan.defines(v.config, v.bf16, v.w_is_kn, v.x_is_km),
                "90a",
                include("", "bf16" if v.bf16 else "f16"),
            )
            for v in VARIANTS
        ]
    )


def force(monkeypatch: pytest.MonkeyPatch, config: plan.Config) -> None:
    monkeypatch.setattr(plan, "choose", lambda *question: config)
    monkeypatch.setattr(plan, "candidates", lambda *question: [config])
    torch.ops.fusepass._forget_plans()


def problems(rng: random.Random, config: plan.Config) -> Iterator[tuple[int, list[int], int]]:
    """Rows, columns of each weight, K: fewer than a tile's, just a tile's, many; uneven."""
    tile = config.tile_m if config.swapped else config.tile_n
    edges_m = [1, 63, 65, config.tile_m - 1, config.tile_n + 1, 2 * config.tile_m]
    edges_n = [8, tile // 8 * 8 - 8, tile // 8 * 8, tile // 8 * 8 + 8, 3 * tile // 8 * 8]
    edges_k = [8, 64, 72, 64 * config.stages + 8, 1024]
    for index in range(8):
        count = 2 + index % 3
        if index % 2:
            widths = [8 * rng.randint(1, 150) for _ in range(count)]
            yield rng.randint(1, 3000), widths, 8 * rng.randint(1, 150)
        else:
            yield rng.choice(edges_m), rng.choices(edges_n, k=count), rng.choice(edges_k)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_worse_than_eager_on_random_shapes(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], variant: Variant
) -> None:
    force(monkeypatch, variant.config)
    rng = random.Random(str(variant))
    torch.manual_seed(0)
    for index, (m, widths, k) in enumerate(problems(rng, variant.config)):
        m = -(-m // 8) * 8 if variant.x_is_km else m
        x = stored(m, k, variant.x_is_km, variant.dtype, rng)
        weights = [stored(n, k, variant.w_is_kn, variant.dtype, rng) for n in widths]
        for weight in weights:
            weight *= k**-0.5
        biases = [bias_of(n, variant.dtype) if index % 4 in (0, 1 + i) else None
                  for i, n in enumerate(widths)]  # fmt: skip
        outs = run(x, weights, biases)
        assert answers[-1].split("|")[0] == str(variant.config), "another kernel ran"
        for out, w, b in zip(outs, weights, biases, strict=True):
            right = x.double() @ w.double().t() + (0 if b is None else b.double())
            eager = F.linear(x, w, b)
            where = f"{m}x{k}->{widths}, biases {[b is not None for b in biases]}"
            assert out.is_contiguous() and out.shape == right.shape, where
            slack = 2e-3 * (out.numel() < 512)  # of a few elements, chance says whose is larger
            assert error(out, right) <= 1.02 * error(eager, right) + slack, where
        for first, again in zip(outs, run(x, weights, biases), strict=True):
            assert torch.equal(first, again), "another run, other bits"


def run(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    for w in weights:
        poison(x.shape[0], w.shape[0], x.dtype)
    outs: list[Tensor] = linears(x, weights, biases)
    assert len({o.untyped_storage().data_ptr() for o in outs}) == len(weights)
    return outs


def inputs(
    m: int, k: int, widths: Sequence[int], dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    x = torch.randn(m, k, device="cuda").to(dtype)
    ws = [(torch.randn(n, k, device="cuda") * k**-0.5).to(dtype) for n in widths]
    return x, ws, [torch.randn(n, device="cuda").to(dtype) for n in widths]


def close(outs: Sequence[Tensor], x: Tensor, ws: Sequence[Tensor], bs: Sequence[Tensor]) -> None:
    for out, w, b in zip(outs, ws, bs, strict=True):
        torch.testing.assert_close(out, F.linear(x, w, b), rtol=2e-2, atol=2e-2, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_not_finite_where_eager_is_not(answers: list[str], dtype: torch.dtype) -> None:
    x, ws, bs = inputs(300, 256, (264, 64, 520), dtype)
    for row, value in ((7, float("nan")), (130, float("inf")), (299, -float("inf"))):
        x[row, 40] = value
    ws[1][5, 9] = float("nan")  # of one weight, in its own result alone
    bs[2][511] = float("inf")
    outs = run(x, ws, bs)
    assert answers and answers[-1] != "hybrid"
    close(outs, x, ws, bs)
    assert not outs[0][0].isnan().any() and outs[1][0].isnan().sum() == 1


def test_what_no_kernel_takes_runs_by_itself(answers: list[str]) -> None:
    for widths, k in (((100, 108), 256), ((104, 96), 100)):
        x, ws, bs = inputs(300, k, widths)
        close(run(x, ws, bs), x, ws, bs)
    x, ws, bs = inputs(300, 256, (104, 96))
    ws[1] = ws[1].t().contiguous().t()  # of another order
    close(run(x, ws, bs), x, ws, bs)
    x, ws, bs = inputs(300, 256, (104, 96))
    shifted = torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)
    close(run(shifted, ws, bs), shifted, ws, bs)
    assert not answers
    x, ws, bs = inputs(300, 256, (104, 96), torch.float32)
    close(run(x, ws, bs), x, ws, bs)
    x, ws, bs = inputs(3, 256, (104, 96))  # a few rows: the plan has none
    close(run(x, ws, bs), x, ws, bs)
    assert answers == ["hybrid"]


def test_one_weight_twice_and_rows_of_another_dimension(answers: list[str]) -> None:
    x, ws, bs = inputs(512, 256, (256, 128))
    x = x.view(2, 256, 256)
    outs = linears(x, [ws[0], ws[0], ws[1]], [bs[0], None, bs[1]])
    assert answers and answers[-1] != "hybrid" and outs[2].shape == (2, 256, 128)
    close(outs[::2], x, ws, bs)
    torch.testing.assert_close(outs[1], F.linear(x, ws[0]), rtol=2e-2, atol=2e-2)


def test_captured_in_a_graph_and_replayed(answers: list[str]) -> None:
    """A problem first met while a graph is captured is run by itself, this once."""
    x, ws, bs = inputs(512, 256, (256, 128, 128))
    linears(x, ws[:2], bs[:2])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        known, unknown = linears(x, ws[:2], bs[:2]), linears(x, ws, bs)
    assert len(answers) == 1
    for _ in range(3):
        x.normal_()
        graph.replay()
        close(known, x, ws[:2], bs[:2])
        close(unknown, x, ws, bs)


def test_a_gradient_is_eagers() -> None:
    x, ws, bs = inputs(64, 32, (16, 8))
    leaves = [t.requires_grad_() for t in (x, *ws, *bs)]
    got = torch.autograd.grad(sum(o.float().square().sum() for o in linears(x, ws, bs)), leaves)
    eager = [F.linear(x, w, b) for w, b in zip(ws, bs, strict=True)]
    wanted = torch.autograd.grad(sum(o.float().square().sum() for o in eager), leaves)
    torch.testing.assert_close(got, wanted)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv: int, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, n, bias=bias) for n in (width, kv, kv))
        self.heads, self.head = heads, width // heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).view(*x.shape[:2], -1, self.head).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != self.heads)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kv", [512, 128], ids=["alike", "grouped queries"])
def test_a_compiled_attention_has_one_launch(
    train: bool, kv: int, run_kernels: Callable[[Callable[[], object]], list[str]]
) -> None:
    model = Attention(512, 8, kv, True).to("cuda", torch.bfloat16)
    x = torch.randn(8, 256, 512, device="cuda", dtype=torch.bfloat16, requires_grad=train)
    wide, exact_x = copy.deepcopy(model).double(), x.detach().double().requires_grad_(train)
    torch._dynamo.reset()
    fast = torch.compile(model, backend="fusepass")
    with torch.set_grad_enabled(train):
        found, exact = fast(x), wide(exact_x)
        assert error(found.detach(), exact.detach()) < 1e-2
        assert [n for n in run_kernels(lambda: fast(x)) if "fusepass" in n] == ["fusepass_gemm"]
    if train:
        # A bias of keys has none: what is added to all scores of a query changes nothing. No step
        # of eager's in 16 bits stands beside it: of the two, the one that comes second in a process
        # gets wrong gradients from torch 2.11's cuDNN attention, Inductor's own code as well.
        ours, theirs = (
            torch.autograd.grad(
                o.double().square().sum(),
                [x, *(p for name, p in m.named_parameters() if name != "k.bias")],
            )
            for o, m, x in ((found, model, x), (exact, wide, exact_x))
        )
        for a, b in zip(ours, theirs, strict=True):
            assert error(a, b) < 2e-2
