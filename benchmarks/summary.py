"""The documentation's tables, from the files of benchmarks/results.

python benchmarks/summary.py            # prints them
python benchmarks/summary.py --write    # puts them into the pages, in place of those there are
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import accuracy
import coverage_picture
import kernel_tables
import targets
from models_tables import gains, milliseconds, modes, where_the_time_goes
from picture import OURS, summary

ROOT = Path(__file__).parents[1]
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
MODELS = ("models", "models-training", "models-float32", "models-float32-training")
KERNELS = ("products", "few-rows", "decoding", "training")
# Files that may not be there, without which a page has no such table: the page, how the table
# begins, and what makes it.
LATER: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], str]]] = {
    "gated": ("docs/performance.md", "two weights", kernel_tables.gated),
    "linears": ("docs/performance.md", "several Linears", kernel_tables.linears),
    "counters": ("docs/performance.md", "by counters", kernel_tables.counters),
    "quack": ("docs/performance.md", "beside QuACK", kernel_tables.quack),
    "models-modes": ("docs/performance.md", "model and mode", modes),
    "kernelbench": ("docs/performance.md", "KernelBench, level 2", kernel_tables.kernelbench),
    "before-after": ("docs/performance.md", "before and after", kernel_tables.before_after),
    "accuracy-gradients": (
        "docs/numerics.md",
        accuracy.GRADIENTS_HEAD,
        lambda result: accuracy.table(result, GRADIENT_KS, accuracy.GRADIENTS),
    ),
}
ACCURACY_KS = (256, 4096, 32768)
GRADIENT_KS = (1024, 65536)

Results = Mapping[str, Mapping[str, Any]]


def tables(results: Results) -> dict[str, dict[str, str]]:
    """The tables of each page, by how their first columns' heads begin.

    Args:
        results: the contents of the files that ``read`` reads.
    """
    models = [results[name] for name in MODELS]
    bf16, bf16_training, float32, float32_training = models
    later: dict[str, dict[str, str]] = {}
    for name, (page, begins, made) in LATER.items():
        if name in results:
            later.setdefault(page, {})[begins] = made(results[name])
    return {
        "README.md": {"model, times faster": gains(models)},
        "docs/performance.md": {
            "model, bfloat16": milliseconds("bfloat16", bf16, bf16_training),
            "model, float32": milliseconds("float32", float32, float32_training),
            "kernels' time, ms": where_the_time_goes(models),
            "aimed at": targets.table(results),
            "M×K→N": table(results),
            "product alone": kernel_tables.products(results["products"]),
            "product with tensors": kernel_tables.operands(results["products"]),
            "few rows": kernel_tables.few_rows(results["few-rows"]),
            "decoding step": kernel_tables.decoding(results["decoding"]),
            **later.get("docs/performance.md", {}),
            "models of a kind": coverage_picture.means_table(results["coverage"]),
        },
        "docs/numerics.md": {
            accuracy.HEAD: accuracy.table(results["accuracy"], ACCURACY_KS),
            **later.get("docs/numerics.md", {}),
        },
    }


def table(results: Results) -> str:
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
    names = {"accuracy", "coverage", *MODELS, *KERNELS, *(file for file, _, _ in COLUMNS)}
    names |= {name for name in LATER if (RESULTS / f"{name}.json").exists()}
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}


def replaced(text: str, new: Mapping[str, str], page: str) -> str:
    """``text`` with its tables that begin like the keys of ``new`` replaced.

    Raises:
        SystemExit: if there is none of them, or more than one.
    """
    for head, lines in new.items():
        old = re.compile(rf"^\| {re.escape(head)}[^\n]*\n(?:\|[^\n]*\n)+", re.MULTILINE)
        text, count = old.subn(lambda _, lines=lines: lines, text)
        if count != 1:
            raise SystemExit(f"{page} has {count} tables that begin with | {head}")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into the pages")
    options = parser.parse_args(argv)
    for page, new in tables(read()).items():
        if options.write:
            path = ROOT / page
            path.write_text(replaced(path.read_text(), new, page))
        else:
            print(page, *new.values(), sep="\n")
    if not options.write:
        print(summary(json.loads((RESULTS / "grid.json").read_text())["rows"]))


if __name__ == "__main__":
    main()
