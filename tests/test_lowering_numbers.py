"""The numbers of the code that Inductor generates for the op, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from epilogues import eager, without_cancellation
from test_lowering import DTYPES, OPS, SITE, _calls, _code
from test_numerics import FUNCTION, normal, unit
from torch import Tensor

from fusepass import Epilogue
from fusepass.op import lowering

pytestmark = pytest.mark.usefixtures("one_thread")

_SIZE = 1 << 16  # every value of 16 bits


def _ops(
    texts: Sequence[str], operands: Sequence[Tensor], z: Tensor, numerics: str = "accurate"
) -> list[Tensor]:
    """The ops, compiled, of these pre-activations: they are the bias of a product that is zero.

    They are compiled together, and all of one size: a kernel that two tests have is compiled once.
    """

    def call(x: Tensor, w: Tensor, b: Tensor, operands: list[Tensor]) -> list[Tensor]:
        return [OPS.linear(x, w, b, text, operands, numerics=numerics).clone() for text in texts]

    lowering.register()
    x, w, b = z.new_zeros(3, 4), z.new_zeros(_SIZE, 4), z.new_zeros(_SIZE)
    b[: z.numel()] = z
    outs, code = _code(call, x, w, b, list(operands))
    assert _calls(code) == len(texts) * (numerics == "bitwise")
    for out in outs:
        assert all(torch.equal(row.view(torch.uint8), out[0].view(torch.uint8)) for row in out)
    return [out[0, : z.numel()] for out in outs]


_SHORT_TEXTS = (
    "gelu", "gelu_tanh", "mul(0.3)", "div(3.0)", "mul(0.3) clamp(-2.1, 1.9) gelu", SITE,
    "mul(0.5) mul(0.3)", "clamp(-0.1, 0.1) mul(3.0)", "mul(-0.9) gelu_tanh div(0.7)",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_values_are_rounded_once(dtype: torch.dtype) -> None:
    """Every value: within 2^-12 or 2^-15 of the exact one, relatively, and then rounded."""
    z = normal(dtype)
    for text, out in zip(_SHORT_TEXTS, _ops(_SHORT_TEXTS, [], z), strict=True):
        exact = without_cancellation(Epilogue.parse(text), z.double())
        off = (out.double() - exact).abs()
        off[exact.abs() > torch.finfo(dtype).max] = 0.0
        tail = 2.0**-44 if dtype is torch.bfloat16 else 0.0
        function = FUNCTION[dtype] * exact.abs()
        if "gelu" not in text:
            function *= 2.0**-7  # float32's own
        assert bool((off <= unit(exact, dtype) / 2 + function.clamp(min=tail)).all()), text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_quotients_and_bounds_are_eagers(dtype: torch.dtype) -> None:
    texts = ("mul(0.3)", "div(3.0)", "div(0.7)", "clamp(-2.1, 1.9)")
    z = torch.randn(1001, dtype=dtype) * torch.exp2(torch.randint(-140, 120, (1001,)))
    for text, out in zip(texts, _ops(texts, [], z), strict=True):
        assert torch.equal(out, eager(z, Epilogue.parse(text), [])), text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gelu_is_as_exact_as_eagers(dtype: torch.dtype) -> None:
    """Its largest error and the norm of its errors."""
    texts = ("gelu", "gelu_tanh", "clamp(-2.0, 2.0) gelu")
    z = torch.linspace(-6, 6, 50_001, dtype=dtype)
    for text, out in zip(texts, _ops(texts, [], z), strict=True):
        epilogue = Epilogue.parse(text)
        exact = without_cancellation(epilogue, z.double())
        ours = (out.double() - exact).abs()
        theirs = (eager(z, epilogue, []).double() - exact).abs()
        assert ours.max() <= theirs.max(), text
        assert ours.norm() <= theirs.norm(), text


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_are_those_of_float64(dtype: torch.dtype) -> None:
    texts = ("gelu", "gelu_tanh", SITE, "clamp(0.0, inf)", "clamp(2.0, -2.0)")
    largest, inf, nan = torch.finfo(dtype).max, torch.inf, torch.nan
    z = torch.tensor([inf, nan, -inf, 0.0, -0.0, largest, -largest] * 5, dtype=dtype)
    cancelled = 64 if dtype is torch.float32 else 1  # 1 + erf(-1.4), as eager has it
    close = torch.finfo(dtype).eps * cancelled
    for text, out in zip(texts, _ops(texts, [], z), strict=True):
        exact = eager(z.double(), Epilogue.parse(text), []).to(dtype)
        torch.testing.assert_close(
            out, exact, rtol=close, atol=0.0, equal_nan=True, msg=lambda m, t=text: f"{t}: {m}"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scalars_at_run_time(dtype: torch.dtype) -> None:
    """Of every type and of any shape with one element; one bound may be a number."""
    text = "mul($0) clamp(-1.5, $1) div($2) clamp($1, $3) mul($4)"
    z = torch.randn(999, dtype=dtype)
    scalars = [torch.tensor(v, dtype=d) for v, d in zip((1.7, 2.3, 0.6, 3.1), DTYPES, strict=True)]
    scalars = [*scalars, torch.tensor([[0.7]])]
    exact = eager(z.double(), Epilogue.parse(text), [v.double().reshape(()) for v in scalars])
    close = torch.finfo(dtype).eps * (1 if dtype in (torch.bfloat16, torch.float16) else 4)
    (out,) = _ops([text], scalars, z)
    torch.testing.assert_close(out.double(), exact, rtol=close, atol=0)


def test_bitwise_is_eagers_sequence() -> None:
    z = torch.randn(999).bfloat16()
    text = "mul(0.3) clamp(-2.0, 2.0) gelu"
    (out,) = _ops([text], [], z, "bitwise")
    assert torch.equal(out, eager(z, Epilogue.parse(text), []))
