"""Interval facts hold for every value that is computed, in any dtype."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from ir_programs import SPECIAL, WRITTEN, programs, short_number, tensors

from fusepass.ir import Builder, DType, Epilogue, Output, Ref, Z
from fusepass.ir.interval import Interval, intervals


def value_of(epilogue: Epilogue, index: int) -> Epilogue:
    """The program that stores node ``index`` of ``epilogue``, unrounded."""
    builder = Builder()
    for node in epilogue.nodes:
        builder.apply(node.op, *node.args, rounded=node.rounded)
    return builder.finish(Output(Ref(index), dtype=DType.F64))


@given(programs(tuple(op for op in WRITTEN if op != "clamp"), most=6, number=short_number))
@settings(max_examples=300)
def test_every_value_lies_in_its_interval(epilogue: Epilogue) -> None:
    facts = intervals(epilogue)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for index, fact in enumerate(facts):
            check(value_of(epilogue, index), fact, dtype)


@given(
    programs(
        ("clamp", "gelu", "mul", "add", "tanh", "maximum", "where", "gt", "abs"),
        number=short_number,
    )
)
@settings(max_examples=150)
def test_of_clamps_too(epilogue: Epilogue) -> None:
    for index, fact in enumerate(intervals(epilogue)):
        check(value_of(epilogue, index), fact, torch.float64)


def check(single: Epilogue, fact: Interval, dtype: torch.dtype) -> None:
    given_ = tensors(single, 4, len(SPECIAL), dtype)
    given_["z"][0] = torch.tensor(SPECIAL)
    values = single.reference(given_["z"], *given_["operands"], z1=given_["z1"])
    values = values[~values.isnan()]
    assert torch.all((values >= fact.lo) & (values <= fact.hi)), (str(single), fact, values)


@pytest.mark.parametrize(
    ("text", "lo", "hi"),
    [
        ("clamp(-2.0, 2.0)", -2, 2),
        ("clamp(3.0, 1.0)", 1, 1),
        ("clamp(-8.0, 4.0) mul(-0.5) clamp(-inf, 1.0) abs", 0, 2.1),
        ("maximum(1.0)", 1, math.inf),
        ("gt(0.0) where(1.5, -2.0)", -2, 1.5),
        ("mul(mat0:bool)", -math.inf, math.inf),
        ("mat0:bool mul(0.5)", -0.01, 0.51),
        ("neg", -math.inf, math.inf),
        ("clamp(0.0, inf) neg", -math.inf, 0),
    ],
)
def test_known_intervals(text: str, lo: float, hi: float) -> None:
    fact = intervals(Epilogue.parse(text))[-1]
    assert lo <= fact.lo and fact.hi <= hi, fact


@pytest.mark.parametrize("op", ["sigmoid", "tanh", "erf", "sin", "cos", "hardsigmoid"])
def test_bounded_functions(op: str) -> None:
    builder = Builder()
    fact = intervals(builder.finish(builder.apply(op, Z)))[-1]
    assert fact.magnitude < 1.02
