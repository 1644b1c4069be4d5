"""What benchmarks/models.py measured, as tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
Row = Mapping[str, Any]

_KINDS = ("bf16 inference", "training step", 'float32 "highest", inference', "training step")
_MOST = 6


def gains(results: Sequence[Result]) -> str:
    """One line a model, how many times faster it is than the best of the others; those measured in
    most ways, ``_MOST`` of them.

    Args:
        results: of bfloat16 inference, bfloat16 training, float32 inference, float32 training.
    """
    titles = zip(_KINDS, results, strict=True)
    heads = (f"{kind} ({_commit(result)})" for kind, result in titles)
    lines = [f"| model, times faster | {' | '.join(heads)} |", "|---" * (len(results) + 1) + "|"]
    named = [{_name(row): row for row in _measured(result)} for result in results]
    count = Counter(name for rows in named for name in rows)
    shown = {name for name, _ in count.most_common(_MOST)}
    for name in (name for name in count if name in shown):
        cells = (_gain(rows.get(name)) for rows in named)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def milliseconds(dtype: str, inference: Result, training: Result) -> str:
    """One line a model and pass: every peer's time, and what else is known."""
    commits = " and ".join(dict.fromkeys(map(_commit, (inference, training))))
    heads = ("pass", "eager", "Inductor", "fusepass", "gain", "difference", "sites", "peak")
    lines = [f"| model, {dtype} ({commits}) | {' | '.join(heads)} |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    rows = [row for result in (inference, training) for row in _measured(result)]
    for name in dict.fromkeys(row["model"] for row in rows):
        for row in (r for r in rows if r["model"] == name):
            lines.append(f"| {_shown(name)} | {' | '.join(_cells(row))} |")
    return "\n".join(lines) + "\n"


def _measured(result: Result) -> Iterator[Row]:
    return (row for row in result["rows"] if "speedup" in row)


def _commit(result: Result) -> str:
    return str(result["commit"])[:7]


def _name(row: Row) -> str:
    """The model without its batch, which differs by pass."""
    return _shown(row["model"].rpartition(", ")[0] or row["model"])


def _shown(text: str) -> str:
    return re.sub(r"(?<=\d)x(?=\d)", "×", text.replace(" -> ", "→"))


def _gain(row: Row | None) -> str:
    return f"{row['speedup']:.2f}×" if row else ""


def _cells(row: Row) -> Iterator[str]:
    yield row["pass"]
    for peer in ("eager", "inductor", "fusepass"):
        time = row.get(f"{peer}_ms")
        yield "" if time is None else f"{time:#.3g}" if time < 100 else f"{time:.1f}"
    yield f"**{row['speedup']:.2f}**"
    yield f"{row['difference']:.1e}".replace("e-0", "e-") if "difference" in row else ""
    yield _sites(row)
    peaks = [row.get(f"{peer}_peak_mb") for peer in ("inductor", "fusepass")]
    yield ", ".join(f"{peak:.0f}" for peak in peaks if peak is not None)


def _sites(row: Row) -> str:
    counts = [row.get("fused"), row.get("gemms")]
    return " + ".join(str(count) for count in counts if count is not None)
