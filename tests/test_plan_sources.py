"""What each plan names is there to be built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fusepass.kernels.build import cache, toolchain
from fusepass.kernels.library import plan_for
from fusepass.kernels.plan.problem import BFLOAT16, FLOAT16, FLOAT32, TF32, Problem


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """What would have been run; nothing is, and no cache is asked."""
    ran: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> str:
        ran.append(command)
        return "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"

    def entry(name: str, build: Callable[[Path], None]) -> Path:
        build(tmp_path)
        return tmp_path

    monkeypatch.setattr(toolchain, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(toolchain, "nvcc_key", lambda nvcc: (nvcc,))
    monkeypatch.setattr(toolchain, "run", run)
    monkeypatch.setattr(cache, "entry", entry)
    return ran


@pytest.mark.parametrize(
    ("epilogue", "dtype", "m", "source"),
    [
        ("gelu", BFLOAT16, 2048, "gemm_sm90"),
        ("silu mul(z1)", FLOAT16, 2048, "gemm_sm90"),
        ("gelu", FLOAT32, 2048, "gemm_sm90_f32"),
        ("gelu", TF32, 2048, "gemm_sm90_tf32"),
        ("gelu", BFLOAT16, 1, "few_rows"),
        ("gelu", FLOAT32, 1, "few_rows_f32"),
    ],
)
def test_each_plan_compiles_a_source_there_is(
    epilogue: str, dtype: int, m: int, source: str, commands: list[Sequence[str]]
) -> None:
    """A missing one would pass for a machine that cannot build: two kernels, and a warning."""
    problem = Problem(epilogue, dtype, m, 8192, 8192, False, False)
    planned = plan_for(problem, "90a", 132)
    assert planned is not None and Path(planned.split("|")[1]).stem == source
    sources = [Path(word) for command in commands for word in command if word.endswith(".cu")]
    assert source in {path.stem for path in sources}
    assert all(path.is_file() for path in sources)
