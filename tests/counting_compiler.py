"""A compiler that logs each of its calls, in front of nvcc or in its place where there is none.

So "one build" is counted, and "in the middle of a build" is a moment one can wait for.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusepass.kernels.build import build, cache

FORK = multiprocessing.get_context("fork")

NOBODY = 65534
SOURCE, DEFINES, ARCH = "sm90_f32/split_sm90.cu", {"FUSEPASS_TEST": 1}, "90a"

COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "nvcc of the tests"; exit 0; fi
echo $$ >> {folder}/calls
while [ -e {folder}/wait ]; do sleep 0.05; done
{compile}
"""
_PRETEND = """
for last; do :; done
echo compiled > "$last" || { echo "cannot write $last" >&2; exit 1; }
echo "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
"""


class Compiler:
    """The nvcc that the tests' processes find."""

    def __init__(self, folder: Path, real: Path | None) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        nvcc = folder / "bin" / "nvcc"
        compile_ = f'exec {real} "$@"' if real else _PRETEND
        nvcc.write_text(COMPILER.replace("{folder}", str(folder)).replace("{compile}", compile_))
        nvcc.chmod(0o755)

    @property
    def calls(self) -> int:
        log = self.folder / "calls"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def hold(self) -> None:
        """From now on a compilation does not end, until ``release``."""
        (self.folder / "wait").touch()

    def release(self) -> None:
        (self.folder / "wait").unlink()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, real: Path | None) -> Compiler:
    compiler = Compiler(folder / "cuda", real)
    monkeypatch.setenv("CUDA_HOME", str(compiler.folder))
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setattr(cache, "_warn_unusable", cache._warn_unusable.__wrapped__)
    return compiler


def build_one() -> Path:
    return build.build_cubin(SOURCE, DEFINES, ARCH)


def _report(connection: Any, work: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = work()
        except BaseException as error:
            result = error
    connection.send((result, [str(w.message) for w in caught]))


class Child:
    """``work`` in a process of its own, forked here; its result and its warnings."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._connection, theirs = FORK.Pipe()
        self.process = FORK.Process(target=_report, args=(theirs, work))
        self.process.start()
        theirs.close()

    def result(self, seconds: float = 60) -> tuple[Any, list[str]]:
        assert self._connection.poll(seconds), f"no result after {seconds} s"
        result, warned = self._connection.recv()
        self.process.join(10)
        if isinstance(result, BaseException):
            raise result
        return result, warned


def as_nobody(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` by a user who may do nothing; for a child of root's."""

    def run() -> Any:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return work()

    return run


def open_to_all(tmp_path: Path) -> None:
    """Lets every user into a test's folder."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("test_", "popen-", "pytest-")):  # never the system's own
            folder.chmod(0o755)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def read() -> bytes:
    return build_one().read_bytes()
