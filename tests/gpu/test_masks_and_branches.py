"""Compiled: parallel branches that meet in one product's epilogue, and masks of bool beside z."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from epilogues import CHANCE, error
from small_models import Masked, ParallelBranches, compiled
from torch import nn

import fusepass

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

BOTH, MASKED, CHOSEN = "add(mat0) add(mat1)", "mul(mat0:bool)", "gelu where(mat0:bool, _, 0.0)"
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    BOTH: (lambda: ParallelBranches(2560, True), 2560),
    MASKED: (lambda: Masked(1024, 4096, False), 1024),
    CHOSEN: (lambda: Masked(1024, 4096, True), 1024),
}


@pytest.mark.parametrize("epilogue", MODELS)
def test_one_kernel_reads_them(
    epilogue: str, run_kernels: Callable[[Callable[[], object]], list[str]]
) -> None:
    torch.manual_seed(0)
    make, width = MODELS[epilogue]
    model = make().to("cuda", torch.bfloat16)
    args = [torch.randn(8192, width, device="cuda", dtype=torch.bfloat16)]
    args += [torch.rand(8192, 4096, device="cuda") < 0.7] * (epilogue != BOTH)
    with torch.no_grad():
        report = fusepass.explain(model, *args)
        whole = compiled(model)
        out, eager = whole(*args), model(*args)
        names = run_kernels(lambda: whole(*args))
        wide = [a.double() if a.is_floating_point() else a for a in args]
        exact = copy.deepcopy(model).double()(*wide)
    taken = {s.epilogue: str(s.kernel) for s in report.sites}
    assert taken[epilogue].startswith("one kernel"), report
    for own, usual, wanted in zip(out, eager, exact, strict=True):
        assert error(own, wanted) <= 1.05 * error(usual, wanted) + CHANCE[torch.bfloat16]
    assert not any("fusepass_pointwise" in name for name in names), names
