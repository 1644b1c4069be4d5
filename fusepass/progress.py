"""Progress on stderr: what is being done, and for how long, for steps that take a while."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

QUIET_SECONDS = 1.0  # steps shorter than this say nothing


@contextlib.contextmanager
def step(what: str, stream: Any = None) -> Iterator[None]:
    """Shows ``what`` with the seconds so far, once it has taken longer than a second.

    A terminal gets a line that counts up; anything else gets one line at the start and one at the
    end, so that a log shows what a long silence is.
    """
    stream = stream or sys.stderr
    start, done = time.perf_counter(), threading.Event()

    def show() -> None:
        if done.wait(QUIET_SECONDS):
            return
        if not stream.isatty():
            print(f"fusepass: {what} ...", file=stream, flush=True)
            return
        while True:
            seconds = time.perf_counter() - start
            print(f"\rfusepass: {what} ... {seconds:.0f} s", end="", file=stream, flush=True)
            if done.wait(0.5):
                return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        seconds = time.perf_counter() - start
        if seconds >= QUIET_SECONDS:
            lead = "\r" if stream.isatty() else ""
            print(f"{lead}fusepass: {what}: {seconds:.1f} s   ", file=stream, flush=True)
