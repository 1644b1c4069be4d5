"""What benchmarks/linear.py measured, as a table and as a picture.

python benchmarks/picture.py results.json picture.svg    # the table goes to stdout
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "fusepass"
BARE = "bare"
QUACK = "quack"
# In the order of the table and of the bars; what compilers and libraries offer is compared with.
PEERS = ("eager", "inductor", "max-autotune", "cublaslt", QUACK)
ORDER = (*PEERS, "hybrid", OURS, "inductor-train", "fusepass-preact")
_COLORS = {
    "eager": "#bdbdbd",
    "inductor": "#6baed6",
    "max-autotune": "#2171b5",
    "cublaslt": "#9e9ac8",
    QUACK: "#fd8d3c",
    "hybrid": "#fdd0a2",
    OURS: "#e6550d",
    "inductor-train": "#74c476",
    "fusepass-preact": "#a63603",
}

Row = Mapping[str, Any]


def shape_text(row: Row) -> str:
    """A shape as the tables write it: 2048x8192->8192."""
    return f"{row['m']}x{row['k']}->{row['n']}"


def _present(rows: Sequence[Row]) -> list[str]:
    return [p for p in ORDER if any(p in row.get("ratio_to_bare", {}) for row in rows)]


def summary(rows: Sequence[Row]) -> str:
    """Geometric mean and worst of fusepass over the bare GEMM, in a line."""
    ratios = [(r["ratio_to_bare"][OURS], r) for r in rows if OURS in r.get("ratio_to_bare", {})]
    if not ratios:
        return "no shape has both fusepass and the bare GEMM"
    mean = math.exp(math.fsum(math.log(ratio) for ratio, _ in ratios) / len(ratios))
    worst, row = max(ratios, key=lambda pair: pair[0])
    failed = sum("error" in r for r in rows)
    text = (
        f"fusepass / bare: geometric mean {mean:.3f}, worst {worst:.3f} at {shape_text(row)}, "
        f"{len(ratios)} shapes"
    )
    return text + (f", {failed} failed" if failed else "")


def table(result: Mapping[str, Any]) -> str:
    """One line a shape: the bare GEMM, every peer over it, fusepass against the best peer."""
    rows = result["rows"]
    peers = _present(rows)
    widths = [max(7, len(peer)) for peer in peers]
    head = f"{'M x K -> N':>19} {'bare ms':>9}"
    head += "".join(f" {peer:>{w}}" for peer, w in zip(peers, widths, strict=True))
    lines = [
        f"{result['machine']}, {result['kind']}, {result['epilogue']}; peers as ratios to bare",
        head + f" {'vs best':>8} {'of floor':>8}  plan",
    ]
    lines += [_line(row, peers, widths) for row in rows]
    if result.get("stopped"):
        lines.append(f"stopped early: {result['stopped']}")
    return "\n".join([*lines, summary(rows)])


def _line(row: Row, peers: Sequence[str], widths: Sequence[int]) -> str:
    shape = f"{shape_text(row):>19}"
    if "error" in row:
        return f"{shape}  failed: {row['error']}"
    ratios = row["ratio_to_bare"]
    cells = "".join(
        f" {_number(ratios.get(peer), '.3f'):>{w}}" for peer, w in zip(peers, widths, strict=True)
    )
    notes = [row.get("plan", ""), *(f"{p} failed: {why}" for p, why in row["failed"].items())]
    return (
        f"{shape} {_number(row['ms'].get(BARE), '.4f'):>9}{cells} "
        f"{_number(row.get('speedup'), '.2f', 'x'):>8} {_number(row.get('share'), '.0%'):>8}  "
        + "; ".join(note for note in notes if note)
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Bars of the ratio to the bare GEMM, grouped by shape; less is better.

    Raises:
        ValueError: if matplotlib is not installed, does not know the file's ending, or no shape
            has a ratio.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install matplotlib") from error
    rows = [row for row in result["rows"] if row.get("ratio_to_bare")]
    peers = _present(rows)
    if not peers:
        raise ValueError("nothing to draw: no shape has a ratio to the bare GEMM")
    width = 0.8 / len(peers)
    inches = max(7.0, 1.2 + len(rows) * (0.28 + 0.17 * len(peers)))
    figure = Figure(figsize=(inches, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, peer in enumerate(peers):
        at = [g for g, row in enumerate(rows) if peer in row["ratio_to_bare"]]
        heights = [rows[g]["ratio_to_bare"][peer] for g in at]
        left = [g + (i - (len(peers) - 1) / 2) * width for g in at]
        bars = axes.bar(left, heights, width * 0.94, label=peer, color=_COLORS[peer])
        if peer == OURS:
            # Inside the bars: above them the figures would cross the line of the bare GEMM.
            axes.bar_label(bars, fmt="%.2f", label_type="center", rotation=90, color="white")
    axes.axhline(1.0, color="black", linewidth=1, linestyle="--", label="bare GEMM")
    axes.set_xticks(range(len(rows)), [shape_text(row) for row in rows], fontsize=8)
    axes.tick_params(axis="x", rotation=90 if len(rows) > 12 else 25)
    axes.set_ylabel("time / bare F.linear (less is better)")
    axes.margins(x=0.01, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{result['epilogue']}, {result['kind']}, {result['machine']}", fontsize=10)
    axes.legend(ncols=len(peers) + 1, fontsize=8, frameon=False, loc="upper left")
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.1)  # room for the legend
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path, help="its ending chooses the format: .svg, .png")
    options = parser.parse_args(argv)
    result = json.loads(options.results.read_text())
    print(table(result))
    draw(result, options.picture)


if __name__ == "__main__":
    main()
