"""compute-sanitizer over every kernel that a plan can choose, each at a short shape with edges.

::

    python tests/gpu/sanitize.py [memcheck racecheck synccheck none] [--jobs 8] [--first float32]

Builds what is missing, then runs each launch of ``launches.py`` once under each tool, in so many
processes of each visible GPU at once, each of which takes the next launch there is; "none" runs
them without one. Nothing but kernels of fusepass is looked at. The exit status is 0 if all ran,
were right, and no tool found anything.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 9  # the exit status of a process in which a tool found something


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("tools", nargs="*", default=list(TOOLS))
    add("--jobs", type=int, default=8, help="processes of a GPU")
    add("--only", nargs="+", default=[""], help="launches whose text has one of these in it")
    add("--first", nargs="+", default=[], help="of these, such that run before the others")
    add("--kernels", nargs="+", default=["fusepass"], help="those whose name has one in it")
    add("--limit", type=float, default=3600, help="seconds of a tool after which none starts")
    add("--no-build", action="store_true", help="each is built by the process that runs it")
    add("--grace", type=float, default=60, help="seconds that those may still take which have")
    add("--queue", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    return _run_tools(given) if given.queue is None else _run_queue(given)


def chosen(texts: Sequence[str], only: Sequence[str], first: Sequence[str]) -> list[int]:
    """Which launches, of these texts, and in which order."""
    some = [i for i, text in enumerate(texts) if any(part in text for part in only)]
    return sorted(some, key=lambda i: not any(part in texts[i] for part in first))


def taken(queue: Path) -> Iterator[int]:
    """0, 1, ..., each number in one of the processes that share the file."""
    while True:
        with queue.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            number = int(file.read() or 0)
            file.seek(0)
            file.write(str(number + 1))
        yield number


def _mine(given: argparse.Namespace, tool: str) -> list[Any]:
    """The launches for a tool."""
    from launches import launches

    there = [each for each in launches() if tool not in each.not_under]
    return [there[i] for i in chosen([str(each) for each in there], given.only, given.first)]


def _run_tools(given: argparse.Namespace) -> int:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None and given.tools != ["none"]:
        print("no compute-sanitizer: it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    if not given.no_build:
        start = time.perf_counter()
        built = _build(_mine(given, "none"))
        print(f"{built} kernels built or found in {time.perf_counter() - start:.0f} s", flush=True)
    return int(any([not _run_tool(tool, sanitizer, given) for tool in given.tools]))


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


def _command(tool: str, sanitizer: str | None, kernels: Sequence[str]) -> list[str]:
    if tool == "none" or sanitizer is None:
        return [sys.executable]
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND)]
    known = subprocess.run([sanitizer, "--help"], capture_output=True, text=True).stdout
    for option in ("--kernel-regex", "--kernel-name"):  # older, and newer
        narrowed = [*command, *(word for name in kernels for word in (option, f"kns={name}"))]
        if option in known and _takes(narrowed):
            return [*narrowed, sys.executable]
    return [*command, sys.executable]


def _takes(command: list[str]) -> bool:
    """Whether the sanitizer understands it."""
    done = subprocess.run([*command, "true"], capture_output=True, text=True)
    told = f"{done.stdout}{done.stderr}".lower()
    return not any(word in told for word in ("unrecogni", "invalid", "unknown", "usage"))


def _gpus() -> list[str]:
    """The visible ones, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    import torch

    return [str(i) for i in range(max(1, torch.cuda.device_count()))]


def _run_tool(tool: str, sanitizer: str | None, given: argparse.Namespace) -> bool:
    """Whether all ran, and nothing was found."""
    there = Counter(_family(str(launch)) for launch in _mine(given, tool))
    gpus = _gpus()
    jobs = min(given.jobs * len(gpus), max(1, there.total()))  # more would have nothing to do
    command = [*_command(tool, sanitizer, given.kernels), __file__, tool]
    command += ["--only", *given.only, *(["--first", *given.first] if given.first else [])]
    environment = {
        **os.environ,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # each tensor is an allocation that the tool knows
        "OMP_NUM_THREADS": "1",
    }
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        queue = stack.enter_context(tempfile.NamedTemporaryFile("w"))
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(jobs)]
        children = [
            subprocess.Popen(
                [*command, "--limit", str(given.limit), "--queue", queue.name],
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                env={**environment, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]},
                start_new_session=True,
            )
            for i, file in enumerate(files)
        ]
        codes = [_ended(child, start + given.limit + given.grace) for child in children]
        printed = [_read(file) for file in files]
    bad = [text for text, code in zip(printed, codes, strict=True) if code]
    clean = _tell(tool, there, printed)
    print(
        f"{tool}: {time.perf_counter() - start:.0f} s, {len(bad)} of {jobs} processes ended badly",
        flush=True,
    )
    print(*(text[-3000:] for text in bad), sep="\n")
    return clean and not bad


def _tell(tool: str, there: Counter[str], printed: Sequence[str]) -> bool:
    """A line for each family, and for each failure; whether all ran and nothing was found."""
    counts = {word: Counter[str]() for word in ("ran", "FAILED", "spills", "found")}
    for text in printed:
        for word, launch in _told(text):
            counts[word][_family(launch)] += 1
            if word in ("FAILED", "found"):
                print(word, launch)
    for family, number in there.items():
        ran, failed, spills, found = (counts[word][family] for word in counts)
        print(
            f"{tool} {family}: {ran} of {number} launches ran ({spills} more have no kernel), "
            f"{failed} failed, {found} with findings"
        )
    ended = counts["ran"].total() + counts["spills"].total()
    return ended == there.total() and not counts["FAILED"] and not counts["found"]


def _family(launch: str) -> str:
    return launch.partition(":")[0]


def _told(text: str) -> Iterator[tuple[str, str]]:
    """What a process said of each launch; "found", with what a tool said first before that."""
    found = ""
    for line in text.splitlines():
        word, _, launch = line.partition(" ")
        if word in ("ran", "FAILED", "spills"):
            yield word, launch
            if found:
                yield "found", f"{launch}: {found}"
            found = ""
        about = line.removeprefix("========= ")
        if about != line and about.strip() and not about.startswith(("COMPUTE-SAN", "Target")):
            found = found or about * (" SUMMARY: " not in about)
    if found:
        yield "found", f"the last one, which did not end: {found}"


def _ended(child: subprocess.Popen[str], deadline: float) -> int:
    try:
        return child.wait(max(1.0, deadline - time.perf_counter()))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # the tool's, and what it runs
        return child.wait()


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _run_queue(given: argparse.Namespace) -> int:
    import torch

    from fusepass import kernels
    from fusepass.kernels.build.toolchain import SpillError

    assert kernels.load_binding()
    torch.empty(1, device="cuda")  # the tools fail a process that does nothing on a GPU
    deadline, wrong = time.perf_counter() + given.limit, 0
    mine = _mine(given, given.tools[0])
    for number in taken(given.queue):
        if number >= len(mine) or time.perf_counter() > deadline:
            break
        launch, begin = mine[number], time.perf_counter()
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
