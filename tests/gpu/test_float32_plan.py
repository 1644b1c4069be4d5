"""float32 in "highest" as the plan runs it: no worse than eager where it begins to split, nor of
few rows, whose kernel splits nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import few as plan_few
from fusepass.kernels.plan.problem import FLOAT32

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from accuracy import CASES, within_contract

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

# Few tiles or few rows: cuBLAS may split K there, and its short sums are accurate.
SHAPES = [
    (200, 3072, 768), (512, 512, 256), (512, 512, 300), (1000, 1000, 1000), (1024, 1024, 1024),
    (4096, 256, 256),
]  # fmt: skip


FEW_ROWS = [
    (1, 4096, 512), (1, 16384, 4096), (1, 4096, 8192), (2, 4096, 16384),
    (2, 4096, 1024), (2, 4096, 32768), (3, 4096, 20480), (4, 16384, 4096), (5, 4096, 12288),
    (8, 4096, 8192), (9, 4096, 7280), (16, 4096, 4096),
]  # fmt: skip


@pytest.mark.parametrize("name", ["uniform(0, 1)", "normal", "cancellation"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES + FEW_ROWS)
def test_the_contract_is_kept(name: str, m: int, n: int, k: int) -> None:
    torch.manual_seed(k)
    x, w, b = (t.cuda() for t in CASES[name](m, n, k))
    z = torch.ops.fusepass.linear_with_preact(x, w, b, "gelu", [])[1]
    assert within_contract(z, torch.nn.functional.linear(x, w, b), x, w, b)


# Without a bias cuBLAS cuts K sooner.
@pytest.mark.parametrize("k", [320, 384, 512, 768, 1024, 1152, 2048, 4096])
@pytest.mark.parametrize(("m", "n"), [(512, 512), (768, 768), (768, 1024), (768, 3072)])
@pytest.mark.parametrize("by_k", [(False, False), (False, True), (True, True)], ids=str)
def test_the_contract_is_kept_without_a_bias(
    m: int, n: int, k: int, by_k: tuple[bool, bool]
) -> None:
    """A forward, a gradient of x and one of w, by how x and w are stored."""
    torch.manual_seed(k)
    x, w, b = (t.cuda() for t in CASES["uniform(0, 1)"](m, n, k))
    x, w = (t.t().contiguous().t() if km else t for t, km in zip((x, w), by_k, strict=True))
    z = torch.ops.fusepass.linear(x, w, None, "", [])
    assert within_contract(z, x @ w.t(), x, w, torch.zeros_like(b))


def test_these_shapes_are_split_or_few_rows() -> None:
    assert all(plan_f32.choose(m, n, k, True) for m, n, k in SHAPES)
    assert all(plan_few.choose(FLOAT32, *shape) for shape in FEW_ROWS)
