"""Every row of the table of operations, in every kernel, on every 16-bit value of z."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.ir import DType, Epilogue
from fusepass.ir.table import ROWS
from fusepass.kernels import load_binding, plan_kernel
from fusepass.kernels.library import ON_THE_STACK
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan import tf32 as plan_tf32
from fusepass.kernels.plan.problem import plan_code

sys.path.insert(0, str(Path(__file__).parents[1] / "ir"))
from row_cases import ARGUMENTS, every, exact

# float32 at both precisions; the others know but one.
KINDS = (
    (torch.float16, "highest"), (torch.bfloat16, "highest"), (torch.float64, "highest"),
    (torch.float32, "highest"), (torch.float32, "high"),
)  # fmt: skip
# Arithmetic that is rounded alike by everyone, and what eager computes by the very same formula.
KNOWN_BITS = ("add", "sub", "mul", "div", "neg", "abs", "square", "maximum", "minimum", "clamp",
              "gelu", "gelu_tanh")  # fmt: skip
NUMBERS = {"add": (0.7,), "sub": (0.7,), "mul": (-0.4,), "div": (3.0,), "maximum": (0.8,),
           "minimum": (0.8,), **ARGUMENTS}  # fmt: skip
N, K = 256, 256


def programs() -> Iterator[str]:
    """The text of every row that takes one tensor and numbers."""
    for name, row in ROWS.items():
        if row.lowered or row.result != "v" or "b" in row.parameters:
            continue
        if row.arity == 1:
            yield name
        elif name in NUMBERS:
            yield f"{name}({', '.join(map(repr, NUMBERS[name]))})"


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]} {kind[1]}")
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_float32_matmul_precision()
    found, precision = request.param
    torch.set_float32_matmul_precision(precision)
    yield found
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=["pointwise", pytest.param("fused", marks=pytest.mark.hopper)])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which kernel runs, whatever the plan thinks of it."""
    seconds = 1.0 if request.param == "fused" else 0.0
    planners = (plan, plan_f32, plan_tf32)
    for planner in planners:
        monkeypatch.setattr(planner, "hybrid_seconds", lambda *args: seconds)
    plan.choose.cache_clear()
    assert load_binding()
    torch.ops.fusepass._forget_plans()
    yield request.param
    plan.choose.cache_clear()
    torch.ops.fusepass._forget_plans()


def of_every_value(text: str, dtype: torch.dtype, way: str, numerics: str) -> tuple[Tensor, Tensor]:
    """z, [65536], and the op's results."""
    values = every(dtype if dtype.itemsize == 2 else torch.bfloat16).to("cuda", dtype)
    x = torch.zeros(len(values), K, device="cuda", dtype=dtype)
    w = torch.zeros(N, K, device="cuda", dtype=dtype)
    x[:, 0], w[:, 0] = values, 1
    if numerics == "accurate" and dtype is not torch.float64:
        problem = (text, plan_code(dtype), len(values), N, K, False, False)
        two = way == "pointwise" or text in ON_THE_STACK
        assert (plan_kernel(*problem, False, 0) == "hybrid") is two
    out = torch.ops.fusepass.linear(x, w, None, text, [], numerics=numerics)
    assert torch.equal(out.nan_to_num(), out[:, :1].expand(-1, N).nan_to_num())
    z = torch.nn.functional.linear(x, w[:1])[:, 0]
    assert torch.equal(z.nan_to_num(), values.nan_to_num())
    return z, out[:, 0]


def distance(text: str, dtype: torch.dtype, wanted: Tensor) -> Tensor:
    """How far a result may be from ``wanted``, float64: half a unit and what the row is off."""
    row, info = ROWS[text.partition("(")[0]], torch.finfo(dtype)
    unit = torch.exp2(wanted.abs().clamp_min(info.smallest_normal).log2().floor()) * info.eps
    bf16 = DType.of(dtype) is DType.BF16
    error, floor = (2.0**-12, row.floor_bf16) if bf16 else (row.error, row.floor)
    return unit / 2 + (error * wanted.abs()).clamp_min(max(floor, row.floor)) + 2.0**-149


def in_float64(text: str, z: Tensor) -> Tensor:
    """Of z, without the cancellation of torch's own formulas where the row is one of those."""
    if "(" in text:
        found = Epilogue.parse(text).reference(z.double())
        assert isinstance(found, Tensor)
        return found
    return torch.from_numpy(exact(text, [z.cpu()])).to(z.device)


def as_eager_or_the_formula(text: str, z: Tensor) -> list[Tensor]:
    """What float32 and float64 results may be near to: eager's value, and its formula's where eager
    multiplies by a sixth that is rounded to float32 in float64, too."""
    texts = [text, *(ROWS[t].expansion for t in ("hardswish", "hardsigmoid") if t == text)]
    found = [Epilogue.parse(t).reference(z) for t in texts]
    return [v for v in found if isinstance(v, Tensor)]


@pytest.mark.parametrize("text", [*programs()])
def test_accurate(text: str, dtype: torch.dtype, way: str) -> None:
    z, out = of_every_value(text, dtype, way, "accurate")
    eager = Epilogue.parse(text).reference(z.float() if dtype.itemsize == 2 else z)
    assert isinstance(eager, Tensor)
    assert torch.equal(out.isnan(), eager.isnan())
    if dtype.itemsize > 2:
        # The same operations; a contraction may differ, which 1 + erf and 1 + tanh make more of.
        number, eps = eager.isfinite(), torch.finfo(dtype).eps
        assert torch.equal(out[~number].nan_to_num(), eager[~number].nan_to_num())
        near = [
            (out - v).abs() - eps * (16 * v.abs() + 4 * z.abs().nan_to_num(0.0, 0.0))
            for v in as_eager_or_the_formula(text, z)
        ]
        assert float(torch.stack(near).amin(0)[number].max()) <= 0
        return
    wanted = in_float64(text, z)
    number = eager.isfinite() & (wanted.abs() <= torch.finfo(dtype).max)
    beyond = (out.double() - wanted).abs() - distance(text, dtype, wanted)
    beyond[~number] = 0
    worst = int(beyond.argmax())
    assert float(beyond[worst]) <= 0, (float(z[worst]), float(out[worst]), float(wanted[worst]))


@pytest.mark.parametrize("text", [t for t in programs() if t.partition("(")[0] in KNOWN_BITS])
def test_bitwise(text: str, dtype: torch.dtype) -> None:
    z, out = of_every_value(text, dtype, "pointwise", "bitwise")
    eager = Epilogue.parse(text).reference(z)
    assert isinstance(eager, Tensor)
    number = ~eager.isnan()
    assert torch.equal(out.isnan(), ~number) and torch.equal(out[number], eager[number])
