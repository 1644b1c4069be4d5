"""However it is written, the seed's sequence is one site with one text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import SITE, Model, Tail, check, compose, fuse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusepass import Epilogue
from fusepass.ir import DType
from fusepass.ir.fold import fold
from fusepass.ir.rule import Site


def constant(value: float) -> torch.Tensor:
    return torch.tensor(value)


SCALES: dict[str, Tail] = {
    "x*c": lambda x: x * 0.5,
    "c*x": lambda x: 0.5 * x,
    "x/2": lambda x: x / 2,
    "mul": lambda x: x.mul(0.5),
    "mul_": lambda x: x.mul_(0.5),
    "div_": lambda x: x.div_(2.0),
    "torch.mul": lambda x: torch.mul(x, 0.5),
    "true_divide": lambda x: torch.true_divide(x, 2),
    "multiply": lambda x: torch.multiply(x, 0.5),
    "tensor": lambda x: x * constant(0.5),
    "full": lambda x: x * torch.full((), 0.5),
    "full_like": lambda x: x * torch.full_like(x, 0.5),
    "two negations": lambda x: -(x * -0.5),
    "chain": lambda x: x * 1.0 * 0.5,
}

CLAMPS: dict[str, Tail] = {
    "Hardtanh": nn.Hardtanh(-2, 2),
    "Hardtanh inplace": nn.Hardtanh(-2, 2, inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, -2.0, 2.0),
    "hardtanh_": lambda x: F.hardtanh_(x, -2.0, 2.0),
    "clamp": lambda x: torch.clamp(x, -2, 2),
    "clamp keywords": lambda x: x.clamp(max=2, min=-2),
    "clamp_": lambda x: x.clamp_(-2, 2),
    "clip": lambda x: torch.clip(x, -2, 2),
    "two sides": lambda x: x.clamp(min=-2).clamp(max=2),
    "two sides, upper first": lambda x: x.clamp(max=2).clamp(min=-2),
    "clamp_min_": lambda x: x.clamp_min_(-2).clamp_max_(2),
    "minimum maximum": lambda x: torch.minimum(torch.maximum(x, constant(-2.0)), constant(2.0)),
    "maximum on the left": lambda x: torch.maximum(constant(-2.0), torch.minimum(constant(2.0), x)),
    "min max": lambda x: torch.min(torch.max(x, torch.full((), -2.0)), torch.full_like(x, 2.0)),
    "clamp tensors": lambda x: torch.clamp(x, constant(-2.0), constant(2.0)),
}

GELUS: dict[str, Tail] = {
    "GELU": nn.GELU(),
    "F.gelu": F.gelu,
    "x*0.5*(1.0+erf(x/sqrt(2)))": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "0.5*x*(1+erf(x*0.707))": lambda x: 0.5 * x * (1 + torch.erf(x * 0.7071067811865476)),
    "ndtr": lambda x: x * torch.special.ndtr(x),
    "erfc": lambda x: 0.5 * x * torch.erfc(-x / math.sqrt(2)),
    "shared argument": lambda x: (lambda y: y * (1 + torch.erf(y)) / math.sqrt(2))(x / 2**0.5),
    "sum": lambda x: 0.5 * x + x * torch.erf(x / math.sqrt(2)) * 0.5,
    "tensor sqrt 2": lambda x: x * 0.5 * (1 + torch.erf(x / torch.tensor(math.sqrt(2)))),
    "root of a tensor": lambda x: x * 0.5 * (1 + torch.erf(x / torch.sqrt(constant(2.0)))),
    "numpy": lambda x: x * 0.5 * (1 + torch.erf(x / np.sqrt(2.0))),
}

TANHS: dict[str, Tail] = {
    "GELU tanh": nn.GELU(approximate="tanh"),
    "GPT-2": lambda x: (
        0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
    ),
    "BERT gelu_new": lambda x: (
        x * 0.5 * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    ),
    "BERT gelu_fast": lambda x: (
        0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))
    ),
    "Megatron": lambda x: (
        x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))
    ),
    "root of a tensor": lambda x: (
        0.5 * x * (1 + torch.tanh(torch.sqrt(constant(2 / math.pi)) * (x + 0.044715 * x.pow(3))))
    ),
    "numpy": lambda x: (
        0.5 * x * (1 + torch.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * torch.pow(x, 3))))
    ),
    "sigmoid": lambda x: (
        x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    ),
    "exp": lambda x: (
        x / (1 + torch.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}  # fmt: skip


DEFAULT = (SCALES["x*c"], CLAMPS["Hardtanh"], GELUS["GELU"])
CASES = [pytest.param((s, *DEFAULT[1:]), id=f"scale {n}") for n, s in SCALES.items()]
CASES += [pytest.param((DEFAULT[0], c, DEFAULT[2]), id=f"clamp {n}") for n, c in CLAMPS.items()]
CASES += [pytest.param((*DEFAULT[:2], g), id=f"gelu {n}") for n, g in GELUS.items()]


@pytest.mark.parametrize("tails", CASES)
def test_every_spelling_is_the_same_site(tails: tuple[Tail, ...]) -> None:
    """In 16 bits, where torch puts casts around every step; the random test below has float32."""
    x = torch.randn(6, 24, dtype=torch.bfloat16)
    assert check(Model(compose(*tails), torch.bfloat16), x, [SITE]) == []


@pytest.mark.parametrize("name", TANHS)
def test_every_spelling_of_tanh_gelu(name: str) -> None:
    x = torch.randn(6, 24, dtype=torch.float16)
    assert check(Model(TANHS[name], torch.float16), x, ["gelu_tanh"]) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
def test_every_dtype(dtype: torch.dtype, numerics: str) -> None:
    x = torch.randn(6, 24, dtype=dtype)
    assert check(Model(compose(*DEFAULT), dtype), x, [SITE], numerics) == []


ORDERS = {
    "mul(3.0) gelu": lambda x: F.gelu(x * 3),
    "clamp(-1.0, 1.0) gelu mul(2.0)": lambda x: F.gelu(F.hardtanh(x)) * 2,
    "gelu gelu": lambda x: F.gelu(F.gelu(x)),
    "gelu_tanh gelu": lambda x: F.gelu(F.gelu(x, approximate="tanh")),
    "clamp(0.0, inf)": F.relu,
    "clamp(0.0, 6.0)": F.relu6,
    "clamp(-inf, 1.5)": lambda x: x.clamp(max=1.5),
    "mul(-1.0)": lambda x: -x,
    "div(3.0)": lambda x: x / 3,
    "mul(6.0)": lambda x: (x * 2) * 3,
    "mul(2.0) mul(0.25)": lambda x: x * 2 * 0.25,
    "clamp(0.0, inf) mul(0.5) clamp(0.0, inf)": lambda x: F.relu(F.relu(x) / 2),
    "clamp(-1.0, 2.0) clamp(0.0, 3.0)": lambda x: x.clamp(-1, 2).clamp(0, 3),
    "clamp(2.0, 1.0)": lambda x: x.clamp(2, 1),
    "clamp(-inf, 1.0) clamp(2.0, inf)": lambda x: x.clamp(max=1).clamp(min=2),
    "mul(inf)": lambda x: x * math.inf,
    "div(0.0)": lambda x: x / 0,
    "div(1e-39)": lambda x: x / 1e-39,
    "mul(-1.0) gelu": lambda x: F.gelu(F.hardtanh(-x, -math.inf, math.inf) * 1.0),
}


@pytest.mark.parametrize("epilogue", ORDERS)
def test_any_order_and_repetition(epilogue: str) -> None:
    model = Model(ORDERS[epilogue])
    with torch.no_grad():
        fused = fuse(model)
        x = torch.randn(6, 24)
        torch.testing.assert_close(fused(x), model(x), equal_nan=True)
    assert fused.epilogues == [epilogue] and fused.reasons == []


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data())
def test_random_stages_in_random_spellings(data: st.DataObject) -> None:
    """Stages in any order, each spelled in any way: the text is exact and the numbers agree."""
    spellings = [("mul(0.5)", SCALES), ("clamp(-2.0, 2.0)", CLAMPS)]
    spellings += [("gelu", GELUS), ("gelu_tanh", TANHS)]
    text, tails = [], []
    for name, ways in data.draw(st.lists(st.sampled_from(spellings), min_size=1, max_size=5)):
        text.append(name)
        tails.append(ways[data.draw(st.sampled_from(sorted(ways)))])
    torch._dynamo.reset()
    folded = fold(Epilogue.parse(" ".join(text)), Site(DType.F32))
    assert check(Model(compose(*tails)), torch.randn(6, 24), [str(folded)]) == []
