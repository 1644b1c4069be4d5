"""Random epilogues, and tensors for their inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from fusepass.ir import Builder, DType, Epilogue, Input, Output, Z
from fusepass.ir.table import ROWS

WRITTEN = tuple(name for name, row in ROWS.items() if not row.lowered)
# Arguments that are numbers of eager's: a slope, a threshold.
NUMBERS_ONLY = {"softplus", "elu", "celu", "leaky_relu", "softcap", "clamp"}
INPUTS = (
    Z,
    Input("z1"),
    Input("$", 0),
    Input("$", 1),
    Input("col", 0),
    Input("row", 0, DType.F32),
    Input("mat", 0),
    Input("mat", 1, DType.BOOL),
)
# Operations that every machine rounds alike, and numbers that every dtype has.
SAME_EVERYWHERE = (
    "add", "sub", "rsub", "mul", "div", "neg", "reciprocal", "square", "abs", "to",
    "maximum", "minimum", "clamp", "gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or",
    "logical_xor", "logical_not", "where", "floor", "ceil", "trunc", "round", "leaky_relu", "prelu",
    "relu_squared",
)  # fmt: skip
short_number = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 6.0, 0.375, math.inf])
number = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, math.inf, -math.inf]),
    st.floats(-8, 8),
    st.floats(allow_nan=False),
)


@st.composite
def programs(
    draw: Any,
    ops: tuple[str, ...] = WRITTEN,
    rounded: bool = True,
    most: int = 8,
    number: st.SearchStrategy[float] = number,
    plain: bool = False,
) -> Epilogue:
    """Any program: branches, operands of each kind, several outputs, roundings.

    With ``plain`` outputs all of it is stored in z's dtype.
    """
    builder = Builder()
    values: list[Any] = [Z]
    inputs = st.sampled_from(INPUTS)
    for _ in range(draw(st.integers(0, most))):
        op = draw(st.sampled_from(ops))
        args = [draw(st.one_of(st.sampled_from(values), inputs))]
        scalar = number.filter(bool) if op == "celu" else number  # torch refuses an alpha of 0
        for parameter in ROWS[op].parameters[1:]:
            value = st.one_of(st.sampled_from(values), inputs)
            args.append(
                draw(
                    scalar
                    if op in NUMBERS_ONLY
                    else value
                    if parameter == "b"
                    else st.one_of(value, number)
                )
            )
        if ROWS[op].parameters[0] == "v" and op not in NUMBERS_ONLY and len(args) > 1:
            args = draw(st.permutations(args))
        marks = [None, None, DType.BF16, DType.F32]
        roundable = rounded and ROWS[op].result == "v"
        mark = draw(st.sampled_from(marks)) if roundable else None
        values.append(builder.apply(op, *args, rounded=mark))
    outputs = []
    for _ in range(draw(st.integers(1, 3))):
        if plain:
            outputs.append(Output(draw(st.sampled_from(values[-3:]))))
            continue
        kind = draw(st.sampled_from(["store", "store", "col_sum"]))
        dtype = draw(st.sampled_from([None, None, DType.F32]))
        outputs.append(Output(draw(st.sampled_from(values[-3:])), kind, dtype))
    return builder.finish(*outputs)


SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.5, 2.0, 1e-40, -1e-40, 3e38,
           -3e38, 6.5, -7.25, 20.5, 88.8, -103.0, 1e-3)  # fmt: skip


def tensors(epilogue: Epilogue, m: int, n: int, dtype: torch.dtype) -> dict[str, Any]:
    """z, z1 and operands of M×N: random numbers with special ones among them."""

    def one(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, dtype=torch.float64) * 3
        special = torch.tensor(SPECIAL, dtype=torch.float64)[torch.randint(len(SPECIAL), shape)]
        return torch.where(torch.rand(shape) < 0.3, special, values).to(dtype)

    shapes = {"$": (), "col": (n,), "row": (m, 1), "mat": (m, n)}
    known = {(i.kind, i.index): i for i in epilogue.operands}
    operands = []
    for kind, shape in shapes.items():
        for index in range(epilogue.count(kind)):
            operand = known.get((kind, index))
            value = one(*shape)
            wanted = operand.dtype if operand is not None else None
            operands.append(value if wanted is None else value.to(wanted.in_torch))
    z1 = one(m, n) if Input("z1") in epilogue.inputs else None
    counts = {kind: epilogue.count(kind) for kind in shapes}
    return {"z": one(m, n), "operands": operands, "z1": z1, "counts": counts}


def run(epilogue: Epilogue, given: dict[str, Any]) -> Any:
    """``epilogue.reference`` of ``tensors`` made for it, or for a program that reads more."""
    wanted = [(k, i) for k in given["counts"] for i in range(epilogue.count(k))]
    made = [(k, i) for k, count in given["counts"].items() for i in range(count)]
    by_place = dict(zip(made, given["operands"], strict=True))
    z1 = given["z1"] if Input("z1") in epilogue.inputs else None
    return epilogue.reference(given["z"], *(by_place[place] for place in wanted), z1=z1)
