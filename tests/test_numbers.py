"""Odd numbers in a model: they are numbers to fusepass too, and nothing else to a compiler."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from emitted import include
from small_models import QUICK
from torch import nn
from torch.testing import assert_close

from fusepass import Epilogue
from fusepass.report import Report, collect

INF = float("1e400")
NAN = float("nan")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Scaled(nn.Module):
    def __init__(self, scale: float, low: float = -2.0, high: float = 2.0) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 48)
        self.scale, self.low, self.high = scale, low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(torch.clamp(self.linear(x) * self.scale, self.low, self.high))


def _report(model: nn.Module, device: str, options: dict[str, bool] | None = None) -> Report:
    """What fused, once the compiled model was seen to give what eager gives, NaN for NaN.

    Without oneDNN, whose GELU of +inf is NaN.
    """
    model, x = model.to(device).eval(), torch.randn(8, 32, device=device)
    x[0, 0], x[1, 0], x[2, 0] = NAN, INF, -INF
    with torch.no_grad(), collect() as gathered:
        out = torch.compile(model, backend="fusepass", options=options)(x)
        with torch.backends.mkldnn.flags(enabled=False):
            expected = model(x)
    assert_close(out, expected, equal_nan=True, rtol=1e-4, atol=1e-6)
    return gathered.report()


def _seen_by_the_compiler(epilogue: str) -> str:
    """What kernels are compiled with for each dtype."""
    return "".join(include(epilogue, dtype) for dtype in ("bf16", "f16", "f32", "f64"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "scale", [INF, -INF, -0.0, 5e-324, -1e-310, 1e-45, 3.5e38, 0.1, 1 / 3, 1e22, 12345678901234567]
)
def test_a_scale_stays_the_very_number(scale: float, device: str) -> None:
    generated = device == "cuda" or scale in (5e-324, 1 / 3)
    (site,) = _report(Scaled(scale), device, {} if generated else QUICK).sites
    assert "gelu" in site.epilogue
    written = re.search(r"mul\(([^)]*)\)", site.epilogue)
    assert written is not None and float(written[1]).hex() == float(scale).hex()
    # A compiler is shown a place among the kernel's arguments, not the number.
    seen = _seen_by_the_compiler(site.epilogue)
    assert "from.number(0)" in seen
    assert not re.search(rf"(?<![\w.]){re.escape(repr(float(scale)))}(?![\w.])|\binf|\bnan", seen)


class _Each(nn.Module):
    """One graph of all, to compile once."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [model(x) for model in self.models]


def test_odd_bounds(device: str) -> None:
    bounds = [(-INF, 2.0), (-2.0, INF), (2.0, -2.0), (-0.0, 0.0), (-5e-324, 5e-324)]
    sites = _report(_Each([Scaled(0.5, *both) for both in bounds]), device).sites
    for site, (low, high) in zip(sites, bounds, strict=True):
        assert f"clamp({low!r}, {high!r})" in site.epilogue


@pytest.mark.parametrize(("scale", "low"), [(NAN, -2.0), (0.5, NAN)])
def test_a_nan_in_the_model_gives_eagers_nan(scale: float, low: float, device: str) -> None:
    for site in _report(Scaled(scale, low), device).sites:
        assert "nan" not in site.epilogue


@pytest.mark.parametrize("text", ["mul(nan)", "mul(0,5)", "mul(1e)", "mul(0x1p3)", "mul(1) ; rm"])
def test_no_other_text_is_an_epilogue(text: str) -> None:
    with pytest.raises(ValueError, match="epilogue"):
        Epilogue.parse(text)


_PROGRAM = """
import json, locale, sys
locale.setlocale(locale.LC_ALL, "")
import torch, fusepass
device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Hardtanh(-1.5, 2.25), torch.nn.GELU())
model, x = model.to(device), torch.randn(8, 32, device=device)
with torch.no_grad():
    report = fusepass.explain(model, x)
    scale = torch.ops.fusepass.linear(x, model[0].weight, None, "mul(2.5)", [])
    torch.testing.assert_close(scale, x @ model[0].weight.T * 2.5)
print(json.dumps([locale.localeconv()["decimal_point"], report.sites[0].epilogue]))
"""


def test_a_locale_with_decimal_commas(tmp_path: Path) -> None:
    localedef = shutil.which("localedef")
    made: Any = localedef and subprocess.run(
        [localedef, "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")],
        capture_output=True,
    )
    if not made or made.returncode != 0:
        pytest.skip("cannot make a German locale: needs localedef and its sources")
    env = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [",", "clamp(-1.5, 2.25) gelu"]
