"""What the pointwise kernel computes: eager's division, and in bitwise numerics its rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from host_epilogues import HostEpilogues
from row_cases import every

from fusepass.ir import DType, Epilogue
from fusepass.kernels import library, pointwise
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.problem import BFLOAT16, Problem

BF16, F16, F32, F64 = DType.BF16, DType.F16, DType.F32, DType.F64


@pytest.mark.parametrize(
    ("text", "dtype", "bitwise", "host", "computed"),
    [
        ("mul(0.5) gelu", BF16, False, 0, "mul(0.5) gelu"),
        ("mul(0.5) gelu", BF16, True, 0, "mul(0.5)~bf16 gelu~bf16"),
        ("mul(0.5)~f32 gelu", F16, True, 0, "mul(0.5)~f32 gelu~f16"),
        ("mul(0.5) gelu", F32, False, 0, "mul(0.5)~f32 gelu~f32"),
        ("div(3.0)", BF16, False, 0, "div(3.0)"),
        ("div(3.0)", F16, True, 0, f"mul({1 / 3})~f16"),
        ("div(3.0)", F32, False, 0, f"mul({1 / 3})"),
        ("div(0.0)", F64, False, 0, "mul(inf)"),
        ("div(-0.0)", F64, False, 0, "mul(-inf)"),
        ("div(inf)", F64, False, 0, "mul(0.0)"),
        ("div(1.0, _)", F32, False, 0, "div(1.0, _)"),
        ("div($0) mul($1)", F32, False, 0b01, "mul($2) mul($1)"),
        ("div($0) mul($1)", F32, False, 0b10, "div($0) mul($1)"),
        ("div($1) mul($0)", F32, False, 0b11, "mul($3) mul($0)"),
        ("div($0)", BF16, False, 0b1, "div($0)"),
        ("v0 = gt(0.0); where(v0, _, 2.0)", BF16, True, 0, "v0 = gt(0.0); where(v0, _, 2.0)~bf16"),
    ],
)
def test_program(text: str, dtype: DType, bitwise: bool, host: int, computed: str) -> None:
    found = pointwise.program(Epilogue.parse(text), dtype, bitwise, host)
    assert found == Epilogue.parse(computed)


def test_only_what_is_divided_by_makes_another_kernel() -> None:
    assert pointwise.divisors(Epilogue.parse("mul($0) div($2) clamp($1, 1.0) div(2.0)")) == 0b100
    assert pointwise.divisors(Epilogue.parse("div($0, _)")) == 0


CHAINS = ("mul(0.3) clamp(-1.7, 2.3) mul(-1.9)", "div(0.7) add(0.1) neg", "mul(3.0) div(7.0) abs")


@pytest.mark.parametrize("dtype", [BF16, F16], ids=lambda d: d.value)
def test_bitwise_rounds_where_eager_does(host_compiler: str, tmp_path: Path, dtype: DType) -> None:
    """On every value. Eager on a GPU multiplies with the divisor's reciprocal in float32."""
    cases = [(pointwise.program(Epilogue.parse(t), dtype, True), dtype) for t in CHAINS]
    host = HostEpilogues(host_compiler, tmp_path, cases)
    z = every(dtype.in_torch)
    for text, case in zip(CHAINS, cases, strict=True):
        eager = z
        for node in Epilogue.parse(text).nodes:
            (number, *more) = [a.value for a in node.args[1:]] or [0.0]
            wide = eager.float()
            if node.op == "div":
                wide = wide * torch.tensor(1.0 / number).float()
            else:
                step = {"mul": torch.mul, "add": torch.add}.get(node.op)
                wide = step(wide, number) if step else {
                    "clamp": lambda v, n=number, m=more: v.clamp(n, *m), "neg": torch.neg,
                    "abs": torch.abs}[node.op](wide)  # fmt: skip
            eager = wide.to(dtype.in_torch)
        (got,) = host(case, z.double().numpy())
        np.testing.assert_array_equal(got, eager.double().numpy())


def test_a_program_that_is_too_large_is_left_to_torch() -> None:
    """Its macros have more operations in 16 bits than a kernel takes: never an error."""
    text = " ".join(["celu(1.5) prelu($0)"] * 14)
    described = library.describe(text, BFLOAT16, False)
    assert described[4] == [1, 0, 0, 0] and described[-2:] == ([], 0)
    with pytest.raises(ValueError, match="at most"):
        pointwise.build(Epilogue.parse(text), BF16, False, 0, "90a")


def test_what_needs_a_stack_is_not_tried_in_a_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "build_first", lambda *args: (0, Path("built")))
    for text, fused in (("mul(0.5) silu", True), ("mul(0.5) sin", False), ("cos", False)):
        problem = Problem(text, BFLOAT16, 8192, 3072, 768, False, False)
        assert (library.plan_for(problem, "90a", 132) is not None) is fused
