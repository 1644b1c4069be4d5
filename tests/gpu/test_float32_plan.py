"""float32 in "highest" as the plan runs it: no worse than eager where it begins to split."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.kernels.plan import f32 as plan_f32

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from accuracy import CASES, within_contract

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

# Few tiles or few rows: cuBLAS may split K there, and its short sums are accurate.
SHAPES = [
    (200, 3072, 768), (512, 512, 256), (512, 512, 512), (1000, 1000, 1000), (1024, 1024, 1024),
    (4096, 256, 256),
]  # fmt: skip


@pytest.mark.parametrize("name", ["uniform(0, 1)", "normal", "cancellation"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_contract_is_kept(name: str, m: int, n: int, k: int) -> None:
    torch.manual_seed(k)
    x, w, b = (t.cuda() for t in CASES[name](m, n, k))
    z = torch.ops.fusepass.linear_with_preact(x, w, b, "gelu", [])[1]
    assert within_contract(z, torch.nn.functional.linear(x, w, b), x, w, b)


def test_these_shapes_are_split() -> None:
    assert all(plan_f32.choose(m, n, k, True) for m, n, k in SHAPES)
