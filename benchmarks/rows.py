"""Rows measured on one machine, as a file of benchmarks/results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def uncached() -> None:
    """Every compile is a whole one: its time is told, and the pass runs and counts its sites."""
    import torch._functorch.config
    import torch._inductor.config

    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False


def write(path: Path, device: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes ``rows``, with the machine and the protocol of ``fusepass.timing.interleaved``."""
    result = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "protocol": "one process, interleaved rounds, device events, medians; random weights",
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
