"""What benchmarks/models.py measured, as tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
Row = Mapping[str, Any]

_KINDS = ("bf16 inference", "training step", 'float32 "highest", inference', "training step")
_MOST = 8
# Of which models and passes it is told where the time goes: dtype, model's beginning, pass's.
_PROFILED = (
    ("bfloat16", "BERT-large", "inference"), ("bfloat16", "BERT-large", "training"),
    ("bfloat16", "GPT-2 medium", "training"), ("bfloat16", "ViT-L/16", "training"),
    ("bfloat16", "Llama", "training"), ("float32", "BERT-large", "inference"),
    ("float32", "BERT-large", "training"), ("float32", "GPT-2 medium", "inference"),
    ("float32", "GPT-2 medium", "training"), ("float32", "MLP", "training"),
    ("float32", "the demo's model", "inference"), ("float32", "the demo's model", "training"),
)  # fmt: skip
_TIMES = (
    "torch's products", "fusepass: products", "fusepass: splits", "attention", "pointwise",
    "reductions", "optimizer",
)  # fmt: skip


def gains(results: Sequence[Result]) -> str:
    """One line a model, how many times faster it is than the best of the others; those measured in
    most ways, ``_MOST`` of them.

    Args:
        results: of bfloat16 inference, bfloat16 training, float32 inference, float32 training.
    """
    named = [{_name(row): row for row in _measured(result)} for result in results]
    count = Counter(name for rows in named for name in rows)
    shown = {name for name, _ in count.most_common(_MOST)}
    told = [{name: row for name, row in rows.items() if name in shown} for rows in named]
    heads = (
        f"{kind} ({', '.join(commits(result, rows.values()))})"
        for kind, result, rows in zip(_KINDS, results, told, strict=True)
    )
    lines = [f"| model, times faster | {' | '.join(heads)} |", "|---" * (len(results) + 1) + "|"]
    for name in (name for name in count if name in shown):
        cells = (_gain(rows.get(name)) for rows in told)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def milliseconds(dtype: str, inference: Result, training: Result) -> str:
    """One line a model and pass: every peer's time, and what else is known."""
    heads = ("pass", "eager", "Inductor", "fusepass", "gain", "spread", "difference", "sites",
             "peak", "commit")  # fmt: skip
    lines = [f"| model, {dtype} | {' | '.join(heads)} |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    rows = [(row, result) for result in (inference, training) for row in _measured(result)]
    for name in dict.fromkeys(row["model"] for row, _ in rows):
        for row, result in ((row, result) for row, result in rows if row["model"] == name):
            lines.append(f"| {_shown(name)} | {' | '.join(_cells(row))} | {commit(row, result)} |")
    return "\n".join(lines) + "\n"


def where_the_time_goes(results: Sequence[Result]) -> str:
    """Milliseconds of a call by kind of kernel, and their share, of each of Inductor and fusepass.

    Args:
        results: of models.py, with profiles; what has none is left out.
    """
    heads = ("by", "kernels", *_TIMES, "other")
    lines = [f"| kernels' time, ms | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    rows = [(r, result) for result in results for r in _measured(result) if "profile" in r]
    for dtype, model, part in _PROFILED:
        for row, result in rows:
            if row["dtype"] == dtype and row["model"].startswith(model) and part in row["pass"]:
                text = f"{_shown(row['model'])}, {dtype}, {row['pass']} ({commit(row, result)})"
                before, after = (row["profile"][peer]["kinds"] for peer in ("inductor", "fusepass"))
                lines.append(f"| {text} | Inductor | {' | '.join(_kinds(before))} |")
                lines.append(f"|  | fusepass | {' | '.join(_kinds(after))} |")
    return "\n".join(lines) + "\n"


def _kinds(kinds: Mapping[str, float]) -> Iterator[str]:
    whole = sum(kinds.values())
    yield f"{whole:.1f}"
    other = whole - sum(kinds.get(kind, 0.0) for kind in _TIMES)
    for took in (*(kinds.get(kind, 0.0) for kind in _TIMES), other):
        yield f"{took:.1f}, {took / whole:.0%}" if took / whole >= 0.005 else ""


def modes(result: Result) -> str:
    """One line a model and mode of torch.compile's: milliseconds, and how many times faster."""
    heads = ("mode", "Inductor", "fusepass", "gain", "spread", "difference", "commit")
    lines = [f"| model and mode | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in _measured(result):
        times = (f"{row[f'{peer}_ms']:.3f}" for peer in ("inductor", "fusepass"))
        spreads = ", ".join(f"{row[f'{peer}_spread']:.1%}" for peer in ("inductor", "fusepass"))
        gain, apart = f"**{row['speedup']:.2f}**", _difference(row)
        cells = (row["mode"], *times, gain, spreads, apart, commit(row, result))
        lines.append(f"| {_shown(row['model'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(row: Row) -> str:
    return f"{row['difference']:.1e}".replace("e-0", "e-") if "difference" in row else ""


def commit(row: Row, result: Result) -> str:
    """The commit of a row, which may be of another than its file."""
    return str(row.get("commit", result["commit"]))[:7]


def commits(result: Result, rows: Iterable[Row]) -> list[str]:
    """Those of ``rows``, the file's own first."""
    found = dict.fromkeys(commit(row, result) for row in rows)
    return sorted(found, key=lambda text: text != str(result["commit"])[:7])


def _measured(result: Result) -> Iterator[Row]:
    return (row for row in result["rows"] if "speedup" in row)


def _name(row: Row) -> str:
    """The model without its batch and number of layers, which differ by pass."""
    text = row["model"].rpartition(", ")[0] or row["model"]
    return _shown(re.sub(r" \(\d+\)$", "", text))


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
    yield ", ".join(f"{row[f'{peer}_spread']:.1%}" for peer in ("inductor", "fusepass"))
    yield _difference(row)
    yield _sites(row)
    peaks = [row.get(f"{peer}_peak_mb") for peer in ("inductor", "fusepass")]
    yield ", ".join(f"{peak:.0f}" for peak in peaks if peak is not None)


def _sites(row: Row) -> str:
    counts = [row.get("fused"), row.get("gemms")]
    return " + ".join(str(count) for count in counts if count is not None)
