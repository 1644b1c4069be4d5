"""Lowering keeps the function, and float32, float64 and rounded programs keep every operation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from host_epilogues import HostEpilogues
from hypothesis import given, settings
from ir_programs import WRITTEN, programs, short_number, tensors
from row_cases import every, inputs, program

from fusepass.ir import DType, Epilogue
from fusepass.ir.lower import lower
from fusepass.ir.table import ROWS

SHORT, LONG = (DType.BF16, DType.F16), (DType.F32, DType.F64)


@pytest.mark.parametrize("dtype", SHORT, ids=lambda d: d.value)
@pytest.mark.parametrize("name", WRITTEN)
def test_each_operation(name: str, dtype: DType) -> None:
    z, *mats = (v.double() for v in inputs(name, every(dtype.in_torch)))
    wanted = program(name).reference(z, *mats)
    got = lower(program(name), dtype).reference(z, *mats)
    # 1 + erf and the like cancel in float64, too.
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(
    "text",
    [
        "mul(0.5) clamp(-2.0, 2.0) gelu",
        "mul(0.5) clamp(-3.0, 2.0) gelu",
        "mul($0) clamp(-1.0, $1) gelu add(mat0)",
        "clamp(-1.0, 1.0) gelu",
        "tanh gelu",
        "mul(1e-3) minimum(0.5) gelu",
        "v0 = mul(0.5); v0 gelu mul(v0)",
        "v0 = mul(2.0) clamp(-1.0, 1.0); v0 gelu, v0",
        "softplus(2.0, 3.0)",
        "softplus(-0.5, 20.0)",
        "softplus(1.0, 0.5) tanh mul(z)",
        "clamp(0.0, inf) clamp(-inf, 6.0)",
        "clamp(2.0, 1.0) div(3.0)",
        "softcap(50.0) softsign celu(0.5)",
    ],
)
def test_programs(text: str) -> None:
    epilogue = Epilogue.parse(text)
    for dtype in (*SHORT, *LONG):
        given_ = tensors(epilogue, 64, 64, torch.float32)
        z, operands = given_["z"].double(), [v.double() for v in given_["operands"]]
        for got, wanted in zip(
            *(as_tuple(e.reference(z, *operands)) for e in (lower(epilogue, dtype), epilogue)),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-12, equal_nan=True)


OVERFLOWING = (
    "mul(-3.0) gelu",
    "mul(3.0) minimum(1.0) gelu",
    "mul(1.5) clamp(-inf, 1.0) gelu",
    "mul(-3.0) clamp(-2.0, 2.0) gelu",
    "mul(0.5) gelu",
    "mul($0) gelu",
    "mul($0) maximum(-1.0) gelu",
)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32], ids=lambda d: d.value)
def test_what_overflows_is_not_finite_where_eager_is_not(
    host_compiler: str, tmp_path: Path, dtype: DType
) -> None:
    """A factor of 3 makes -inf of the largest numbers, and GELU of that is NaN."""
    cases = [(Epilogue.parse(text), dtype) for text in OVERFLOWING]
    host, z = HostEpilogues(host_compiler, tmp_path, cases), every(torch.bfloat16)
    for text, case in zip(OVERFLOWING, cases, strict=True):
        operands = [-3.0] * case[0].num_operands
        before = Epilogue.parse(text.removesuffix(" gelu")).reference(z.float(), *operands)
        got = host(case, z.double().numpy(), operands=operands)[0]
        nan = before.isnan() | (before == -math.inf)  # which is torch's, too
        np.testing.assert_array_equal(np.isnan(got), nan.numpy(), text)


def as_tuple(results: object) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


@given(programs(number=short_number))
@settings(max_examples=200)
def test_no_operation_is_lost_where_all_digits_count(epilogue: Epilogue) -> None:
    for dtype in LONG:
        lowered = lower(epilogue, dtype)
        assert len(lowered.nodes) == len(epilogue.nodes)
        for before, after in zip(epilogue.nodes, lowered.nodes, strict=True):
            assert before.rounded == after.rounded
            one_sided = before.op == "clamp" and after.op in ("maximum", "minimum")
            shorter = dtype is DType.F32 and (before.op, after.op) == ("gelu", "gelu_within_2")
            assert one_sided or shorter or before == after


@given(programs(tuple(n for n in WRITTEN if ROWS[n].is_macro)))
@settings(max_examples=100)
def test_what_is_left_has_a_device_text(epilogue: Epilogue) -> None:
    for dtype in SHORT:
        lowered = lower(epilogue, dtype)
        assert all(ROWS[node.op].exact or ROWS[node.op].fast for node in lowered.nodes)
        assert lower(lowered, dtype) == lowered
