"""Batches of float32 matrices on Hopper: the kernel against float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

_CASES = Path(__file__).with_name("bmm_cases.py")


def test_the_contract_is_kept() -> None:
    """In any order and at any size, on easy, hostile and not finite data.

    In a process of its own: a kernel that never ends must not stop the tests behind it.
    """
    command = [sys.executable, str(_CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
