"""benchmarks/before_after.py: two trees' processes answer in turn; the timing is linear.py's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import before_after
import beside_bare

# What a tree's benchmarks/linear.py has of what is called; its torch needs no GPU.
LINEAR = """
import argparse
def parse(argv):
    parser = argparse.ArgumentParser()
    for name in ("--dtype", "--epilogue", "--precision", "--seconds"):
        parser.add_argument(name)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--shapes", nargs="+")
    return parser.parse_args(argv)
def prebuild(shapes, options):
    print("built", len(shapes))
def measure(shape, options, stream):
    m, k, n = map(int, shape.split("x"))
    failed = {{"fusepass": "too large"}} if m == 512 else {{}}
    return {{"m": m, "k": k, "n": n, "plan": options.dtype, "failed": failed,
             "ms": {{"bare": 1.0, "fusepass": {ratio}}}, "ratio_to_bare": {{"fusepass": {ratio}}}}}
"""
TORCH = """
import contextlib
class cuda:
    Stream = object
no_grad = contextlib.nullcontext
def set_float32_matmul_precision(precision): pass
"""


def _tree(root: Path, ratio: float) -> Path:
    for path, text in {
        "benchmarks/linear.py": LINEAR.format(ratio=ratio),
        "fusepass/__init__.py": "",
        "torch/__init__.py": TORCH,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_trees_take_turns_and_the_later_is_held_against_the_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beside_bare, "head", lambda commit: {"commit": commit})
    trees = [str(_tree(tmp_path / name, ratio)) for name, ratio in (("a", 0.5), ("b", 0.51))]
    out = tmp_path / "out.json"
    given = ["--kinds", "bfloat16", "float32 high", "--rounds", "2", "--commits", "1111111", "2"]
    before_after.main([*trees, *given, "--out", str(out)])
    result = json.loads(out.read_text())
    assert (result["before"], result["commit"]) == ("1111111", "2")
    *rows, failed, last = result["rows"][:7]
    assert failed["failed"] == [{"fusepass": "too large"}] * 4  # of 512 rows
    for row in (*rows, last):
        assert (row["before"], row["after"], row["over"]) == ([0.5] * 2, [0.51] * 2, 1.02)
    assert (last["kind"], last["plan"]["after"]) == ("float32 high", "float32")
    assert len(result["rows"]) == 9
    assert capsys.readouterr().out.startswith("1.020  0.500/0.500 -> 0.510/0.510  bfloat16 chain")


def test_the_second_tree_is_asked_for() -> None:
    with pytest.raises(SystemExit, match="two trees"):
        before_after.main(["."])
