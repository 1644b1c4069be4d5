"""Rows measured on one machine, as a file of benchmarks/results."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
