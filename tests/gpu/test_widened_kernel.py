"""Batches widened from bfloat16: their kernel against float64 and beside eager; what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from forced_gemm import poison
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import kernels
from fusepass.op import widened

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

bmm = torch.ops.fusepass.bmm_widened
UNIT = 2.0**-24
BF16 = torch.bfloat16


@pytest.fixture(scope="module", autouse=True)
def built() -> Iterator[None]:
    assert kernels.load_binding()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """x of each call that torch's own operators computed."""
    calls: list[Tensor] = []
    check = widened._check

    def note(x: Tensor, w: Tensor, scale: float) -> None:
        calls.append(x)
        check(x, w, scale)

    monkeypatch.setattr(widened, "_check", note)
    return calls


def run(x: Tensor, w: Tensor, scale: float) -> Tensor:
    """The op, its memory full of NaN before."""
    poison(math.prod(x.shape[:-1]), w.shape[-2], torch.float32)
    return bmm(x, w, scale)


def eager(x: Tensor, w: Tensor, scale: float) -> Tensor:
    """As torch's own attention multiplies."""
    root = math.sqrt(scale)
    return (x.float() * root) @ (w.float() * root).mT


def errors(got: Tensor, x: Tensor, w: Tensor, scale: float) -> tuple[float, float]:
    """Relative to |x| |w|^T: the largest of an element, and of the Frobenius norms."""
    exact = x.double() @ w.double().mT * scale
    size = x.double().abs() @ w.double().abs().mT * abs(scale)
    off = (got.double() - exact).abs()
    assert off.isfinite().all()
    assert (off[size == 0] == 0).all()
    largest = (off / size.clamp(min=1e-300)).max().item()
    return largest, (off.norm() / size.norm().clamp(min=1e-300)).item()


def check(x: Tensor, w: Tensor, scale: float) -> Tensor:
    """The result, which has float32's digits, is contiguous, and is the same at each call."""
    got = run(x, w, scale)
    assert got.dtype == torch.float32 and got.is_contiguous()
    assert got.shape == (*x.shape[:-1], w.shape[-2])
    assert errors(got, x, w, scale)[0] <= 16 * UNIT
    assert torch.equal(run(x, w, scale), got)
    return got


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").to(BF16)


# --- sizes and places -----------------------------------------------------------------------------

SIZES = [(1, 1), (7, 33), (128, 64), (129, 65), (200, 258), (64, 512)]


@pytest.mark.parametrize("k", [8, 16, 24, 40, 64, 72, 128, 256])
def test_all_sizes(k: int, composed: list[Tensor]) -> None:
    for m, n in SIZES:
        check(normal(2, 3, m, k), normal(2, 3, n, k), k**-0.5)
    assert not composed


def test_heads_are_read_where_they_lie(composed: list[Tensor]) -> None:
    tokens = normal(3, 150, 3, 4, 64)
    q, k, v = (tokens[:, :, i].transpose(1, 2) for i in range(3))  # [3, 4, 150, 64] of rows of 768
    check(q, k, 0.125)
    check(v, q[:, :, :77], 1.0)
    check(q, k[:, 1:2].expand(3, 4, 150, 64), 0.125)
    check(q, k[:1].expand(3, 4, 150, 64), 1.0)
    assert not composed


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 3), (2, 2, 2, 2)], ids=str)
def test_any_leading_dimensions(leading: tuple[int, ...], composed: list[Tensor]) -> None:
    check(normal(*leading, 70, 64), normal(*leading, 90, 64), 0.125)
    assert not composed


def test_many_matrices_and_long_ones(composed: list[Tensor]) -> None:
    check(normal(1 << 18, 4, 8), normal(1 << 18, 4, 8), 1.0)
    check(normal(1, 3, 64), normal(1, 300_001, 64), 0.125)
    check(normal(1, 300_001, 64), normal(1, 3, 64), 0.125)
    assert not composed


def test_what_the_kernel_does_not_read_torch_multiplies(composed: list[Tensor]) -> None:
    several = [
        (normal(2, 9, 12), normal(2, 5, 12)),  # K is no multiple of 8
        (normal(2, 9, 264), normal(2, 5, 264)),
        (normal(2, 16, 9).mT, normal(2, 5, 16)),  # rows beside one another
        (normal(2, 9, 17)[..., 1:], normal(2, 5, 16)),  # off by 2 bytes
        (normal(2, 9, 20)[..., :16], normal(2, 5, 16)),  # rows of 40 bytes
        (normal(2, 9, 16).half(), normal(2, 5, 16).half()),
    ]
    for x, w in several:
        check(x, w, 0.25)
    assert len(composed) == 2 * len(several)


def test_nothing_to_compute() -> None:
    assert bmm(normal(2, 0, 64), normal(2, 5, 64), 1.0).shape == (2, 0, 5)
    assert not bmm(normal(2, 3, 0), normal(2, 5, 0), 1.0).any()


# --- data -----------------------------------------------------------------------------------------


def _outlier(v: Tensor) -> Tensor:
    v[..., 3] *= 1000
    return v


DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda v: v,
    "one sign": torch.abs,
    "relu": torch.relu,
    "mean 8": lambda v: v + 8,
    "log-normal": torch.exp,
    "log-normal, 16 binades": lambda v: (2 * v).exp(),
    "softmax": lambda v: torch.softmax(4 * v, -1),
    "outlier": _outlier,
    "one-hot": lambda v: v * (v == v.amax(-1, keepdim=True)),
    "tiny": lambda v: v * 2.0**-60,
    "integers": torch.round,
}


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", DATA)
def test_all_data_are_within_the_contract(kind: str, scaled: bool) -> None:
    for k in (32, 64, 128) if scaled else (64, 128):  # below, eager hardly rounds without a scale
        x, w = (DATA[kind](torch.randn(2, 512, k, device="cuda")).to(BF16) for _ in range(2))
        scale = k**-0.5 if scaled else 1.0
        got = check(x, w, scale)
        ours, theirs = errors(got, x, w, scale), errors(eager(x, w, scale), x, w, scale)
        # Of that many binades one element has all of the norm, and the luck of one says nothing.
        norms = 1 if "binades" in kind else 2
        for mine, others in zip(ours[:norms], theirs, strict=False):
            assert mine <= max(others, UNIT), (k, ours, theirs)
        if kind == "integers" and scale in (1.0, 0.125):
            assert torch.equal(got.double(), x.double() @ w.double().mT * scale)


def test_what_a_sum_is_cut_by_comes_back() -> None:
    """1 + 2^-25 of the first eight products, and -1 of the next."""
    x, w = (torch.zeros(1, 1, 16, dtype=BF16, device="cuda") for _ in range(2))
    x[..., [0, 1, 8]] = torch.tensor([1, 2.0**-13, -1], dtype=BF16, device="cuda")
    w[..., [0, 1, 8]] = torch.tensor([1, 2.0**-12, 1], dtype=BF16, device="cuda")
    assert run(x, w, 0.5).item() == 2.0**-26


def test_nan_and_infinities_are_where_eager_has_them() -> None:
    x, w = normal(2, 150, 64), normal(2, 90, 64)
    x[0, 3, 5], x[0, 7, 6], x[0, 9, 7], x[1, 140, 8] = math.nan, math.inf, -math.inf, math.inf
    w[0, 4, 6], w[0, 8, 7], w[1, 80, 8], w[1, 81, 63] = 0.0, math.inf, -math.inf, math.nan
    x[1, 100:] = x[1, 100:] * torch.where(torch.rand(50, 64, device="cuda") < 0.1, math.inf, 1)
    got, wanted = run(x, w, 0.125), eager(x, w, 0.125)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())
    assert torch.equal(got[got.isinf()], wanted[got.isinf()])
    finite = wanted.isfinite()
    assert finite.any() and not finite.all()
    assert (got - wanted)[finite].abs().max() < 1e-4


def test_what_only_the_scale_keeps_finite_is() -> None:
    x, w = normal(2, 100, 64).abs() * 2.0**62, normal(2, 100, 64).abs() * 2.0**62
    wanted = eager(x, w, 0.125)
    assert wanted.isfinite().all() and x.float().matmul(w.float().mT).isinf().any()
    check(x, w, 0.125)
    assert torch.equal(run(-x, w, 0.125).isfinite(), wanted.isfinite())
    big = x * 2.0**3
    assert torch.equal(run(big, w, 0.125).isinf(), eager(big, w, 0.125).isinf())


def test_a_negative_scale_and_none_at_all() -> None:
    x, w = normal(2, 100, 64), normal(2, 100, 64)
    assert torch.equal(run(x, w, -0.3), -run(x, w, 0.3))
    assert not run(x, w, 0.0).any()


# --- contexts -------------------------------------------------------------------------------------


def test_graphs_and_streams() -> None:
    x, w = normal(2, 4, 130, 64), normal(2, 4, 200, 64)
    wanted = run(x, w, 0.125)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = bmm(x, w, 0.125)
    out.fill_(math.nan)
    graph.replay()
    assert torch.equal(out, wanted)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        assert torch.equal(bmm(x, w, 0.125), wanted)


def test_a_gradient_is_given() -> None:
    x, w = normal(2, 40, 64).requires_grad_(), normal(2, 30, 64).requires_grad_()
    got = torch.autograd.grad(bmm(x, w, 0.125).square().sum(), (x, w))
    wanted = torch.autograd.grad(eager(x, w, 0.125).square().sum(), (x, w))
    torch.testing.assert_close(got, wanted)
