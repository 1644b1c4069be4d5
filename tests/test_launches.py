"""What the sanitizer runs over is every configuration of every plan; each program on the CPU."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parent / "gpu"))

import launch_kinds
import launches
import sanitize
import test_rope_kernel
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
    tiles_of_several = {c for c in configs.CONFIGS if not several.why_not(c)}
    assert {x.config for x in SEVERAL} == {*tiles_of_several, *few.SEVERAL}
    assert len(_configs("TF32")) == len(tf32.TILES)
    tiles = itertools.product(f32.TILES, (100, 300), (1, 3))
    assert _configs("float32") == {
        *(tile.config(m, segments) for tile, m, segments in tiles),
        *(tile.config(140, 6, 3) for tile in f32.TILES),
    }
    assert _configs("heads") == {str(case.config) for case in test_rope_kernel.CASES}
    odd = {(x.defines["FUSEPASS_ODD_N"], x.shape[1] % 2) for x in GEMMS if x.family == "float32"}
    assert odd == {(0, 0), (1, 1)}
    names = [str(launch) for launch in LAUNCHES]
    assert len({*names}) == len(names)
    assert {n.partition(":")[0] for n in names} > {"pointwise", "widened"}


def _one_of_each() -> list[launches.Launch]:
    """Of each family and program."""
    found = {(str(x).partition(":")[0], getattr(x, "text", ""), x.dtype): x for x in GEMMS}
    other = (launches.Gemm, launches.Several)
    others = [x for x in LAUNCHES if not isinstance(x, other)]
    others += {x.dtype: x for x in SEVERAL}.values()
    short = (
        replace(x, shape=(70, 66, 40)) if isinstance(x, launches.InParts) else x for x in others
    )
    return [*found.values(), *short]


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


def test_processes_have_each_launch_once(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    queue.touch()

    def process(_: int) -> list[int]:
        return list(itertools.takewhile(lambda number: number < 100, sanitize.taken(queue)))

    with ThreadPoolExecutor(8) as pool:
        found = [number for each in pool.map(process, range(8)) for number in each]
    assert sorted(found) == list(range(100))


def test_which_are_chosen_and_in_which_order() -> None:
    texts = ["gated: a", "float32: b", "few rows: a", "float32: a", "pointwise: b"]
    assert sanitize.chosen(texts, [""], []) == [0, 1, 2, 3, 4]
    assert sanitize.chosen(texts, ["float32", "gated"], []) == [0, 1, 3]
    assert sanitize.chosen(texts, [""], ["float32", ": b"]) == [1, 3, 4, 0, 2]
    given = argparse.Namespace(only=["float32"], first=[])
    under = {tool: {str(x) for x in sanitize._mine(given, tool)} for tool in sanitize.TOOLS}
    in_parts = {str(x) for x in LAUNCHES if isinstance(x, launches.InParts)}
    assert in_parts and under["racecheck"] == under["memcheck"] - in_parts
    assert under["synccheck"] == under["memcheck"] > in_parts


def test_a_process_that_takes_too_long_is_ended_with_what_it_runs() -> None:
    command = ["sh", "-c", "sleep 60 & wait"]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
    assert sanitize._ended(child, time.perf_counter()) < 0
    assert child.stdout is not None
    assert child.stdout.read() == b""  # which it is when the last of them has closed it


def _sanitizer(tmp_path: Path, printed: str, status: int = 0) -> str:
    """A program that prints instead of running what it is given, and knows the older option."""
    path = tmp_path / "compute-sanitizer"
    help_ = "case $1 in --help) echo ' --kernel-regex kns=...'; exit 0;; esac"
    path.write_text(f"#!/bin/sh\n{help_}\nprintf '{printed}'\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_what_a_tool_finds_is_told_and_what_did_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = argparse.Namespace(jobs=1, only=["x"], first=[], kernels=["a", "b"], limit=5.0)
    given.grace = 5.0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    four = [f"gated: {name} x" for name in "abcd"]
    monkeypatch.setattr(sanitize, "_mine", lambda *_: four)
    clean = _sanitizer(tmp_path, "========= COMPUTE-SANITIZER\\nran gated: a\\nran gated: b\\n")
    command = sanitize._command("memcheck", clean, given.kernels)
    assert command[5:9] == ["--kernel-regex", "kns=a", "--kernel-regex", "kns=b"]
    assert sanitize._run_tool("memcheck", clean, given)  # two processes, one of each GPU
    told = capsys.readouterr().out
    assert "memcheck gated: 4 of 4 launches ran (0 more have no kernel), 0 failed, 0 with" in told
    monkeypatch.setattr(sanitize, "_mine", lambda *_: [*four, "few rows: x"])
    assert not sanitize._run_tool("memcheck", clean, given), "one did not run"
    assert "memcheck few rows: 0 of 1 launches ran" in capsys.readouterr().out
    monkeypatch.setattr(sanitize, "_mine", lambda *_: four)
    wrong = _sanitizer(tmp_path, "ran gated: a\\nFAILED gated: b: wrong\\n")
    assert not sanitize._run_tool("racecheck", wrong, given)
    assert "2 failed, 0 with findings" in (told := capsys.readouterr().out)
    assert told.count("FAILED gated: b: wrong") == 2
    race = "ran gated: a\\n========= Error: Race\\n=========     and Read\\nran gated: b\\n"
    found = _sanitizer(tmp_path, f"{race}========= RACECHECK SUMMARY: 1\\n", sanitize.FOUND)
    assert not sanitize._run_tool("racecheck", found, given)
    assert "0 failed, 2 with findings" in (told := capsys.readouterr().out)
    assert told.count("found gated: b: Error: Race") == 2
    assert "2 of 2 processes ended badly" in told
    odd = _sanitizer(tmp_path, "unrecognized option\\n")
    assert "kns=a" not in sanitize._command("memcheck", odd, given.kernels)
