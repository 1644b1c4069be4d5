"""Everything here needs a CUDA device; without one it is collected and skipped, visibly.

A kernel that is not there fails the test, as the op says that it runs without: its results would be
right all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forced_gemm import Runner, forced

from fusepass import kernels
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import few as plan_few


def pytest_itemcollected(item: pytest.Item) -> None:
    if Path(__file__).parent in item.path.parents:
        item.add_marker(pytest.mark.gpu)
        item.add_marker(pytest.mark.filterwarnings("error:fusepass. .*slower"))


@pytest.fixture
def always_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every float32 problem in "highest" takes the wide tile of the kernel."""
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)
    monkeypatch.setattr(plan_f32, "choose", lambda m, *args: plan_f32.TILES[0].config(m))
    assert kernels.load_binding()
    torch.ops.fusepass._forget_plans()


@pytest.fixture(params=[(t, s) for t in plan_f32.TILES for s in (1, 3)], ids=str)
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of one width and K in so many segments, whatever the plan thinks of it."""
    tile, segments = request.param
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)
    monkeypatch.setattr(plan_f32, "choose", lambda m, *args: tile.config(m, segments))
    assert kernels.load_binding()
    torch.ops.fusepass._forget_plans()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """What forces a configuration, and keeps the plan's answers."""
    with forced(monkeypatch) as runner:
        yield runner


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What ``fusepass::linears`` was told to run, each time that it asked."""
    told: list[str] = []
    ask = kernels.plan_linears

    def answer(*problem: object) -> str:
        told.append(ask(*problem))
        return told[-1]

    monkeypatch.setattr(kernels, "plan_linears", answer)
    torch.ops.fusepass._forget_plans()
    yield told
    torch.ops.fusepass._forget_plans()


@pytest.fixture
def run_kernels() -> Callable[[Callable[[], object]], list[str]]:
    """The names of the kernels that a call runs."""

    def names(function: Callable[[], object]) -> list[str]:
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            function()
            torch.cuda.synchronize()
        return [event.name for event in profile.events()]

    return names
