"""Two trees of this repository on one GPU, in turn: Linear and epilogue over the bare F.linear.

    git worktree add ../old ecaf155
    python benchmarks/before_after.py ../old . --out results/before-after.json

Each tree has a process of its own, with its own sources and its own benchmarks/linear.py. Case by
case the one measures and then the other, ``--rounds`` times, by linear.py's protocol; what is told
are ratios to the bare product of the same process, and the later tree's median over the other's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TREES = ("before", "after")
SHAPES_16 = ("2048x8192x8192", "16384x1024x4096", "50432x768x3072", "8192x768x3072",
             "4096x4096x14336", "512x4096x4096")  # fmt: skip
SHAPES_32 = ("2048x8192x8192", "16384x1024x4096", "8192x768x3072")
KINDS = {"bfloat16": SHAPES_16, "float16": SHAPES_16, "float32 highest": SHAPES_32,
         "float32 high": SHAPES_32}  # fmt: skip


# An installed tree's entry point would be imported with torch, before the tree's own sources.
_NO_BACKENDS = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


class Case(NamedTuple):
    """A kind of numbers, an epilogue and a shape."""

    kind: str
    epilogue: str
    shape: str

    @property
    def options(self) -> list[str]:
        """linear.py's command line."""
        dtype, _, precision = self.kind.partition(" ")
        words = ["--grid", "--dtype", dtype, "--epilogue", self.epilogue]
        words += ["--precision", precision] if precision else []
        return [*words, "--shapes", self.shape]


def cases(kinds: Sequence[str], epilogues: Sequence[str]) -> list[Case]:
    """Every shape of every kind with every epilogue."""
    pairs = itertools.product(kinds, epilogues)
    return [Case(kind, epilogue, s) for kind, epilogue in pairs for s in KINDS[kind]]


class Tree:
    """A process with a tree's sources, which measures what it is told to."""

    def __init__(self, tree: Path, seconds: float) -> None:
        root = str(tree.resolve())
        path = [root, os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", root, "--seconds", str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_NO_BACKENDS, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        )

    def ask(self, options: Sequence[str]) -> None:
        """Has one shape measured, or kernels for several built; ``answer`` waits for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(options) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The row of the oldest shape that was asked for; of several nothing.

        Raises:
            RuntimeError: if the process has ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"{self.process.args} ended")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def compared(case: Case, rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """A row: ratios to the bare product by tree and round, and the later's median over the other's.

    Args:
        case: what was measured.
        rounds: each of which has linear.py's row of either tree.
    """
    ratios = {tree: [each[tree]["ratio_to_bare"]["fusepass"] for each in rounds] for tree in TREES}
    before, after = (statistics.median(ratios[tree]) for tree in TREES)
    row = rounds[0]["after"]
    return {
        **dict(zip(("kind", "epilogue"), case, strict=False)),
        **{size: row[size] for size in "mkn"},
        **ratios,
        "ms": {tree: rounds[0][tree]["ms"] for tree in TREES},
        "plan": {tree: rounds[0][tree]["plan"] for tree in TREES},
        "over": round(after / before, 4),
    }


def told(row: Mapping[str, Any]) -> str:
    """A row as it is printed."""
    if "failed" in row:
        return f"{row['kind']} {row['epilogue']} {row['shape']} failed: {row['failed'][0]}"
    before, after = ("/".join(f"{ratio:.3f}" for ratio in row[tree]) for tree in TREES)
    name = f"{row['kind']} {row['epilogue']} {row['m']}x{row['k']}->{row['n']}"
    return f"{row['over']:.3f}  {before} -> {after}  {name}: {row['plan']['after']}"


def race(trees: Mapping[str, Tree], some: Sequence[Case], rounds: int) -> Iterator[dict[str, Any]]:
    """The row of each case, kernels being built before; one that fails says why."""
    for kind, epilogue in dict.fromkeys((case.kind, case.epilogue) for case in some):
        shapes = [case.shape for case in some if case[:2] == (kind, epilogue)]
        for tree in trees.values():
            tree.ask([*Case(kind, epilogue, shapes[0]).options, *shapes[1:]])
        for tree in trees.values():
            tree.answer()
    for case in some:
        found = []
        for _ in range(rounds):
            rows = {}
            for name, tree in trees.items():
                tree.ask(case.options)
                rows[name] = tree.answer()
            found.append(rows)
        failed = [row["failed"] for rows in found for row in rows.values() if row["failed"]]
        yield {**case._asdict(), "failed": failed} if failed else compared(case, found)


def serve(root: str, seconds: float) -> None:
    """Runs each command line of standard input with the tree's own linear.py, as ``ask`` says."""
    sys.path[:0] = [root, str(Path(root) / "benchmarks")]
    import linear
    import torch

    import fusepass

    assert all(m.__file__ and m.__file__.startswith(root) for m in (linear, fusepass)), root
    stream = torch.cuda.Stream()
    for line in sys.stdin:
        options = linear.parse([*json.loads(line), "--seconds", str(seconds)])
        torch.set_float32_matmul_precision(options.precision)
        with torch.no_grad():
            if len(options.shapes) > 1:
                linear.prebuild(options.shapes, options)
            one = len(options.shapes) == 1
            row = linear.measure(options.shapes[0], options, stream) if one else {}
        print(json.dumps(row), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("trees", nargs="*", type=Path, help="the earlier and the later")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add("--epilogues", nargs="+", default=["chain"])
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=0.15, help="of a tree's timing, a case and round")
    add("--commits", nargs=2, help="what the trees are", default=["", ""])
    add("--out", type=Path)
    add("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        return serve(options.serve, options.seconds)
    if len(options.trees) != 2:
        raise SystemExit("two trees are compared: the earlier and the later")
    from beside_bare import head

    trees = dict(zip(TREES, (Tree(t, options.seconds) for t in options.trees), strict=True))
    rows = list[dict[str, Any]]()
    for row in race(trees, cases(options.kinds, options.epilogues), options.rounds):
        rows.append(row)
        print(told(row), flush=True)
        if options.out:
            before, after = options.commits
            result = {**head(after), "before": before, "rows": rows}
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    for tree in trees.values():
        tree.close()


if __name__ == "__main__":
    main()
