"""The kernel of widened batches, by its own source on the host: sizes, places, the contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from split_model import sequential
from torch import Tensor
from widened_device import Widened

BF16 = torch.bfloat16
UNIT = 2.0**-24
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def kernel(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Widened:
    return Widened(host_compiler, tmp_path_factory.mktemp("widened"))


def aligned(v: Tensor) -> Tensor:
    """``v`` at a multiple of 16 bytes."""
    room = torch.empty(v.numel() + 8, dtype=v.dtype)
    skip = -room.data_ptr() % 16 // 2
    return room[skip : skip + v.numel()].view(v.shape).copy_(v)


def integers(*shape: int) -> Tensor:
    return aligned(torch.randint(-9, 10, shape).to(BF16))


@pytest.mark.parametrize(
    ("m", "n", "k", "tiles"),
    [(1, 1, 8, 1), (130, 65, 64, 1), (40, 200, 24, 2), (128, 128, 16, 8), (33, 66, 256, 1)],
)
def test_integers_are_exact_at_all_sizes(
    m: int, n: int, k: int, tiles: int, kernel: Widened
) -> None:
    x, w = integers(2, 1, m, k), integers(2, 1, n, k)
    out = kernel(x, w, -0.25, tiles)
    assert torch.equal(out.double(), x.double() @ w.double().mT * -0.25)


def test_heads_are_read_where_they_lie(kernel: Widened) -> None:
    tokens = integers(2, 40, 3, 2, 16)
    x, w = (tokens[:, :, i].transpose(1, 2) for i in (0, 2))
    out = kernel(x, w[:, 1:].expand(2, 2, 40, 16), 1.0)
    assert torch.equal(out.double(), x.double() @ w[:, 1:].double().mT)


DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda v: v,
    "one sign": torch.abs,
    "relu": torch.relu,
    "log-normal": lambda v: (2 * v).exp(),
    "softmax": lambda v: torch.softmax(4 * v, -1),
}


@pytest.mark.parametrize("kind", DATA)
def test_sums_are_within_the_contract(kind: str, kernel: Widened) -> None:
    """Beside one chain of FMAs of the factors, each multiplied by the scale's root."""
    torch.manual_seed(len(kind))
    k, scale = 64, 0.125
    x, w = (aligned(DATA[kind](torch.randn(1, 1, 128, k)).to(BF16)) for _ in range(2))
    root = math.sqrt(scale)
    theirs = sequential(x[0, 0].float() * root, w[0, 0].float() * root)
    ours = kernel(x, w, scale)[0, 0]
    exact = x[0, 0].double() @ w[0, 0].double().mT * scale
    size = x[0, 0].double().abs() @ w[0, 0].double().abs().mT * scale
    for norm in (lambda off: (off / size).max(), lambda off: off.norm() / size.norm()):
        mine, others = (float(norm((v.double() - exact).abs())) for v in (ours, theirs))
        assert mine <= max(others, UNIT)


def test_what_a_sum_is_cut_by_comes_back(kernel: Widened) -> None:
    """1 + 2^-25 of the first eight products, and -1 of the next."""
    x, w = (aligned(torch.zeros(1, 1, 3, 16, dtype=BF16)) for _ in range(2))
    x[0, 0, 1, [0, 1, 8]] = torch.tensor([1, 2.0**-13, -1], dtype=BF16)
    w[0, 0, 2, [0, 1, 8]] = torch.tensor([1, 2.0**-12, 1], dtype=BF16)
    wanted = torch.zeros(3, 3)
    wanted[1, 2] = 2.0**-26
    assert torch.equal(kernel(x, w, 0.5)[0, 0], wanted)


def test_what_is_not_finite_is_as_in_one_chain(kernel: Widened) -> None:
    x, w = (aligned(torch.randn(1, 1, 70, 16).to(BF16)) for _ in range(2))
    x[0, 0, 3, 5], x[0, 0, 66, 6], x[0, 0, 9, 7] = math.nan, math.inf, -math.inf
    w[0, 0, 4, 6], w[0, 0, 68, 7] = 0.0, math.inf
    x[0, 0, 20], w[0, 0, 30] = 2.0**63, 2.0**63  # beyond float32, unless the scale is in it
    out = kernel(x, w, 0.0625)[0, 0]
    wanted = sequential(x[0, 0].float() * 0.25, w[0, 0].float() * 0.25)
    assert torch.equal(out.isnan(), wanted.isnan()) and out.isnan().any()
    assert torch.equal(out[wanted.isinf()], wanted[wanted.isinf()]) and wanted.isinf().any()
    assert torch.allclose(out[wanted.isfinite()], wanted[wanted.isfinite()], rtol=1e-5, atol=1e-6)
