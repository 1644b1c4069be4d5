"""benchmarks/models.py on a model of its own: no library of models is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusepass.explaining.explain import without_caches

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import models
import models_tables
import rows
import zoo

pytestmark = pytest.mark.usefixtures("one_thread")


def _make(batch: int) -> zoo.Made:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU()), (torch.randn(batch, 16),), {}


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """The backend and the mode of each call of torch.compile."""
    calls: list[tuple[Any, Any]] = []
    compile_ = torch.compile

    def note(model: Any, backend: str = "inductor", mode: str | None = None, **more: Any) -> Any:
        calls.append((backend, mode))
        return compile_(model, backend=backend, **more)  # the mode's work is torch's

    monkeypatch.setattr(torch, "compile", note)
    monkeypatch.setattr(rows, "uncached", lambda: None)  # which is for the whole process
    entry = zoo.Entry("own, {}", _make, {("float32", False): 3})
    monkeypatch.setitem(models.MODELS, "own", entry)
    return calls


def _rows(tmp_path: Path, *more: str) -> list[dict[str, Any]]:
    out = tmp_path / "models.json"
    given = ["--models", "own", "--dtype", "float32", "--device", "cpu", "--seconds", "0.01"]
    with without_caches():
        models.main([*given, "--out", str(out), *more])
    return json.loads(out.read_text())["rows"]


def test_each_mode_is_whose_it_is_and_the_row_names_it(
    tmp_path: Path, compiles: list[tuple[Any, Any]]
) -> None:
    tuned = "max-autotune-no-cudagraphs"
    graphs, tune = _rows(tmp_path, "--modes", "reduce-overhead", tuned, "--batch", "5")
    assert compiles[:2] == [("inductor", "reduce-overhead"), ("fusepass", "reduce-overhead")]
    assert compiles[2:] == [("inductor", tuned), ("fusepass", None)]
    assert (graphs["mode"], tune["mode"]) == ("reduce-overhead", tuned)
    for row in (graphs, tune):
        assert (row["model"], row["fused"]) == ("own, 5", 1) and row["difference"] <= 1e-6
        ratio = row["inductor_ms"] / row["fusepass_ms"]
        assert row["speedup"] == pytest.approx(ratio, rel=0.05)
    lines = models_tables.modes({"commit": "1111111", "rows": [graphs, tune]}).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["reduce-overhead", tuned]
    assert lines[0].startswith("| own, 5 | ") and lines[0].endswith("| 1111111 |")
