"""Timing several peers side by side: one process, interleaved rounds, medians.

Machines are noisy and GPUs throttle, so peers take turns within a round and only ratios taken
within one run mean anything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """One peer's times in milliseconds, one a round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median round, milliseconds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """The middle half's width over the median: 0.02 says ±1%."""
        if len(self.rounds) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return (high - low) / self.median


def interleaved(
    peers: Mapping[str, Callable[[], Any]],
    device: str,
    seconds: float = 2.0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Timing]:
    """Times every peer in turn, again and again, for about ``seconds`` in all.

    Args:
        peers: name -> a call without arguments; warmed up here, three times each.
        device: ``"cuda"`` times with device events, anything else with the host's clock.
        seconds: how long to measure; at least five rounds are run.
        progress: told the share done, 0 to 1, after each round.

    Returns:
        name -> Timing; a round is one call, or as many as last 200 µs, averaged.
    """
    clock = _cuda_clock if device.startswith("cuda") else _host_clock
    repeat = {}
    for name, call in peers.items():
        for _ in range(2):
            clock(call, 1)
        repeat[name] = max(1, min(100, round(0.2 / max(clock(call, 1), 1e-3))))
    samples: dict[str, list[float]] = {name: [] for name in peers}
    names, start, rounds = list(peers), time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - start < seconds:
        # Each round starts with another peer: none always follows the hottest.
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            samples[name].append(clock(peers[name], repeat[name]))
        rounds += 1
        if progress:
            progress(min(1.0, (time.perf_counter() - start) / seconds))
    return {name: Timing(tuple(times)) for name, times in samples.items()}


def _host_clock(call: Callable[[], Any], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) * 1e3 / repeat


def _cuda_clock(call: Callable[[], Any], repeat: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeat):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeat


def float32_precision() -> str:
    """torch's float32 precision of matmuls in its own words, by whichever of its two settings."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer one, which the older cannot tell
        return torch.backends.cuda.matmul.fp32_precision
