"""benchmarks/coverage.py on a model of its own: no library of models is needed."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusepass.match.followers import ATTENTION, MANY, NOTHING
from fusepass.report import Miss, Report, Site
from fusepass.rewrite.decision import ALONE

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import architectures  # noqa: E402
import coverage_picture  # noqa: E402
from architectures import Architecture  # noqa: E402

# Not by its name, which a package for the coverage of tests has, too.
_SPEC = importlib.util.spec_from_file_location("models_coverage", BENCHMARKS / "coverage.py")
assert _SPEC is not None and _SPEC.loader is not None
coverage = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(coverage)

ROWS, WIDTH = 16384, 1024


class Layer(nn.Module):
    """A Linear with a GELU, one with nothing behind it, and a product that is no Linear."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.rate = float(torch.linspace(0, 1, 3)[1]) if reads else 0.5

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(nn.functional.gelu(self.up(x)))
        parts = h.view(4, -1, WIDTH)
        return torch.bmm(parts, parts.transpose(1, 2)).cumsum(-1)


def _architecture(reads: bool = False, rows: int = ROWS) -> Architecture:
    return Architecture(
        "own", "vision", "torch", lambda layers: (Layer(reads), (torch.randn(rows, WIDTH),), {})
    )


@pytest.mark.parametrize("reads", [False, True])
def test_a_models_products_are_counted_as_on_an_h200(reads: bool) -> None:
    """A model that reads numbers while it is made is of real tensors first."""
    row = coverage.measure(_architecture(reads), train=False)
    assert "failed" not in row, row["failed"]
    linear = 2 * ROWS * WIDTH * 4 * WIDTH
    assert (row["flops"], row["products"], row["told"]) == (2 * linear, 3, 1.0)
    assert row["share"]["whole"] == pytest.approx(0.5, abs=1e-3)
    assert sum(row["share"].values()) == pytest.approx(1, abs=1e-3)
    assert not any("a product of a batch" in why for why, _ in row["reasons"])
    assert torch.get_default_dtype() is torch.float32


class Stack(nn.Module):
    """Layers between two Linears that a model has once."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)
        self.up = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.atan(self.first(x))
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(nn.functional.gelu(up(nn.functional.layer_norm(x, (WIDTH,)))))
        return self.last(x).softmax(-1)


def test_layers_are_counted_without_what_stands_at_the_ends() -> None:
    def make(layers: int) -> Any:
        return Stack(layers), (torch.randn(ROWS, WIDTH),), {}

    row = coverage.measure(Architecture("own", "vision", "torch", make), train=False)
    assert "failed" not in row, row["failed"]
    assert (row["flops"], row["products"]) == (2 * 2 * 2 * ROWS * WIDTH * WIDTH, 4)
    assert row["share"]["whole"] == 1.0


def test_layers_that_get_lost_are_no_row_of_figures() -> None:
    small, large = coverage.Counted({("left", "b"): 5}), coverage.Counted({("whole", ""): 9})
    with pytest.raises(ValueError, match="less of"):
        coverage.inner(_report(small), _report(large))


def _report(flops: Any) -> Report:
    """A report with a miss or a site for each."""
    site = Site("gelu", "bfloat16", "8", "8", "8", None, None, None, "mm")
    return Report(
        tuple(replace(site, flops=n) for (kind, _), n in flops.items() if kind == "whole"),
        tuple(Miss(why, "mm", None, flops=n) for (kind, why), n in flops.items() if kind == "left"),
    )


SITE = Site("gelu", "bfloat16", "8", "8", "8", None, None, None, "mm")
ENTRIES: list[tuple[Site | Miss, str]] = [
    (SITE, "whole"),
    (replace(SITE, follows=f"LayerNorm {MANY}"), "whole"),
    (replace(SITE, follows="`atan` is not a stage fusepass knows"), "part"),
    (replace(SITE, epilogue=""), "empty"),
    (replace(SITE, epilogue="", follows=f"RMSNorm {MANY}"), "empty"),
    (replace(SITE, epilogue="", follows=f"RoPE (rotary embedding) {MANY}"), "untaken"),
    (replace(SITE, epilogue="", follows="`atan` is not a stage fusepass knows"), "untaken"),
    (Miss(f"{NOTHING}: its result is returned", "mm", None), "bare"),
    (Miss(f"{ALONE}, and torch's GEMM is as fast at 8x8x8", "mm", None), "bare"),
    (Miss(f"RMSNorm {MANY}", "mm", None), "bare"),
    (Miss(f"RoPE (rotary embedding) {MANY}", "mm", None), "left"),
    (Miss("Inductor fuses these stages with what follows, for free", "mm", None), "left"),
]


@pytest.mark.parametrize(("entry", "kind"), ENTRIES)
def test_a_tail_that_was_not_taken_is_told_from_none(entry: Site | Miss, kind: str) -> None:
    assert coverage.kind_of(entry) == kind and coverage.is_linear(entry)


def test_attention_is_no_linear() -> None:
    assert not coverage.is_linear(Miss(ATTENTION, "bmm", None, kind="gradient"))
    assert not coverage.is_linear(Miss("any", "bmm", None, kind="matmul"))
    assert not coverage.is_linear(replace(SITE, kind="matmul"))


def test_training_counts_the_backward_as_well() -> None:
    rows = [coverage.measure(_architecture(), train) for train in (False, True)]
    assert rows[1]["products"] > 2 * rows[0]["products"]


def test_a_model_that_fails_is_a_row_that_says_so() -> None:
    def fails(layers: int) -> Any:
        raise ValueError("no such model")

    row = coverage.measure(Architecture("own", "vision", "torch", fails), train=False)
    assert row["failed"] == "ValueError: no such model"


ROW = {
    "flops": 8,
    "share": dict.fromkeys(coverage_picture.KINDS, 0.2),
    "reasons": [["left: a norm", 0.2]],
}
ROWS_OF_TWO = [
    {"model": "a", "family": "decoder", **ROW},
    {"model": "b", "family": "vision", **ROW, "share": {**ROW["share"], "left": 1.0}},  # type: ignore[dict-item]
    {"model": "c", "family": "vision", "failed": "it did"},
]


def test_tables_and_means() -> None:
    assert coverage_picture.means(ROWS_OF_TWO)["all"]["left"] == pytest.approx(0.6)
    text = coverage_picture.table(ROWS_OF_TWO)
    assert "| b | 20% | 20% | 20% | 20% | 20% | 100% | 40% | 12% |" in text and "| c |" not in text
    assert "**mean, all** | 20% | 20% | 20% | 20% | 20% | 60% | 40% | 19% |" in text
    assert coverage_picture.reasons(ROWS_OF_TWO) == " 20.0%  left: a norm"


def test_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib to draw")
    (tmp_path / "rows.json").write_text(json.dumps({"rows": ROWS_OF_TWO}))
    arguments = ["--from", str(tmp_path / "rows.json"), "--picture", str(tmp_path / "out.svg")]
    monkeypatch.setattr(sys, "argv", ["coverage.py", *arguments])
    coverage.main()
    assert (tmp_path / "out.svg").stat().st_size > 1000


def test_names_are_unique_and_many() -> None:
    names = [a.name for a in architectures.ARCHITECTURES]
    assert len(set(names)) == len(names) >= 60
