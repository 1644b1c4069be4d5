"""Which configuration a column of groups of rows gets: those whose consumers' rows lie in one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fusepass.kernels.library import chosen_program, plan_for
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.problem import BFLOAT16, Problem


@pytest.mark.parametrize("group", [64, 128, 192, 256, 320, 768])
@pytest.mark.parametrize("mats", [(), (2,)], ids=["", "mat"])
def test_a_consumers_rows_lie_in_one_group(group: int, mats: tuple[int, ...]) -> None:
    """Whose columns it reads once a tile; every group of 64 rows or a multiple has a kernel."""
    demand = Demand(mats=mats, col_bytes=2, work=2, group=group)
    found = plan.candidates(16384, 1152, 1152, False, demand)
    usual = plan.candidates(16384, 1152, 1152, False, dataclasses.replace(demand, group=0))
    rows = {c: c.tile_n if c.swapped else c.tile_m // (1 if c.pingpong else c.consumers)
            for c in usual}  # fmt: skip
    assert set(found) == {c for c in usual if group % rows[c] == 0} and found
    assert plan.choose(16384, 1152, 1152, False, demand) == found[0]
    assert plan.choose(16384, 1152, 1152, False, dataclasses.replace(demand, group=100)) is None


def test_the_plan_is_asked_about_groups() -> None:
    text, sizes = "mul(col0) add(mat0)", (16384, 1152, 1152)
    for group, is_one in ((0, True), (256, True), (100, False)):
        problem = Problem(text, BFLOAT16, *sizes, False, False, False, group)
        assert (plan_for(problem, "90", 132) is None) and problem.group == group
        assert chosen_program(torch.bfloat16, *sizes, False, 132, False, text, 1, group) == is_one
        assert chosen_program(torch.float32, *sizes, False, 132, False, text, None, group)
