"""What max_autotune found is remembered on disk and goes before the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan import winners
from fusepass.kernels.plan.problem import BFLOAT16, Problem

PROBLEM = Problem("mul(0.5) gelu", BFLOAT16, 4096, 4096, 1024, False, False)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that says it has a GPU; nothing is run on it."""
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H")
    monkeypatch.setattr(
        plan, "build_first", lambda source, choices, arch, epilogue: (0, Path("/a.cubin"))
    )
    monkeypatch.setattr(winners, "_won", {})
    winners._on_disk.cache_clear()


def _plan(problem: Problem) -> str | None:
    return plan.plan(problem, "90a", 132)


@pytest.mark.parametrize("config", plan.CONFIGS, ids=str)
def test_a_configuration_survives_its_text(config: plan.Config) -> None:
    assert plan.Config.parse(str(config)) == config


@pytest.mark.usefixtures("hopper")
def test_the_winner_goes_before_the_model() -> None:
    chosen = plan.choose(PROBLEM.m, PROBLEM.n, PROBLEM.k)
    assert chosen is not None
    assert winners.recall(PROBLEM) == (False, None)
    assert (_plan(PROBLEM) or "").startswith(str(chosen))
    other = next(c for c in plan.CONFIGS if c != chosen)
    winners.remember(PROBLEM, other)
    assert winners.recall(PROBLEM) == (True, other)
    assert (_plan(PROBLEM) or "").startswith(str(other))


@pytest.mark.usefixtures("hopper")
def test_another_process_finds_the_winner_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    winners.remember(PROBLEM, plan.CONFIGS[1])
    monkeypatch.setattr(winners, "_won", {})
    assert winners.recall(PROBLEM) == (True, plan.CONFIGS[1])


@pytest.mark.usefixtures("hopper")
def test_where_the_cache_cannot_be_used_the_process_remembers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(tmp_path / "a file"))
    with pytest.warns(UserWarning):
        winners.remember(PROBLEM, plan.CONFIGS[1])
    assert winners.recall(PROBLEM) == (True, plan.CONFIGS[1])


@pytest.mark.usefixtures("hopper")
def test_the_hybrid_can_win() -> None:
    winners.remember(PROBLEM, None)
    assert winners.recall(PROBLEM) == (True, None)
    assert _plan(PROBLEM) is None


@pytest.mark.usefixtures("hopper")
def test_another_gpu_or_problem_is_another_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    winners.remember(PROBLEM, plan.CONFIGS[0])
    assert winners.recall(Problem("gelu", BFLOAT16, 4096, 4096, 1024, False, False))[0] is False
    other_numbers = Problem("mul(0.7) gelu", BFLOAT16, 4096, 4096, 1024, False, False)
    assert winners.recall(other_numbers)[0] is True  # the kernel is the same
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "another")
    assert winners.recall(PROBLEM)[0] is False
