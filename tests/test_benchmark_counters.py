"""benchmarks/counters.py: what is read off Nsight Compute's output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import counters
import kernel_tables

_HEAD = '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'


def _printed(*kernels: tuple[str, float, int]) -> list[str]:
    """Lines for kernels of a name, so many ns and bytes; each has every metric."""
    lines = ["==PROF== Connected to process 1", "a warning of the program's own", _HEAD]
    for index, (name, ns, read) in enumerate(kernels):
        values = dict.fromkeys(counters.METRICS.values(), 50.0)
        values |= {counters.METRICS["us"]: ns, counters.METRICS["read_mb"]: read}
        values[counters.METRICS["written_mb"]] = 0
        values[counters.METRICS["memory_busy_percent"]] = 80.0 if ns > 5000 else 1.0
        lines += [f'"{index}","1","{name}","{m}","u","{v:,}"' for m, v in values.items()]
    return lines


def test_a_calls_kernels_are_those_behind_its_marker() -> None:
    """Thousands are set apart; percentages are those of the longest kernel."""
    marker = ("void at::native::logical_not_kernel", 900, 0)
    printed = _printed(marker, ("few_rows", 31_000, 134_200_000), marker,
                       ("a product", 9_000, 33_000_000), ("a tail", 1_000, 1_000_000))  # fmt: skip
    first, second = (
        counters.row("8x8->8 bfloat16 bare", peer, kernels)
        for peer, kernels in zip(("fusepass", "bare"), counters.kernels(printed), strict=True)
    )
    assert (first["us"], first["read_mb"], first["tb_per_s"]) == (31.0, 134.2, 4.329)
    assert first["memory_busy_percent"] == 80.0 and first["kernels"] == ["few_rows"]
    assert (second["us"], second["read_mb"], second["kernels"]) == (
        10.0,
        34.0,
        ["a product", "a tail"],
    )
    assert second["memory_busy_percent"] == 80.0


def test_the_table_has_problems_with_an_epilogue() -> None:
    peers = ("bare", "fusepass", "sum", "copy")
    shared = {"us": 31.04, "tb_per_s": 3.7, "memory_busy_percent": 77.4}
    cases = ("8x8192->8192 bfloat16 add(mat0)", "8x8192->8192 bfloat16 bare")
    rows = [{"case": case, "peer": peer, **shared} for case in cases for peer in peers]
    result = {"commit": "11111112222222", "rows": rows}
    lines = kernel_tables.counters(result).splitlines()
    assert lines[2:] == ["| 8×8192→8192 + residual" + " | 31.0 µs, 3.70, 77%" * 4 + " |"]


def test_without_a_gpu_or_ncu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="reads a GPU's counters by ncu, and one is missing"):
        counters.main([])
