"""Puts rows that models.py or kernelbench.py printed into benchmarks/results, over those there.

    python benchmarks/merge.py --commit 83adb88 rows.txt [more.txt ...]

For a few models or problems that are measured anew: their rows name their commit, the others stay.
A file may hold other lines, too. A row without times, of the run with ``--seconds 0`` that filled
torch's caches, gives its count of sites to the row of the same model, which has none. Compile times
are dropped: of a cache's code they say nothing, and of runs side by side little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FILES = {
    ("bfloat16", "inference"): "models",
    ("bfloat16", "training step"): "models-training",
    ("float32", "inference"): "models-float32",
    ("float32", "training step"): "models-float32-training",
}
PROBLEMS = "kernelbench"
MODES = "models-modes"  # of rows of another mode of torch.compile's than the default
_COUNTS = ("fused", "gemms")
_PROFILED = ("inductor", "fusepass")

Row = Mapping[str, Any]


def read(text: str) -> list[Row]:
    """The rows of a text, whatever lines are between them."""
    begins = ('{"model"', '{"problem"')
    rows = [json.loads(line) for line in text.splitlines() if line.startswith(begins)]
    return [row for row in rows if "failed" not in row]


def merged(result: Mapping[str, Any], new: Sequence[Row], commit: str) -> dict[str, Any]:
    """``result``, a file's content, with the rows of ``new``, which are of ``commit``."""
    rows = {_key(row): {"commit": result["commit"], **row} for row in result["rows"]}
    rows |= {_key(row): _kept(row, commit) for row in new if "speedup" in row}
    for counted in new:
        row = rows.get(_key(counted), {})
        if row.get("commit") == commit:
            row |= {what: counted[what] for what in _COUNTS if what in counted}
    return {**result, "commit": commit, "rows": list(rows.values())}


def _key(row: Row) -> tuple[Any, ...]:
    if "problem" in row:
        return row["problem"], row["dtype"]
    return row["model"], row.get("mode")


def _kept(row: Row, commit: str) -> dict[str, Any]:
    kept = {k: v for k, v in row.items() if not k.endswith(("_compile_s", "took_s"))}
    if "profile" in row:
        kept["profile"] = {peer: v for peer, v in row["profile"].items() if peer in _PROFILED}
    return {"commit": commit, **kept}


def put(rows: Iterable[Row], commit: str, folder: Path = RESULTS) -> list[Path]:
    """Writes the files that have rows of theirs in ``rows``, and returns these.

    That of the modes, where it is not there yet, begins as that of bfloat16 inference.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        if "problem" in row:
            name = PROBLEMS
        else:
            name = MODES if "mode" in row else FILES[row["dtype"], row["pass"]]
        found.setdefault(name, []).append(row)
    for name, new in found.items():
        path = folder / f"{name}.json"
        before = path if path.exists() else folder / "models.json"
        known = json.loads(before.read_text())
        result = merged(known if before == path else {**known, "rows": []}, new, commit)
        path.write_text(json.dumps(result, indent=1) + "\n")
    return [folder / f"{name}.json" for name in found]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", type=Path, help="what was printed")
    parser.add_argument("--commit", required=True, help="that was measured")
    options = parser.parse_args(argv)
    rows = [row for file in options.rows for row in read(file.read_text())]
    print(*put(rows, options.commit), sep="\n")


if __name__ == "__main__":
    main()
