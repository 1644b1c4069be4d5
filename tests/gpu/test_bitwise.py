"""``bitwise`` on the GPU is eager, bit for bit."""

from __future__ import annotations

import pytest
import torch
from epilogues import GELUS, eager, random_epilogue, random_operands
from torch import Tensor

import fusepass.op.linear

F = torch.nn.functional
linear = torch.ops.fusepass.linear
linear_with_preact = torch.ops.fusepass.linear_with_preact


def same_bits(got: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=what)


def problem(dtype: torch.dtype, *sizes: int) -> list[Tensor]:
    m, k, n = sizes
    x, w, b = (torch.randn(*s, device="cuda").to(dtype) for s in ((m, k), (n, k), (n,)))
    if m > 4 and k > 6:
        x[3, 5], x[4, 6], b[0] = float("nan"), float("inf"), float("-inf")
        w[n // 2, 2] = float("inf")
    return [x, w, b]


@pytest.mark.parametrize("dtype", fusepass.op.arguments.DTYPES)
@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("sizes", [(37, 41, 531), (1, 7, 5), (256, 64, 384)])
def test_random_epilogues(dtype: torch.dtype, gelu: str, sizes: tuple[int, int, int]) -> None:
    x, w, b = problem(dtype, *sizes)
    z = F.linear(x, w, b)
    for seed in range(50):
        epilogue = random_epilogue(seed, gelu, operands=seed % 2 == 1)
        device = "cuda" if seed % 4 == 1 else "cpu"
        operands = random_operands(epilogue, seed, dtype=dtype, device=device)
        got = linear(x, w, b, str(epilogue), operands, numerics="bitwise")
        same_bits(got, eager(z, epilogue, operands), f"{epilogue} {operands}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["gelu", "gelu_tanh", "mul(0.3) clamp(-2.1, 1.9) gelu",
                                  "div(3.0)", "mul(-1.7) gelu_tanh div(0.7)"])  # fmt: skip
def test_every_16_bit_value(dtype: torch.dtype, text: str) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32, device="cuda").to(torch.int16)
    x, one = bits.view(dtype)[:, None], torch.ones(1, 1, dtype=dtype, device="cuda")
    z = F.linear(x, one)
    got = linear(x, one, None, text, [], numerics="bitwise")
    same_bits(got, eager(z, fusepass.Epilogue.parse(text), []), text)


@pytest.mark.parametrize("dtype", fusepass.op.arguments.DTYPES)
def test_layouts(dtype: torch.dtype) -> None:
    x, w, b = problem(dtype, 48, 40, 56)
    text = "mul(0.3) clamp(-2.0, 2.0) gelu"
    for view in (x.t().contiguous().t(), x[:, ::2], x.view(4, 12, 40), x[:1].expand(48, 40), x[0],
                 x.view(4, 12, 40).transpose(0, 1), torch.cat([x, x], 1)[:, 3:43]):  # fmt: skip
        weight = w[:, : view.shape[-1]]
        for weights in (weight, weight.t().contiguous().t()):
            for bias in (b, None):
                z = F.linear(view, weights, bias)
                out, kept = linear_with_preact(view, weights, bias, text, [], numerics="bitwise")
                same_bits(kept, z, "z")
                same_bits(out, eager(z, fusepass.Epilogue.parse(text), []), "out")
                assert out.is_contiguous() and kept.is_contiguous()


def test_operand_of_another_dtype() -> None:
    x, w, b = problem(torch.bfloat16, 37, 41, 53)
    z = F.linear(x, w, b)
    for dtype in fusepass.op.arguments.DTYPES:
        for device in ("cpu", "cuda"):
            c = torch.tensor(0.3, dtype=dtype, device=device)
            for text, expected in (("mul($0)", z * c), ("div($0)", z / c)):
                got = linear(x, w, b, text, [c], numerics="bitwise")
                same_bits(got, expected, f"{text} {dtype} {device}")
