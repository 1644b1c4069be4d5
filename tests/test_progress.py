"""What takes longer than a second says so, on a terminal and in a log; the rest is quiet."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time

import pytest

from fusepass import progress
from fusepass.cli import bench


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.2)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_short_step_is_quiet(stream: type[io.StringIO]) -> None:
    out = stream()
    with progress.step("building", out):
        pass
    assert out.getvalue() == ""


def test_a_long_step_is_two_lines_of_a_log() -> None:
    out = io.StringIO()
    with progress.step("building", out):
        time.sleep(0.5)
    first, second = out.getvalue().splitlines()
    assert first == "fusepass: building ..."
    assert re.fullmatch(r"fusepass: building: [01]\.\d s *", second)


def test_a_long_step_counts_up_on_a_terminal() -> None:
    out = Terminal()
    with progress.step("building", out):
        time.sleep(1.0)
    *counting, last = out.getvalue().strip("\r\n ").split("\r")
    assert len(counting) >= 2 and all("building ... " in line for line in counting)
    assert "building: " in last


def test_a_step_that_fails_ends_its_line() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError, match="no"), progress.step("building", out):
        time.sleep(0.5)
        raise ValueError("no")
    assert out.getvalue().endswith("\n") and "building: " in out.getvalue()


def test_benchs_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        monkeypatch.setattr(sys, "stderr", stream)
        for share in (0.25, 1.0):
            bench._bar(share)
    assert log.getvalue() == ""
    quarter, whole = terminal.getvalue().split("\r")[:2]
    assert quarter == f"timing [{'#' * 10}{'.' * 30}]  25%"
    assert whole == f"timing [{'#' * 40}] 100%" and terminal.getvalue().endswith("\033[K")


_PROGRAM = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8))
with torch.no_grad():
    model = torch.nn.Sequential(model, torch.nn.Softmax(-1))
    torch.compile(model, options={"fallback_by_default": True})(torch.randn(2, 8))
"""


def test_torchs_own_switch_tells_each_site_and_miss() -> None:
    """In a program that does not know of fusepass; test_backend.py: without it nothing is said."""
    env = {**os.environ, "FUSEPASS": "1", "TORCH_LOGS": "+fusepass"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "fused 0.0: linear gelu" in done.stderr and "missed 0.2: softmax" in done.stderr
