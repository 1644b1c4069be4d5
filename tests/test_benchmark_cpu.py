"""benchmarks/cpu.py on small models: which sites there are, and what a row holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import cpu

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", [cpu.DivideSumScale, cpu.ScaleAndBoth])
def test_a_row(kind: type[torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WIDTH", 32)
    row = cpu.measure(kind, torch.float32, "thread", 0.0)
    low, high = row["middle_half"]
    assert row["sites"] == 1 and row["rounds"] >= 20
    assert 0 < low <= row["ratio"] <= high
