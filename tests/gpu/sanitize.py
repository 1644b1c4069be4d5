"""compute-sanitizer over every kernel that a plan can choose, each at a short shape with edges.

::

    python tests/gpu/sanitize.py [memcheck racecheck synccheck none] [--jobs 8] [--part 0/4]

Builds what is missing, then runs each launch of ``launches.py`` once under each tool, in so many
processes at once; "none" runs them without one. Nothing but kernels of fusepass is looked at. Parts
are for several GPUs. The exit status is 0 if all ran, were right, and no tool found anything.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).parent
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 9  # the exit status of a process in which a tool found something
_GRACE = 60  # seconds that a launch which began before the limit may take

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("tools", nargs="*", default=list(TOOLS))
    add("--jobs", type=int, default=8)
    add("--part", default="0/1", help="i/n: every n-th launch from the i-th on")
    add("--only", default="", help="launches whose text has this in it")
    add("--limit", type=float, default=3600, help="seconds of a tool after which none starts")
    add("--share", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    return _run_tools(given) if given.share is None else _run_share(given)


def share(launches: Sequence[T], part: int, parts: int, index: int, jobs: int) -> Sequence[T]:
    """Those of one process: neighbours, which are alike, go to different ones."""
    return launches[part::parts][index::jobs]


def _mine(given: argparse.Namespace, index: int, jobs: int) -> list[Any]:
    from launches import launches

    part, parts = map(int, given.part.split("/"))
    some = [launch for launch in launches() if given.only in str(launch)]
    return list(share(some, part, parts, index, jobs))


def _run_tools(given: argparse.Namespace) -> int:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None and given.tools != ["none"]:
        print("no compute-sanitizer: it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    start = time.perf_counter()
    there = _build(_mine(given, 0, 1))
    print(f"{there} kernels built or found in {time.perf_counter() - start:.0f} s", flush=True)
    return int(any([not _run_tool(tool, sanitizer, there, given) for tool in given.tools]))


def _build(launches: Sequence[Any]) -> int:
    """All of them at once; how many there are."""
    from fusepass import kernels
    from fusepass.kernels.build.toolchain import SpillError

    def build(launch: Any) -> bool:
        with contextlib.suppress(SpillError):  # the plan takes another, too
            launch.build()
            return True
        return False

    assert kernels.load_binding()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(build, launches))


def _command(tool: str, sanitizer: str | None) -> list[str]:
    if tool == "none" or sanitizer is None:
        return [sys.executable]
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND)]
    known = subprocess.run([sanitizer, "--help"], capture_output=True, text=True).stdout
    for option in ("--kernel-regex", "--kernel-name"):  # older, and newer
        narrowed = [*command, option, "kns=fusepass"]
        if option in known and _takes(narrowed):
            return [*narrowed, sys.executable]
    return [*command, sys.executable]


def _takes(command: list[str]) -> bool:
    """Whether the sanitizer understands it."""
    done = subprocess.run([*command, "true"], capture_output=True, text=True)
    told = f"{done.stdout}{done.stderr}".lower()
    return not any(word in told for word in ("unrecogni", "invalid", "unknown", "usage"))


def _run_tool(tool: str, sanitizer: str | None, there: int, given: argparse.Namespace) -> bool:
    """Whether all ran, and nothing was found."""
    jobs = min(given.jobs, max(1, there))  # a process that launches nothing is a finding
    options = ["--jobs", str(jobs), "--part", given.part, "--only", given.only]
    command = [*_command(tool, sanitizer), __file__, *options, "--limit", str(given.limit)]
    environment = {
        **os.environ,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # each tensor is an allocation that the tool knows
        "OMP_NUM_THREADS": "1",
    }
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(jobs)]
        children = [
            subprocess.Popen(
                [*command, "--share", str(i)],
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            for i, file in enumerate(files)
        ]
        codes = [_ended(child, start + given.limit + _GRACE) for child in children]
        printed = [_read(file) for file in files]
    ran = Counter(family for text in printed for family in _told(text, "ran "))
    failed = [line for text in printed for line in text.splitlines() if line.startswith("FAILED")]
    bad = [text for text, code in zip(printed, codes, strict=True) if code]
    told = ", ".join(f"{count} of {family}" for family, count in ran.items())
    print(
        f"{tool}: {ran.total()} of {there} ran ({told}) in {time.perf_counter() - start:.0f} s, "
        f"{len(failed)} failed, {len(bad)} of {jobs} processes with findings",
        flush=True,
    )
    print(*failed, *(text[-3000:] for text in bad), sep="\n")
    return not bad and not failed and ran.total() == there


def _ended(child: subprocess.Popen[str], deadline: float) -> int:
    try:
        return child.wait(max(1.0, deadline - time.perf_counter()))
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _told(text: str, word: str) -> Iterator[str]:
    """The families of the launches of which a process said ``word``."""
    for line in text.splitlines():
        if line.startswith(word):
            yield line.removeprefix(word).partition(":")[0]


def _run_share(given: argparse.Namespace) -> int:
    from fusepass import kernels
    from fusepass.kernels.build.toolchain import SpillError

    assert kernels.load_binding()
    deadline, wrong = time.perf_counter() + given.limit, 0
    for launch in _mine(given, given.share, given.jobs):
        if time.perf_counter() > deadline:
            break
        begin = time.perf_counter()
        try:
            worst = launch.run()
            assert worst <= 1, f"{worst:.2f} times the error that is allowed"
            print(f"ran {launch}: {worst:.2f}, {time.perf_counter() - begin:.2f} s", flush=True)
        except SpillError:
            print(f"spills {launch}", flush=True)
        except Exception as error:  # the others go on
            wrong += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"FAILED {launch}: {error!r:.300} at {where.name}:{where.lineno}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
