"""An activation that is not in the table is one row; and the package is pure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from host_epilogues import HostEpilogues
from row_cases import every

from fusepass.ir import DType, Epilogue, recognise, text
from fusepass.ir.emit import build_key, emit
from fusepass.ir.row import Row
from fusepass.ir.table import ROWS

# A bell, exp(-z^2): nothing else in the package says how it is spelled, computed or compiled.
BELL = Row(
    "bell",
    "v",
    lambda a: torch.exp(-a.square()),
    exact="exp(-(a * a))",
    expansion="square neg exp",
    fast="x = a * a\nx = x * -1.4426950408889634f\nexp2_approx(x)",
)


@pytest.fixture
def bell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Epilogue]:
    caches = (text.read, emit, recognise._patterns, recognise._unary_macros,
              recognise._by_mathematics, recognise._composite)  # fmt: skip
    monkeypatch.setitem(ROWS, "bell", BELL)
    for cache in caches:
        cache.cache_clear()
    yield Epilogue.parse("bell")
    for cache in caches:
        cache.cache_clear()


def test_one_row_is_enough(bell: Epilogue, host_compiler: str, tmp_path: Path) -> None:
    z = every(torch.bfloat16)
    wanted = np.exp(-(z.double().numpy() ** 2))
    np.testing.assert_allclose(bell.reference(z.double()).numpy(), wanted, rtol=1e-14)
    # Found in every spelling, inside of anything,
    for spelled in ("mul(z) neg exp", "square exp reciprocal", "v0 = neg; mul(v0) exp"):
        found = recognise.recognise(Epilogue.parse(f"{spelled} mul(mat0)"), DType.BF16)
        assert str(found) == "bell mul(mat0)"
    # and compiled, cheap and exact.
    assert build_key(bell, DType.BF16) == "bf16: bell"
    cases = [(bell, DType.BF16), (bell, DType.F64)]
    host = HostEpilogues(host_compiler, tmp_path, cases)
    finite = ~np.isnan(wanted)
    for case, error in zip(cases, (BELL.error, 1e-14), strict=True):
        (got,) = host(case, z.double().numpy(), ulps=(2, 1))
        np.testing.assert_allclose(got[finite], wanted[finite], rtol=error, atol=BELL.floor)
        assert np.isnan(got[~finite]).all()


_PURE = """
import sys
from fusepass.ir import DType, Epilogue
from fusepass.ir import cost, emit, fold, operands
text = emit.emit(Epilogue.parse("mul(0.5) clamp(-2.0, 2.0) gelu add(mat0)"), DType.BF16)
ours = [m for m in sys.modules if m.startswith("fusepass.") and not m.startswith("fusepass.ir")]
print(sorted({"torch", "sympy", "numpy"} & set(sys.modules)), ours)
"""


def test_the_package_is_pure() -> None:
    """Neither torch nor the rest of fusepass is needed to read, fold or emit a program."""
    done = subprocess.run([sys.executable, "-c", _PURE], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"
