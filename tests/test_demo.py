"""``make demo``: what it shows of the model fusepass was started for."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusepass import progress
from fusepass.__main__ import main
from fusepass.cli import demo
from fusepass.examples.gemm_scaling_hardtanh_gelu import Model


def test_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    timed = demo.interleaved

    def briefly(peers: Any, device: str, seconds: float) -> Any:
        return timed(peers, device, 0.1)

    monkeypatch.setattr(demo, "interleaved", briefly)
    monkeypatch.setattr(demo, "SMALL", {"batch_size": 24, "in_features": 48, "out_features": 32})
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.01)
    assert main(["demo", "--device", "cpu"]) == 0
    out, told = capsys.readouterr()
    assert inspect.getsource(Model.forward).rstrip() in out
    assert "24x48 -> 32, float32 on the CPU" in out
    before, after = out.index("Before"), out.index("After")
    assert before < out.index("aten.addmm(") < out.index("aten.erf(") < after
    assert after < out.index("fusepass.linear(") and "aten.addmm(" not in out[after:]
    assert after < out.index("fusepass: 1 fused, 0 missed")
    # What fuses, that the result is right, and only then the race.
    right = re.search(r"The fused result is (\S+) from the one in float64, eager's is (\S+) ", out)
    assert right is not None
    assert out.index("fusepass: 1 fused") < right.start() < out.index("median ms")
    rows = re.findall(r"^(\w+) +(\d\.\d\de-\d\d) +(\d+\.\d{3}) +\d+\.\d\dx", out, re.MULTILINE)
    errors = {name: float(error) for name, error, _ in rows}
    assert list(errors) == ["eager", "inductor", "fusepass"]
    assert 0 < errors["fusepass"] <= 1.05 * errors["eager"]
    assert [float(e) for e in right.groups()] == [errors["fusepass"], errors["eager"]]
    assert "compiling with inductor" in told and "compiling with fusepass" in told


_SMALL = """
import torch
from torch import nn

class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 8), nn.GELU())

def get_inputs():
    return [torch.randn(4, 8)]
"""
_WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
from fusepass.__main__ import main
sys.exit(main(["explain", sys.argv[1], "--device", "cpu"]))
"""


def test_nothing_is_said_of_numpy(tmp_path: Path) -> None:
    """`make demo` installs torch alone, which warns, when it is imported, that NumPy is missing."""
    file = tmp_path / "small.py"
    file.write_text(_SMALL)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_NUMPY, str(file)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "1 fused" in done.stdout and "NumPy" not in done.stderr
