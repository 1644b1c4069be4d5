"""Rows measured on one machine, as a file of benchmarks/results."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from linear import commit

_INTERLEAVED = "one process, interleaved rounds, device events, medians; random weights"


def uncached() -> None:
    """Every compile is a whole one: its time is told, and the pass runs and counts its sites."""
    import torch._functorch.config
    import torch._inductor.config

    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of scripts that compile models and time them in turn."""
    add = parser.add_argument
    add("--seconds", type=float, default=3.0, help="timing per row; 0: none")
    add("--cached", action="store_true", help="use torch's caches of compiled code")
    add("--profile", action="store_true", help="GPU time by kind of kernel, too")
    add("--device", default="cuda")
    add("--out", type=Path, help="results as JSON, kept up to date row by row")
    add("--commit", help="for that file, where git does not know")


def tell(rows: Iterable[dict[str, Any]], options: argparse.Namespace) -> None:
    """Prints and keeps each row as it comes, and lets go of what its models took."""
    if not options.cached:
        uncached()
    known = list[dict[str, Any]]()
    for row in rows:
        known.append(row)
        print(json.dumps(row), flush=True)
        write(options.out, options.device, known, options.commit)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()


def write(
    path: Path | None,
    device: str,
    rows: Sequence[dict[str, Any]],
    measured: str | None,
    protocol: str = _INTERLEAVED,
) -> None:
    """Keeps a file, if there is one, up to date: call it after each row.

    Args:
        path: of the file, or None.
        device: on which the rows were measured.
        rows: what was measured; by default as ``fusepass.cli.timing.interleaved`` does.
        measured: the commit, where git does not know it.
        protocol: how, in a sentence.
    """
    if path is None:
        return
    result = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "commit": measured or commit(),
        "protocol": protocol,
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
