"""QuACK on a GPU beside fusepass: a Linear bare, with GELU by tanh, and the scale, clamp and GELU.

    python benchmarks/beside_quack.py --out results/quack.json
    python benchmarks/beside_quack.py --part 0/4 --out part0.json    # a fourth of the shapes
    python benchmarks/beside_quack.py --join part*.json --out results/quack.json

Each in turn with the bare F.linear, by linear.py's protocol and through the op; of the scale, clamp
and GELU QuACK has none. It tunes at each shape, as for its users, which takes 10 to 45 seconds
(``first_call_seconds``); it keeps what it compiled and found in ``QUACK_CACHE_DIR``, which several
processes may share. Parts are for several GPUs of one machine, a process each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import linear
import linear_quack
import torch
from beside_bare import head
from linear_cases import Shape, parse_shape
from picture import BARE, OURS, QUACK

SHAPES: list[Shape] = [
    (8192, 768, 3072), (16384, 1024, 4096), (2048, 8192, 8192), (50432, 768, 3072),
    (1576, 768, 3072), (65536, 256, 1024), (4096, 5120, 20480), (3000, 1000, 1000),
    (65536, 384, 1536), (777, 2048, 8192),
]  # fmt: skip
EPILOGUES = ("none", "gelu_tanh", "chain")
DTYPES = ("bfloat16", "float16")
_OWN = ("rows", "commit", "stopped")  # of a part's head


class Case(NamedTuple):
    """A Linear and what is behind it."""

    dtype: str
    epilogue: str
    shape: Shape

    def options(self, seconds: float) -> argparse.Namespace:
        """As linear.py's command line would have them."""
        words = ["--grid", "--dtype", self.dtype, "--epilogue", self.epilogue]
        peers = [BARE, OURS] if self.epilogue == "chain" else [BARE, QUACK, OURS]
        return linear.parse([*words, "--seconds", str(seconds), "--peers", *peers])


def cases(
    dtypes: Sequence[str],
    part: str = "0/1",
    epilogues: Sequence[str] = EPILOGUES,
    shapes: Sequence[Shape] = SHAPES,
) -> list[Case]:
    """All of these, or of every n-th shape from the i-th on, for a part ``i/n``."""
    first, step = map(int, part.split("/"))
    return [Case(*case) for case in itertools.product(dtypes, epilogues, shapes[first::step])]


def measure(case: Case, seconds: float, stream: Any) -> dict[str, Any]:
    """linear.py's row of a case, which also says what it is of; one that fails says why."""
    try:
        row = linear.measure(case.shape, case.options(seconds), stream)
    except Exception as error:  # the others go on
        row = {**dict(zip("mkn", case.shape, strict=True)), "error": linear.first_line(error)}
    return {"dtype": case.dtype, "epilogue": case.epilogue, **row}


def joined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One file's content of those of parts, rows in the order of ``cases``.

    A row of another commit than the first part's names its own; a case's last row stays.

    Raises:
        SystemExit: if they are not of one machine, torch and QuACK.
    """
    heads = [{k: v for k, v in result.items() if k not in _OWN} for result in results]
    if any(each != heads[0] for each in heads):
        raise SystemExit("parts of different machines or versions: they have different heads")
    commit = results[0]["commit"]
    rows = {
        _key(row): row if result["commit"] == commit else {"commit": result["commit"], **row}
        for result in results
        for row in result["rows"]
    }
    order = {tuple(case): i for i, case in enumerate(cases(DTYPES))}
    return {
        **heads[0],
        "commit": commit,
        "rows": [rows[k] for k in sorted(rows, key=order.__getitem__)],
    }


def _key(row: Mapping[str, Any]) -> tuple[str, str, Shape]:
    return row["dtype"], row["epilogue"], (row["m"], row["k"], row["n"])


def told(row: Mapping[str, Any]) -> str:
    """A row as it is printed: ratios to the bare F.linear."""
    m, k, n = (row[size] for size in "mkn")
    case = f"{row['dtype']} {row['epilogue']} {m}x{k}->{n}"
    if "error" in row:
        return f"{case} failed: {row['error']}"
    ratios = ", ".join(f"{peer} {ratio:.3f}" for peer, ratio in row["ratio_to_bare"].items())
    failed = "".join(f"; {peer} failed: {why}" for peer, why in row["failed"].items())
    tuned = row["first_call_seconds"].get(QUACK)
    took = f"; tuned in {tuned:.0f} s" if tuned else ""
    return f"{case} {row['ms'][BARE]:.4f} ms: {ratios}{took}; {row['plan']}{failed}"


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the part, its kernels being built meanwhile; prints and keeps each row."""
    some = cases(options.dtypes, options.part, options.epilogues, options.shapes)
    deadline = time.perf_counter() + options.limit
    result = {**head(options.commit), "quack": linear_quack.version(), "protocol": linear.PROTOCOL}
    rows = result["rows"] = list[dict[str, Any]]()
    stream = torch.cuda.Stream()
    with ThreadPoolExecutor() as pool:
        for case in some:
            pool.submit(linear.plan, case.shape, case.options(options.seconds))
        for case in some:
            if time.perf_counter() > deadline:
                result["stopped"] = f"time limit, {len(rows)} of {len(some)} cases measured"
                break
            rows.append(measure(case, options.seconds, stream))
            print(told(rows[-1]), flush=True)
            _write(options.out, result)
        pool.shutdown(cancel_futures=True)
    return result


def _write(path: Path | None, result: Mapping[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    add("--epilogues", nargs="+", choices=EPILOGUES, default=EPILOGUES)
    add("--shapes", nargs="+", type=parse_shape, default=SHAPES)
    add("--part", default="0/1", help="i/n: every n-th shape from the i-th on")
    add("--seconds", type=float, default=0.4, help="of rounds, a case")
    add("--limit", type=float, default=540, help="seconds after which no other case starts")
    add("--commit", help="what is measured, where git does not know")
    add("--join", nargs="+", type=Path, help="measure nothing: put these parts together")
    add("--out", type=Path)
    options = parser.parse_args(argv)
    if options.join:
        return _write(options.out, joined([json.loads(p.read_text()) for p in options.join]))
    if not torch.cuda.is_available():
        raise SystemExit("beside_quack.py times CUDA kernels, and there is no CUDA device")
    torch.manual_seed(0)
    with torch.no_grad():
        _write(options.out, sweep(options))


if __name__ == "__main__":
    main()
