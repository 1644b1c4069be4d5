"""float32 in "highest": pieces in the output, or over an x that dies; whole steps' peaks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from float32_problems import CHAIN, MIB, NAN, peak, stored, with_few
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import models

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional
OP = torch.ops.fusepass.linear
# Weight gradients of few tokens: of whole tiles, and of none.
FEW_TOKENS = [(8192, 8192, 2048), (5100, 9004, 900)]


def split_before(x: Tensor, w: Tensor, b: Tensor | None, text: str) -> Tensor:
    """The product in one piece."""
    splits = torch.ops.fusepass.split(x), torch.ops.fusepass.split(w)
    out: Tensor = OP.split(x, w, b, text, [], *splits)
    return out


def poisoned(nbytes: int) -> None:
    """What the allocator hands out next is full of NaN."""
    full = [torch.full((nbytes // 4,), NAN, device="cuda") for _ in range(2)]
    del full


# --- in the output --------------------------------------------------------------------------------


@pytest.mark.parametrize("km", [False, True])
@pytest.mark.parametrize("m", [65536, 65536 - 300])
def test_pieces_of_x_lie_in_the_output(m: int, km: bool) -> None:
    """The same bits as in one piece; 17 MiB instead of 129."""
    x, w, b = stored(m, 512, km), stored(514, 512, False), torch.randn(514, device="cuda")
    whole = split_before(x, w, b, CHAIN)
    poisoned(whole.nbytes)
    assert torch.equal(OP(x, w, b, CHAIN, []), whole)
    assert peak(lambda: OP(x, w, b, CHAIN, []), results=False) < 16 + 1.1 + 84 * m / MIB


def test_with_sums_of_columns_and_outputs_of_two_widths() -> None:
    """As the gradient of a layer behind tanh: the output of more bytes has the room."""
    m, n, k = 65536 - 300, 512, 512
    x, w, y = (torch.randn(s, device="cuda") for s in ((m, k), (n, k), (m, n)))
    text = "v0 = mul(mat0) mul(mat0) mul(-1.0) add(z); v0 store:bf16, v0, v0 col_sum"
    gemm = torch.ops.fusepass.gemm
    taken = gemm(x, [w], [None], text, [y])
    poisoned(m * n * 4)
    half, out, total = gemm(x, [w], [None], text, [y])
    for found, before in zip((half, out, total), taken, strict=True):
        assert torch.equal(found, before)
    z = F.linear(x.double(), w.double())
    expected = z - z * y.double() ** 2
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-3)
    assert torch.equal(half, out.bfloat16())
    torch.testing.assert_close(total.double(), expected.sum(0), rtol=1e-5, atol=1e-1)
    del taken, half, out, total, z, expected
    strips = m * n * 4 / 16 / MIB
    assert (
        peak(lambda: gemm(x, [w], [None], text, [y]), results=False)
        < strips + 16 + 1.1 + 20 * m / MIB
    )


# --- over x ---------------------------------------------------------------------------------------


def operands(m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    return torch.randn(k, m, device="cuda").t(), torch.randn(k, n, device="cuda").t()


@pytest.mark.parametrize(("m", "n", "k"), FEW_TOKENS)
def test_pieces_lie_over_an_x_that_dies(m: int, n: int, k: int) -> None:
    """The same bits as in one piece, with what is known of rows for all memory of its own."""
    torch.manual_seed(k)
    x, w = operands(m, n, k)
    whole = split_before(x, w, None, "")
    kept = x.clone(memory_format=torch.preserve_format)
    assert kept.stride() == x.stride()
    poisoned(whole.nbytes)
    assert torch.equal(OP.consuming(x, w, None, "", []), whole)
    assert not torch.equal(x, kept)  # it was written over
    assert (
        peak(lambda: OP.consuming(kept, w, None, "", []), results=False) <= 84 * (m + n) / MIB + 1
    )


def test_what_is_unsafe_is_summed_from_x_as_it_was() -> None:
    """Everywhere: rows of few elements, outliers against small ones, NaN and infinities."""
    m, n, k = FEW_TOKENS[0]
    torch.manual_seed(3)
    x, w = operands(m, n, k)
    x[::1021] = with_few(9, k, [*range(9)], True)[0]
    w[::1023] = with_few(9, k, [*range(9)], True)[0]
    x[::700, 300] *= 1e6
    w[::650, 300] *= 1e-6
    x[5, 7], x[6001, 1], x[8100, 4], w[77, 6] = NAN, float("inf"), 1e38, float("-inf")
    w[8000] *= 1e5
    whole = split_before(x, w, None, "")
    poisoned(whole.nbytes)
    found = OP.consuming(x.clone(memory_format=torch.preserve_format), w, None, "", [])
    assert torch.equal(found.nan_to_num(1.5, 2e38, -2e38), whole.nan_to_num(1.5, 2e38, -2e38))
    assert torch.equal(found.isnan(), whole.isnan()) and whole.isnan().any()
    poisoned(whole.nbytes)
    graph, captured = torch.cuda.CUDAGraph(), x.clone(memory_format=torch.preserve_format)
    with torch.cuda.graph(graph):
        out = OP.consuming(captured, w, None, "", [])
    captured.copy_(x)
    graph.replay()
    assert torch.equal(out.isnan(), whole.isnan())
    assert torch.equal(out.nan_to_num(1.5, 2e38, -2e38), whole.nan_to_num(1.5, 2e38, -2e38))


def test_with_bias_and_epilogue_or_where_it_has_no_room() -> None:
    for m, n, k in (FEW_TOKENS[1], (2048, 1024, 4096), (300, 200, 512)):
        x, w = operands(m, n, k)
        b = torch.randn(n, device="cuda")
        whole = OP(x, w, b, CHAIN, [])
        poisoned(whole.nbytes)
        out = OP.consuming(x.clone(memory_format=torch.preserve_format), w, b, CHAIN, [])
        assert torch.equal(out, whole), (m, n, k)


# --- whole steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "demo"])
def test_a_training_step_needs_no_more_than_inductors_and_3_percent(name: str) -> None:
    peers = models.prepare(name, "float32", True, ["inductor", "fusepass"], "cuda")
    assert peers.row["fusepass_peak_mb"] <= 1.03 * peers.row["inductor_peak_mb"], peers.row
    assert peers.row["difference"] < 3e-6
