"""What a bench measured, and how it reads: as a table and a sentence, as JSON, as a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .timing import Ratio, Timing, compare

PROTOCOL = (
    "one process; peers take turns in every round, each round starts with another; medians of the "
    "rounds; vs is how many times as fast, the median of the rounds' ratios; error is the relative "
    "Frobenius norm against the model in float64"
)
_UNCLEAR = (
    "A ratio is unclear where the rounds differ too much: half of them lie apart by more than half "
    "of the median, or the ratio is not known to 5%. Measure longer (--seconds), or on an idle "
    "machine."
)


@dataclass(frozen=True)
class Row:
    """One peer's result.

    Attributes:
        rounds_ms: the time of each round; none if the peer failed.
        error: against float64; None where the model cannot run in float64.
        compile_s: the first call.
        failed: the first line of the error, or None.
    """

    rounds_ms: tuple[float, ...] = ()
    error: float | None = None
    compile_s: float | None = None
    failed: str | None = None

    @property
    def timing(self) -> Timing | None:
        """Its median and spread, if it has rounds."""
        return Timing(self.rounds_ms) if self.rounds_ms else None


@dataclass(frozen=True)
class Result:
    """Everything one run measured.

    Attributes:
        fused: how many sites have an epilogue.
        spent: what shares of fusepass's time are spent on what.
        next: the largest product that was left and might have fused, and why it did not.
    """

    model: str
    device: str
    dtype: str
    torch: str
    float32_matmul_precision: str
    fused: int
    protocol: str = PROTOCOL
    rows: dict[str, Row] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    next: str | None = None

    def speedup(self, name: str, over: str) -> Ratio | None:
        """How many times as fast peer ``name`` is as ``over``; None if either has no time."""
        own, base = (self.rows.get(peer, Row()).timing for peer in (name, over))
        return compare(own, base) if own and base else None

    def to_json(self) -> str:
        """Every figure as a JSON object."""
        told = dataclasses.asdict(self)
        for name, row in self.rows.items():
            timing = row.timing
            told["rows"][name]["median_ms"] = timing and timing.median
            told["rows"][name]["spread"] = timing and timing.spread
        return json.dumps({**told, "summary": self.summary}, indent=1)

    @property
    def summary(self) -> str:
        """One sentence: how much faster than Inductor, where the time goes, what would be next."""
        parts = [_compared(self.speedup("fusepass", "inductor"))]
        parts += [_spent_text(self.spent)] if self.spent else []
        parts += [f"next would be {self.next}"] if self.next else []
        return "; ".join(filter(None, parts))

    def __str__(self) -> str:
        head = (
            f"{self.model}, {self.dtype} on {self.device}, torch {self.torch}, float32 matmul "
            f"precision {self.float32_matmul_precision}; fusepass fused {self.fused}\n"
        )
        columns = (
            "median ms", "middle half", "vs eager", "vs inductor", "error vs float64",
            "first call s",
        )  # fmt: skip
        lines = [head, f"{'':13}" + "".join(f"{c:>{len(c) + 3}}" for c in columns)]
        lines += [self._row(name, row, columns) for name, row in self.rows.items()]
        rounds = max((len(row.rounds_ms) for row in self.rows.values()), default=0)
        lines += ["", f"{rounds} rounds, {self.protocol}."]
        lines += [_UNCLEAR] if any(" unclear" in line for line in lines) else []
        return "\n".join([*lines, "", f"{self.summary}."] if self.summary else lines)

    def _row(self, name: str, row: Row, columns: Sequence[str]) -> str:
        if row.failed is not None:
            return f"{name:13}   failed: {row.failed}"
        timing = row.timing
        cells = (
            _text(timing.median if timing else None, ".4g"),
            _text(timing.spread if timing else None, ".1%"),
            _ratio_text(self.speedup(name, "eager")),
            _ratio_text(self.speedup(name, "inductor")),
            _text(row.error, ".2e"),
            _text(row.compile_s, ".1f"),
        )
        widths = (len(c) + 3 for c in columns)
        return f"{name:13}" + "".join(f"{v:>{w}}" for w, v in zip(widths, cells, strict=True))


def _ratio_text(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.value:.2f}x" if ratio.clear else "unclear"


def _compared(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    if not ratio.clear:
        return "how fast fusepass is next to Inductor is unclear here"
    return f"fusepass is {ratio.value:.2f} times as fast as Inductor"


def _spent_text(spent: Mapping[str, float]) -> str:
    shares = ", ".join(f"{share:.0%} in {kind}" for kind, share in spent.items() if share >= 0.005)
    return f"of its time it spends {shares}"


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def picture(result: Result, path: Path) -> None:
    """Draws the medians as bars.

    Raises:
        ValueError: if matplotlib is not installed, or does not know the file's ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install matplotlib") from error
    timings = {name: row.timing for name, row in result.rows.items()}
    times = {name: timing.median for name, timing in timings.items() if timing is not None}
    figure = Figure(figsize=(7, 0.6 * len(times) + 1.4), layout="constrained")
    axes = figure.subplots()
    colors = ["C1" if name == "fusepass" else "C0" for name in times]
    bars = axes.barh(list(times), list(times.values()), color=colors)
    axes.bar_label(bars, fmt="%.4g ms", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("median time, ms (less is better)")
    axes.set_title(f"{result.model}, {result.dtype}, {result.device}", fontsize=10)
    figure.savefig(path, dpi=150)
