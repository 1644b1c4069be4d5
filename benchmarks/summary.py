"""The README's tables, from what benchmarks/linear.py and benchmarks/accuracy.py measured.

python benchmarks/summary.py              # prints them
python benchmarks/summary.py README.md    # puts them there, in place of those there are
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import accuracy
from picture import OURS, summary

RESULTS = Path(__file__).parent / "results"
# A file of results, its title, and what is shown of each shape.
COLUMNS = (
    ("bf16", "bf16: Inductor", "inductor"),
    ("bf16", "fusepass", OURS),
    ("bf16", "gain", "speedup"),
    ("fp16", "fp16: fusepass", OURS),
    ("fp16", "gain", "speedup"),
    ("tf32", 'float32 "high": fusepass', OURS),
    ("fp32", 'float32 "highest": fusepass', OURS),
    ("fp32", "gain", "speedup"),
)
ACCURACY_KS = (256, 4096, 32768)


def tables(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The tables by the heads of their first columns.

    Args:
        results: the contents of the files that ``read`` reads.
    """
    return {
        "M×K→N": table(results),
        accuracy.HEAD: accuracy.table(results["accuracy"], ACCURACY_KS),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: a line a shape, times over the bare GEMM's, gains over the best peer.

    Args:
        results: the contents of the files that ``COLUMNS`` names.
    """
    shapes = {key(row): None for file, _, _ in COLUMNS for row in results[file]["rows"]}
    lines = [f"| M×K→N | {' | '.join(title for _, title, _ in COLUMNS)} |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for shape in shapes:
        cells = (cell(results[file]["rows"], shape, what) for file, _, what in COLUMNS)
        lines.append(f"| {shape[0]}×{shape[1]}→{shape[2]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def key(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return row["m"], row["k"], row["n"]


def cell(rows: Sequence[Mapping[str, Any]], shape: tuple[int, int, int], what: str) -> str:
    row = next((row for row in rows if key(row) == shape), {})
    if what == "speedup":
        return f"{row[what]:.2f}×" if what in row else ""
    ratio = row.get("ratio_to_bare", {}).get(what)
    return "" if ratio is None else f"{ratio:.2f}"


def read() -> dict[str, Any]:
    """The results there are, by the names of their files."""
    names = {"accuracy", *(file for file, _, _ in COLUMNS)}
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="where the tables stand already")
    page = parser.parse_args(argv).page
    new = tables(read())
    if page is None:
        print(*new.values(), sep="\n")
        print(summary(json.loads((RESULTS / "grid.json").read_text())["rows"]))
        return
    text = page.read_text()
    for head, lines in new.items():
        old = re.compile(rf"^\| {re.escape(head)} [^\n]*\n(?:\|[^\n]*\n)+", re.MULTILINE)
        text, count = old.subn(lambda _, lines=lines: lines, text)
        if count != 1:
            raise SystemExit(f"{page} has {count} tables that begin with | {head} |")
    page.write_text(text)


if __name__ == "__main__":
    main()
