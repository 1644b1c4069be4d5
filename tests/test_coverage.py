"""benchmarks/coverage.py on a model of its own: no library of models is needed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
        "own", "vision", "torch", lambda: (Layer(reads), (torch.randn(rows, WIDTH),), {})
    )


@pytest.mark.parametrize("reads", [False, True])
def test_a_models_products_are_counted_as_on_an_h200(reads: bool) -> None:
    """A model that reads numbers while it is made is of real tensors first."""
    row = coverage.measure(_architecture(reads), train=False)
    assert "failed" not in row, row["failed"]
    linear = 2 * ROWS * WIDTH * 4 * WIDTH
    inner = 2 * ROWS * (ROWS // 4) * WIDTH
    assert (row["flops"], row["products"]) == (2 * linear + inner, 3)
    assert row["share"]["whole"] == pytest.approx(linear / row["flops"], abs=1e-3)
    assert row["share"]["left"] == pytest.approx(inner / row["flops"], abs=1e-3)
    assert sum(row["share"].values()) == pytest.approx(1, abs=1e-3)
    assert any(why.startswith("left: a product of a batch") for why, _ in row["reasons"])
    assert torch.get_default_dtype() is torch.float32


def test_training_counts_the_backward_as_well() -> None:
    rows = [coverage.measure(_architecture(), train) for train in (False, True)]
    assert rows[1]["products"] > 2 * rows[0]["products"]


def test_a_model_that_fails_is_a_row_that_says_so() -> None:
    def fails() -> Any:
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
    assert "| b | 20% | 20% | 20% | 20% | 100% |" in text and "| c |" not in text
    assert "**mean, all** | 20% | 20% | 20% | 20% | 60% |" in text
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
