"""An op beside the bare product, case by case: what few_rows.py and products.py have in common.

Calls of either are captured in CUDA graphs over inputs that rotate through more than the L2 cache;
replays are interleaved, medians of device events (linear.py's protocol).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from linear import commit, driver
from linear_peers import capture, time_graphs

Measure = Callable[[Any, float, Any], dict[str, Any]]


def timed(sets: Any, repetitions: int, seconds: float, stream: Any) -> dict[str, Any]:
    """Microseconds of the bare product and of the op, their ratio and the rounds' spread.

    Args:
        sets: has ``inputs``, and ``bare`` and ``fused``, functions of one of them.
        repetitions: of calls in a graph.
        seconds: of rounds.
        stream: on which graphs are captured.
    """
    calls = {"bare": sets.bare, "fusepass": sets.fused}
    graphs = {name: capture(call, sets.inputs, repetitions, stream) for name, call in calls.items()}
    times = time_graphs(graphs, seconds)
    us = {name: round(t.median / repetitions * 1e3, 3) for name, t in times.items()}
    return {
        "us": us,
        "ratio": round(us["fusepass"] / us["bare"], 4),
        "spread": {name: round(t.spread, 4) for name, t in times.items()},
    }


def head(measured: str | None) -> dict[str, Any]:
    """How a file of results begins; ``measured``: the commit, where git does not know it."""
    machine, torchs = torch.cuda.get_device_name(), torch.__version__
    return {
        "machine": machine,
        "driver": driver(),
        "torch": torchs,
        "commit": measured or commit(),
    }


def sweep(
    script: str,
    about: str | None,
    argv: Sequence[str] | None,
    cases: Iterable[Any],
    measure: Measure,
    told: Callable[[dict[str, Any]], str],
) -> list[dict[str, Any]]:
    """A script's whole run; returns the rows.

    Args:
        script: its file's name.
        about: what ``--help`` says.
        argv: the command line, or None for the process's own.
        cases: ``--only`` is looked for in their texts, and in the ``group`` of those that have one.
        measure: of a case, the seconds and the stream, the row.
        told: a row as it is printed.

    Raises:
        SystemExit: without a CUDA device.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of rounds, a case")
    parser.add_argument("--only", default="", help="cases whose text or group has this in it")
    parser.add_argument("--commit", help="what is measured, where git does not know")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit(f"benchmarks/{script} times CUDA kernels, and there is no CUDA device")
    torch.manual_seed(0)
    rows, stream = list[dict[str, Any]](), torch.cuda.Stream()
    with torch.no_grad():
        for case in cases:
            if options.only in f"{getattr(case, 'group', '')} {case}":
                rows.append(measure(case, options.seconds, stream))
                print(told(rows[-1]), flush=True)
    if options.out:
        result = {**head(options.commit), "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return rows
