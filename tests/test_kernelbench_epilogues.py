"""KernelBench's level 2: all that is pointwise between a Linear and the next reduction is in its
epilogue, a batch norm in evaluation, too. What it computes is held on a GPU (gpu/test_kernelbench).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import fusepass
from fusepass.explaining.explain import without_caches
from fusepass.ir import DType, Epilogue
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.narrow import MOST_ROWS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import kernelbench
import rows
from kernelbench_problems import PROBLEMS

SIZES = (64, 96, 128)
_NORM = "sub(col{0}) mul(col{1}{wide}) mul(col{2}) add(col{3})"  # a batch norm in evaluation
EPILOGUES = {
    9: "sub(2.0) mul(1.5) clamp(0.0, inf)",
    12: "mul(2.0) leaky_relu(0.1)",
    22: "v0 = mul(2.0); v0 add(v0) clamp(-10.0, 10.0)",
    29: "mish mish",
    33: f"mul(col0) {_NORM.format(1, 2, 3, 4, wide='{wide}')}",
    37: "silu add(col0)",
    39: f"mul(col0) {_NORM.format(1, 2, 3, 4, wide='{wide}')}",
    40: "mul(0.5) add(z)",
    41: f"{_NORM.format(0, 1, 2, 3, wide='{wide}')} gelu clamp(0.0, inf)",
    45: "sigmoid",
    51: "sub(col0)",
    53: "mul(0.5) clamp(-2.0, 2.0) gelu",
    59: "silu mul(2.0)",
    63: "clamp(0.0, inf) mul(0.5)",
    68: "clamp(-inf, $0) sub($0)",
    70: "sigmoid mul(2.0) add(z)",
    76: "clamp(0.0, inf)",
    81: "silu mul(0.5) clamp(-1.0, 1.0) tanh clamp(-1.0, 1.0)",
    86: "{tenth} gelu",
    94: "add(col0) clamp(-1.0, 1.0) mish",
    95: "add(col0) silu tanh gelu clamp(-1.0, 1.0)",
    97: f"{_NORM.format(0, 1, 2, 3, wide='{wide}')} add($0) silu",
}


# By turns, and in both where their texts differ.
CASES = [
    (number, dtype)
    for i, number in enumerate(PROBLEMS)
    for j, dtype in enumerate((torch.float32, torch.bfloat16))
    if i % 2 == j or "{" in EPILOGUES[number]
]


@pytest.mark.parametrize(("number", "dtype"), CASES, ids=str)
def test_all_that_is_pointwise_is_in_the_epilogue(number: int, dtype: torch.dtype) -> None:
    torch.manual_seed(number)
    model, x = PROBLEMS[number].make(SIZES)
    narrow = dtype != torch.float32
    wanted = EPILOGUES[number].format(
        wide=":f32" * narrow, tenth="mul(0.1)" if narrow else "div(10.0)"
    )
    with torch.no_grad():
        report = fusepass.explain(model.to(dtype), x.to(dtype))
    assert [site.epilogue for site in report.sites] == [wanted]


@pytest.mark.parametrize("number", PROBLEMS)
def test_the_16_bit_kernel_takes_it_whole(number: int) -> None:
    """At the published sizes, as it is in bfloat16."""
    text = EPILOGUES[number].format(wide=":f32", tenth="mul(0.1)")
    demand = Demand.of(Epilogue.parse(text), DType.BF16)
    assert isinstance(demand, Demand), demand
    m, k, n = PROBLEMS[number].sizes
    assert m > MOST_ROWS and plan.choose(m, n, k, demand=demand) is not None


def test_a_problem_is_timed_beside_inductor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(rows, "uncached", lambda: None)  # which is for the whole process
    out = tmp_path / "kernelbench.json"
    given = ["--problems", "40", "68", "--part", "1/2", "--dtypes", "float32", "--small"]
    with without_caches():
        kernelbench.main([*given, "--device", "cpu", "--seconds", "0.01", "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["problem"], row["sites"], row["m"]) == (68, ["clamp(-inf, $0) sub($0)"], 64)
    assert row["difference"] <= 1e-6
    assert row["speedup"] == pytest.approx(row["inductor_ms"] / row["fusepass_ms"], rel=0.05)
