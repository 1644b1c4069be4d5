"""The shapes of benchmarks/linear.py, what the device allows at best, and what is derived."""

from __future__ import annotations

import re
from typing import Any

from picture import BARE, OURS, PEERS

Shape = tuple[int, int, int]  # M, K, N

TARGETS_16: list[Shape] = [
    (2048, 8192, 8192), (4096, 5120, 20480), (16384, 1024, 4096), (50432, 768, 3072),
    (8192, 768, 3072), (1576, 768, 3072), (4096, 4096, 14336), (12608, 1152, 4304),
    (8192, 2048, 8192), (3000, 1000, 1000), (512, 4096, 4096),
]  # fmt: skip
TARGETS_32: list[Shape] = [
    (2048, 8192, 8192), (4096, 4096, 14336), (16384, 1024, 4096), (8192, 768, 3072),
    (1024, 1024, 1024),
]  # fmt: skip
GRID: list[Shape] = [
    (128, 1024, 1024), (128, 4096, 4096), (128, 8192, 28672), (200, 768, 3072),
    (256, 4096, 14336), (256, 16384, 8192), (384, 1152, 4304), (512, 4096, 4096),
    (512, 1024, 256), (640, 2560, 10240), (768, 5120, 13824), (1000, 1000, 1000),
    (1024, 1024, 1024), (1024, 4096, 11008), (1024, 256, 4096), (1576, 768, 3072),
    (2048, 512, 512), (2048, 2048, 2048), (2048, 8192, 8192), (2048, 5120, 27648),
    (3000, 1000, 1000), (3136, 1280, 5120), (4096, 256, 1024), (4096, 4096, 4096),
    (4096, 4096, 14336), (4096, 5120, 20480), (4096, 16384, 4096), (5000, 3000, 7000),
    (8192, 768, 3072), (8192, 1024, 4096), (8192, 2048, 8192), (8192, 8192, 28672),
    (10000, 1280, 5120), (12608, 1152, 4304), (16384, 256, 256), (16384, 1024, 4096),
    (16384, 4096, 16384), (20000, 1536, 6144), (32768, 512, 2048), (50432, 768, 3072),
    (65536, 256, 1024), (65536, 768, 768), (65536, 2048, 8192),
]  # fmt: skip

# NVIDIA's figures for the H200, dense. "highest" is held against the CUDA cores, which split
# operands on the tensor cores may beat: its share can exceed 1.
PEAKS = {"bfloat16": 989e12, "float16": 989e12, "float32 high": 494e12, "float32 highest": 67e12}
BANDWIDTH = 4.8e12


def parse_shape(text: str) -> Shape:
    """(M, K, N) of "2048x8192x8192" or "2048x8192->8192"."""
    numbers = re.fullmatch(r"(\d+)\D+(\d+)\D+(\d+)", text)
    if not numbers:
        raise SystemExit(f"--shapes: {text!r} is not MxKxN, 'targets' or 'grid'")
    m, k, n = map(int, numbers.groups())
    return m, k, n


def floor_seconds(shape: Shape, kind: str) -> float:
    """What the device's peak and its memory allow at best."""
    m, k, n = shape
    size = 4 if kind.startswith("float32") else 2
    return max(2 * m * n * k / PEAKS[kind], size * (m * k + n * k + m * n + n) / BANDWIDTH)


def derive(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """The row with its ratios, from its times in row["ms"]."""
    ms = row["ms"]
    if BARE in ms:
        row["ratio_to_bare"] = {p: round(t / ms[BARE], 4) for p, t in ms.items() if p != BARE}
    row["floor_ms"] = round(floor_seconds((row["m"], row["k"], row["n"]), kind) * 1e3, 5)
    if OURS in ms:
        row["share"] = round(row["floor_ms"] / ms[OURS], 4)
        best = min((p for p in PEERS if p in ms), key=ms.__getitem__, default=None)
        if best:
            row["best_peer"], row["speedup"] = best, round(ms[best] / ms[OURS], 4)
    if "inductor-train" in ms and "fusepass-preact" in ms:
        row["training_speedup"] = round(ms["inductor-train"] / ms["fusepass-preact"], 4)
    return row
