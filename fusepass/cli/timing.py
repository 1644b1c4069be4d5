"""Timing several peers side by side: one process, interleaved rounds, medians.

Machines are noisy and GPUs throttle, so peers take turns within a round and only ratios taken
within one run mean anything.
"""

from __future__ import annotations

import math
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


_WIDEST = 0.05  # of a ratio: half its interval; what is less sure says nothing
_BUSIEST = 0.5  # a peer's middle half: half of its rounds lie apart by this share of the median


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one peer is as another.

    Attributes:
        value: the median of the rounds' ratios.
        low, high: the median lies between them with a probability of 95%, if rounds are
            independent, whatever their distribution.
        spread: the larger of the two peers'.
    """

    value: float
    low: float
    high: float
    spread: float

    @property
    def clear(self) -> bool:
        """Whether the rounds agree well enough for the ratio to mean anything."""
        return self.high - self.low <= 2 * _WIDEST * self.value and self.spread <= _BUSIEST


def compare(own: Timing, base: Timing) -> Ratio:
    """How many times as fast ``own`` is as ``base``, by the rounds that they took turns in.

    Raises:
        ValueError: if they have not as many rounds as each other.
    """
    ratios = sorted(b / o for o, b in zip(own.rounds, base.rounds, strict=True))
    count = len(ratios)
    # The median is between two order statistics; the number below it is binomial.
    below = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    spread = max(own.spread, base.spread)
    return Ratio(statistics.median(ratios), ratios[below], ratios[count - 1 - below], spread)


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
