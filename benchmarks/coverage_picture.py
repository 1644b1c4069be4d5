"""What benchmarks/coverage.py counted, as tables and as a picture: by what becomes of a Linear."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# In the order of the table and of the bars. The first two are sites with the whole pointwise tail.
KINDS = {
    "whole": "run with its whole pointwise tail",
    "empty": "run, has no tail",
    "part": "run with a part of its tail",
    "untaken": "run without its tail",
    "bare": "left, has no tail",
    "left": "left with its tail",
}
_COLORS = {
    "whole": "#e6550d",
    "empty": "#fdae6b",
    "part": "#3182bd",
    "untaken": "#9ecae1",
    "bare": "#d9d9d9",
    "left": "#969696",
}
_TAKEN = ("whole", "empty")
_TAILS = ("whole", "part", "untaken", "left")
# What is told beside the kinds.
_SUMS = {"taken": "run whole: the first two", "tails": "of those with a tail: whole"}


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean shares of each family and of all; a model counts once, whatever its size.

    Beside the kinds ``taken``, sites with the whole pointwise tail, be it empty, and ``tails``, the
    share that is whole of the Linears that have a tail.
    """
    good = [row for row in rows if row.get("flops")]
    families = {family: [r for r in good if r["family"] == family] for family in _families(good)}
    groups = families | {"all": good} if good else {}
    return {
        name: {
            what: sum(_told(r["share"])[what] for r in group) / len(group)
            for what in (*KINDS, *_SUMS)
        }
        for name, group in groups.items()
    }


def _told(share: Mapping[str, float]) -> dict[str, float]:
    tails = sum(share[kind] for kind in _TAILS)
    return {
        **share,
        "taken": sum(share[kind] for kind in _TAKEN),
        "tails": share["whole"] / tails if tails else 1.0,
    }


def _families(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["family"] for row in rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line a model, then the means."""
    lines = [f"| model | {' | '.join(_HEADS)} |", "|---|" + "---|" * len(_HEADS)]
    for row in rows:
        if row.get("flops"):
            lines.append(_line(row["model"], _told(row["share"])))
    for name, share in means(rows).items():
        lines.append(_line(f"**mean, {name}**", share))
    return "\n".join(lines)


def _line(name: str, share: dict[str, float]) -> str:
    return f"| {name} | {_cells(share)} |"


_HEADS = (*KINDS.values(), *_SUMS.values())


def _cells(share: dict[str, float]) -> str:
    return " | ".join(f"{share[what]:.0%}" for what in (*KINDS, *_SUMS))


def means_table(result: Mapping[str, Any]) -> str:
    """Markdown: the means alone, of a whole file of results."""
    commit = str(result["commit"])[:7]
    head = f"| models of a kind ({commit}) | models | {' | '.join(_HEADS)} |"
    lines = [head, "|---|---|" + "---|" * len(_HEADS)]
    for name, share in means(result["rows"]).items():
        of_it = [r for r in result["rows"] if r.get("flops") and name in (r["family"], "all")]
        lines.append(f"| {name} | {len(of_it)} | {_cells(share)} |")
    return "\n".join(lines) + "\n"


def reasons(rows: Sequence[dict[str, Any]], count: int = 20) -> str:
    """Why products are left or taken in part, by the mean share of a model's FLOPs."""
    sums: collections.Counter[str] = collections.Counter()
    good = [row for row in rows if row.get("flops")]
    for row in good:
        for why, share in row["reasons"]:
            sums[why] += share
    return "\n".join(f"{n / len(good):6.1%}  {why}" for why, n in sums.most_common(count))


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Horizontal bars of the shares, families apart, each family's mean and that of all in bold.

    Raises:
        ValueError: if matplotlib is not installed, or no row has a share.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install matplotlib") from error
    bars = _bars(rows)
    if not bars:
        raise ValueError("nothing to draw: no model has a share")
    figure = Figure(figsize=(9, 1.6 + 0.19 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for kind, text in KINDS.items():
        left = [_before(share, kind) for _, share, _ in bars]
        places = [place for _, _, place in bars]
        widths = [share[kind] for _, share, _ in bars]
        axes.barh(places, widths, left=left, height=0.8, color=_COLORS[kind], label=text)
    axes.set_yticks([p for _, _, p in bars], [name for name, _, _ in bars], fontsize=8)
    for label in axes.get_yticklabels():
        if label.get_text().startswith("mean"):
            label.set_fontweight("bold")
    axes.set_xticks([i / 4 for i in range(5)], [f"{25 * i}%" for i in range(5)])
    axes.set_xlim(0, 1)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("A layer's Linears by FLOPs, bfloat16, on an H200", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fusepass"}):  # text as text
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _bars(rows: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, float], float]]:
    """(name, shares, place) from the top, a gap between families."""
    bars: list[tuple[str, dict[str, float], float]] = []
    place = 0.0
    for family, mean in means(rows).items():
        for row in rows:
            if row["family"] == family and row.get("flops"):
                bars.append((row["model"], row["share"], place))
                place += 1
        bars.append((f"mean, {family}", mean, place))
        place += 1.6
    return bars


def _before(share: dict[str, float], kind: str) -> float:
    kinds = list(KINDS)
    return sum(share[k] for k in kinds[: kinds.index(kind)])
