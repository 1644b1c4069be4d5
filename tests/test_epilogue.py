from __future__ import annotations

import math

import pytest
import torch
from epilogues import GELUS, eager, random_epilogue, random_operands

from fusepass import Epilogue


@pytest.mark.parametrize("value", [-0.0, 5e-324, 1e308, float("inf"), 1 / 3])
def test_numbers_keep_every_bit(value: float) -> None:
    (read,) = Epilogue.parse(f"mul({value!r})").numbers
    assert read == value and math.copysign(1, read) == math.copysign(1, value)


def test_canonical_text() -> None:
    assert str(Epilogue.parse("mul(1e400) clamp(-2,2) gelu")) == "mul(inf) clamp(-2.0, 2.0) gelu"
    assert Epilogue.parse("mul($1) clamp(-2.0, $0)").num_operands == 2


def test_no_operation_is_an_epilogue_too() -> None:
    nothing = Epilogue.parse("")
    z = torch.randn(3)
    assert nothing == Epilogue() and str(nothing) == nothing.key == ""
    assert torch.equal(nothing.reference(z), z)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gelo", "unknown operation 'gelo'"),
        ("mul", r"mul takes 1 argument\(s\) beside its own, got none"),
        ("gelu(1.0)", "gelu takes 0 argument"),
        ("clamp(1.0)", "clamp takes 2 argument"),
        ("mul(nan)", "NaN scalar"),
        ("mul(0,5)", "mul takes 1 argument"),
        ("mul(half)", "'half' is neither a number nor an operand"),
        ("mul(1.0)gelu", "expected a space"),
        ("mul(1.0) (2.0)", "cannot read"),
        ("gelu " * 64 + "gelu", "at most 64 operations"),
        ("mul(__import__('os'))", "expected a space"),
    ],
)
def test_bad_text_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Epilogue.parse(text)


@pytest.mark.parametrize("seed", range(10))
def test_reference_is_what_eager_computes(seed: int) -> None:
    epilogue = random_epilogue(seed, GELUS[seed % 2], operands=True)
    operands = random_operands(epilogue, seed)
    z = torch.randn(5, 7)
    torch.testing.assert_close(
        epilogue.reference(z, *operands), eager(z, epilogue, operands), rtol=0, atol=0
    )


@pytest.mark.parametrize("bound", [1e5, -1e5, 65510.0, 65520.0])
def test_a_bound_beyond_the_dtype_is_what_it_rounds_it_to(bound: float) -> None:
    z = torch.tensor([math.inf, -math.inf, 1.0, math.nan], dtype=torch.float16)
    found = Epilogue.parse(f"clamp(-inf, {bound})").reference(z)
    wanted = torch.minimum(z, torch.tensor(bound).half())
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_reference_counts_operands() -> None:
    with pytest.raises(ValueError, match=r"takes 1 operand\(s\), got 0"):
        Epilogue.parse("mul($0)").reference(torch.ones(1))
