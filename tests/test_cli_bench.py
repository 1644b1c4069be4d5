"""``python -m fusepass bench``: times, errors and ratios, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusepass import bench
from fusepass.__main__ import main

MODEL = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(16, 32)

    def forward(self, x):
        return nn.functional.gelu(self.up(x) * 0.5)


def get_inputs():
    return [torch.randn(8, 16)]
"""


def test_bench(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, drawn = tmp_path / "out.json", tmp_path / "out.png"
    arguments = ["bench", model, "--device", "cpu", "--peers", "eager", "fusepass"]
    arguments += ["--seconds", "0.1", "--json", str(written)]
    pytest.importorskip("matplotlib", reason="needs matplotlib for the picture")
    assert main([*arguments, "--picture", str(drawn)]) == 0
    out = capsys.readouterr().out
    result = json.loads(written.read_text())
    assert result["fused"] == 1 and list(result["rows"]) == ["eager", "fusepass"]
    for name, row in result["rows"].items():
        assert row["median_ms"] > 0 and row["rounds"] >= 5 and row["error"] < 1e-5
        assert f"\n{name} " in out
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_fails_is_a_row(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(gm: object, inputs: object) -> object:
        raise RuntimeError("this peer is broken")

    peers = {"eager": None, "broken": {"backend": broken}}
    monkeypatch.setattr(bench, "PEERS", peers)
    assert main(["bench", model, "--device", "cpu", "--seconds", "0.1"]) == 1
    assert "broken          failed: " in capsys.readouterr().out


def test_bench_names_its_peers(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", model, "--peers", "tensorrt"]) == 2
    assert "no peer 'tensorrt'; the peers are eager, inductor" in capsys.readouterr().err


def test_speedups_are_over_eager_and_over_inductor() -> None:
    medians = {"eager": 5.0, "inductor": 3.0, "fusepass": 2.0}
    rows = {name: bench.Row(median_ms=ms) for name, ms in medians.items()}
    result = bench.Result("m", "d", "float32", "2", "highest", 1, rows=rows)
    lines = {line.split()[0]: line.split() for line in str(result).splitlines()[3:6]}
    assert {name: cells[3:5] for name, cells in lines.items()} == {
        "eager": ["1.00x", "0.60x"],
        "inductor": ["1.67x", "1.00x"],
        "fusepass": ["2.50x", "1.50x"],
    }


def test_no_speedup_over_a_peer_without_a_time() -> None:
    rows = {"inductor": bench.Row(failed="no compiler"), "fusepass": bench.Row(median_ms=2.0)}
    result = bench.Result("m", "d", "float32", "2", "highest", 1, rows=rows)
    assert result.speedup("fusepass", "inductor") is result.speedup("fusepass", "eager") is None
