"""``torch.ops.fusepass.bmm`` where no kernel of ours runs, and when the plan chooses ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fusepass.op  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.kernels import build, plan_bmm

bmm = torch.ops.fusepass.bmm
HOPPER = 132


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 7).to(dtype), torch.randn(3, 7, 4).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_is_torchs_product(dtype: torch.dtype) -> None:
    x, w = operands(dtype)
    for a, b in (
        (x, w),
        (x.mT.contiguous().mT, w.mT.contiguous().mT),
        (x[:1].expand(3, -1, -1), w),
    ):
        out = bmm(a, b)
        assert torch.equal(out, torch.bmm(a, b)) and out.is_contiguous()


def test_the_ops_own_tests() -> None:
    x, w = operands()
    for needed in (False, True):
        torch.library.opcheck(bmm.default, (x.requires_grad_(needed), w.requires_grad_(needed)))
    torch.library.opcheck(bmm.default, (x.detach().mT.contiguous().mT, w.detach()))


def test_errors_are_torchs() -> None:
    x, w = operands()
    for a, b in ((x, w[:2]), (x, w.mT), (x[0], w), (x, w.double())):
        with pytest.raises(RuntimeError) as theirs:
            torch.bmm(a, b)
        with pytest.raises(RuntimeError, match=re.escape(str(theirs.value))):
            bmm(a, b)


def test_gradients_are_torchs() -> None:
    x, w = (t.double().requires_grad_() for t in operands())
    assert torch.autograd.gradcheck(bmm, (x, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(bmm, (x, w))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 1), (2, 0)])
def test_vmap(in_dims: tuple[int | None, int | None]) -> None:
    tensors = []
    for tensor, dim in zip(operands(), in_dims, strict=True):
        tensors.append(tensor if dim is None else torch.stack([tensor, 2 * tensor], dim))
    got = torch.vmap(bmm, in_dims)(*tensors)
    torch.testing.assert_close(got, torch.vmap(torch.bmm, in_dims)(*tensors))


def test_flops_are_counted() -> None:
    with FlopCounterMode(display=False) as counter:
        bmm(*operands())
    assert counter.get_total_flops() == 2 * 3 * 5 * 7 * 4


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        (512, 512, 512, 64),  # BERT-large's scores, 32 x 512 tokens
        (192, 512, 512, 64),
    ],
)
def test_attentions_scores_are_ours(sizes: tuple[int, int, int, int]) -> None:
    assert plan_bmm.chosen(*sizes, HOPPER)


@pytest.mark.parametrize(
    "sizes", [(1, 16, 16, 16), (4096, 1, 64, 64), (512, 512, 64, 512), (3, 0, 5, 5)]
)
def test_others_are_torchs(sizes: tuple[int, int, int, int]) -> None:
    assert not plan_bmm.chosen(*sizes, HOPPER)


def test_plan_and_kernel_have_the_same_tiles() -> None:
    source = (Path(build.SOURCES) / "bmm_sm90_args.h").read_text()
    tiles = re.search(r"kBmmTileM = (\d+), kBmmTileN = (\d+), kBmmTileK = (\d+)", source)
    assert tiles is not None
    assert [int(t) for t in tiles.groups()] == [
        plan_bmm._TILE_M,
        plan_bmm._TILE_N,
        plan_bmm._TILE_K,
    ]
