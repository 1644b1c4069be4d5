"""What a transformer adds at the end of a layer of parallel branches, and masks: on an H200."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from epilogues import CHANCE, error
from graphs import Fused, fuse
from small_models import Masked, ParallelBranches
from torch import Tensor, nn
from torch.nn import functional as F

from fusepass.ir import DType, Epilogue
from fusepass.kernels import library
from fusepass.kernels.plan.demand import Demand

BF16 = torch.bfloat16
WIDE, ROWS = 64, 96


@pytest.fixture
def whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is faster at every size, for the programs that it takes."""

    def chosen_program(*problem: Any) -> bool:
        *_, text, _, group = problem
        return isinstance(Demand.of(Epilogue.parse(text), DType.BF16, group=group), Demand)

    monkeypatch.setattr(library, "chosen_program", chosen_program)
    monkeypatch.setattr(library, "chosen", lambda *problem: not problem[-1])


def checked(model: nn.Module, *args: Tensor) -> Fused:
    """The model, compiled as for an H200, is no less exact than eager."""
    torch._dynamo.reset()
    with torch.no_grad():
        fused = fuse(model.to(BF16), hopper=True)
        found, eager = fused(*args), model(*args)
        wide = [a.double() if a.is_floating_point() else a for a in args]
        exact = model.double()(*wide)
    for own, usual, wanted in zip(found, eager, exact, strict=True):
        assert own.shape == wanted.shape
        assert error(own, wanted) <= error(usual, wanted) + CHANCE[BF16]
    return fused


@pytest.mark.usefixtures("whatever_the_size")
@pytest.mark.parametrize("kept", [True, False])
def test_the_last_product_of_parallel_branches_adds_both(kept: bool) -> None:
    fused = checked(ParallelBranches(WIDE, kept), torch.randn(ROWS, WIDE, dtype=BF16))
    assert fused.epilogues == ["gelu", "add(mat0) add(mat1)"]
    (_, down), (out,) = fused.report.sites, fused.report.misses
    assert down.kernel == "one kernel" and "LayerNorm" in (down.follows or "")
    # Nothing of what is behind the other branch is left.
    assert out.reason == "nothing to fuse: its result goes into the epilogue of `down`"


@pytest.mark.usefixtures("whatever_the_size")
@pytest.mark.parametrize(
    ("chosen", "epilogue"),
    [(False, "mul(mat0:bool)"), (True, "gelu where(mat0:bool, _, 0.0)")],
)
def test_a_mask_of_bool_is_read_by_one_kernel(chosen: bool, epilogue: str) -> None:
    x, mask = torch.randn(ROWS, WIDE, dtype=BF16), torch.rand(ROWS, WIDE) < 0.5
    fused = checked(Masked(WIDE, WIDE, chosen), x, mask)
    assert fused.epilogues == [epilogue]
    assert fused.report.sites[0].kernel == "one kernel"


@pytest.mark.usefixtures("whatever_the_size")
@pytest.mark.parametrize("columns", [72, 80])
def test_rows_of_bool_that_no_copy_reads_are_inductors(columns: int) -> None:
    """Each begins at a multiple of 16 bytes, or torch's product and generated code run."""
    model = Masked(WIDE, WIDE, False)
    x, whole = torch.randn(ROWS, WIDE, dtype=BF16), torch.rand(ROWS, columns) < 0.5
    fused = checked(model, x, whole[:, :WIDE])
    assert len(fused.epilogues) == (columns % 16 == 0)


@pytest.mark.usefixtures("whatever_the_size")
def test_a_mask_that_dropout_draws_is_inductors() -> None:
    """Drawing takes its kernel longer than what that moves, and what is beside it there is free."""
    up, down = (nn.Linear(WIDE, WIDE, dtype=BF16) for _ in range(2))

    def model(x: Tensor) -> Tensor:
        return x + F.dropout(down(F.dropout(F.gelu(up(x)), 0.1)), 0.1)

    fused = fuse(model, hopper=True)
    fused(torch.randn(ROWS, WIDE, dtype=BF16, requires_grad=True)).sum().backward()
    assert not [s.epilogue for s in fused.report.sites if not s.backward]
    assert fused.reasons == ["Inductor fuses these stages with what follows, for free"] * 2
