"""What the sanitizer runs over is every configuration of every plan; each program on the CPU."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parent / "gpu"))

import launch_kinds
import launches
import sanitize
from test_gated_kernel import VARIANTS

from fusepass.kernels.plan import configs, f32, few, narrow, several, tf32

LAUNCHES = launches.launches()
GEMMS = [launch for launch in LAUNCHES if isinstance(launch, launches.Gemm)]
SEVERAL = [launch for launch in LAUNCHES if isinstance(launch, launches.Several)]


class OnCpu(TorchFunctionMode):
    """What is made on the GPU is made on the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        return function(*args, **{**given, "device": "cpu"} if "device" in given else given)


def _configs(family: str) -> set[str]:
    return {launch.config for launch in GEMMS if launch.family == family}


def test_every_configuration_of_every_plan_is_there() -> None:
    sixteen = (*configs.CONFIGS, *narrow.NARROW_TILES, *configs.CONFIGS_WITH_MATRICES)
    assert _configs("16 bits") == {str(config) for config in sixteen}
    assert {*map(str, configs.CONFIGS_WITH_TWO_MATRICES)} <= _configs("16 bits")
    assert _configs("gated") == {str(variant.config) for variant in VARIANTS}
    assert _configs("few rows") == {str(config) for config in few.CONFIGS}
    assert {x.config for x in SEVERAL} == {c for c in configs.CONFIGS if not several.why_not(c)}
    assert len(_configs("TF32")) == len(tf32.TILES)
    tiles = itertools.product(f32.TILES, (100, 300), (1, 3))
    assert _configs("float32") == {
        *(tile.config(m, segments) for tile, m, segments in tiles),
    }
    names = [str(launch) for launch in LAUNCHES]
    assert len({*names}) == len(names)
    assert {n.partition(":")[0] for n in names} > {"pointwise", "widened"}


def _one_of_each() -> list[launches.Launch]:
    """Of each family and program."""
    found = {(str(x).partition(":")[0], getattr(x, "text", ""), x.dtype): x for x in GEMMS}
    others = (x for x in LAUNCHES if isinstance(x, launches.Pointwise | launches.Widened))
    return [*found.values(), *{x.dtype: x for x in SEVERAL}.values(), *others]


@pytest.mark.usefixtures("one_thread")
def test_each_program_is_right_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_kinds, "_planned", lambda answer: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    # oneDNN's bfloat16 product of rows among NaN reads beyond a K that is no multiple of 32.
    with OnCpu(), torch.backends.mkldnn.flags(enabled=False):
        for launch in _one_of_each():
            gemm = isinstance(launch, launches.Gemm | launches.Several)
            assert (launch._error() if gemm else launch.run()) <= 1, launch


def test_a_wrong_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.randn(8, 8, dtype=torch.float64)
    program = launch_kinds.Epilogue.parse("")
    assert launch_kinds._worst([right.float()], program, [right], [], 1e-6) <= 1
    assert launch_kinds._worst([right.float() * 1.01], program, [right], [], 1e-3) > 1
    with pytest.raises(AssertionError, match="finite"):
        launch_kinds._worst([right.log().float()], program, [right], [], 1.0)


def test_parts_and_processes_have_each_launch_once() -> None:
    shares = [sanitize.share(range(100), part, 3, i, 4) for part in range(3) for i in range(4)]
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(100))
    assert {len(s) for s in shares} == {8, 9}


def _sanitizer(tmp_path: Path, printed: str, status: int = 0) -> str:
    """A program that prints instead of running what it is given, and knows the older option."""
    path = tmp_path / "compute-sanitizer"
    help_ = "case $1 in --help) echo ' --kernel-regex kns=...'; exit 0;; esac"
    path.write_text(f"#!/bin/sh\n{help_}\nprintf '{printed}'\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_what_a_tool_finds_is_told_and_what_did_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = argparse.Namespace(jobs=2, part="0/1", only="", limit=5.0)
    clean = _sanitizer(tmp_path, "ran gated: a, 0.1 s\\nran gated: b\\n")
    assert sanitize._command("memcheck", clean)[5:7] == ["--kernel-regex", "kns=fusepass"]
    assert sanitize._run_tool("memcheck", clean, 4, given)
    assert "memcheck: 4 of 4 ran (4 of gated)" in capsys.readouterr().out
    assert not sanitize._run_tool("memcheck", clean, 5, given), "one did not run"
    wrong = _sanitizer(tmp_path, "ran gated: a\\nFAILED gated: b: wrong\\n")
    assert not sanitize._run_tool("racecheck", wrong, 2, given)
    assert "2 failed, 0 of 2 processes with findings" in capsys.readouterr().out
    found = _sanitizer(tmp_path, "ran gated: a\\nran gated: b\\nRace reported\\n", sanitize.FOUND)
    assert not sanitize._run_tool("racecheck", found, 4, given)
    assert "0 failed, 2 of 2 processes with findings" in (told := capsys.readouterr().out)
    assert told.count("Race reported") == 2
    odd = _sanitizer(tmp_path, "unrecognized option\\n")
    assert "kns=fusepass" not in sanitize._command("memcheck", odd)
