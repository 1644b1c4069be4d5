from __future__ import annotations

import math
import pickle

import pytest
import torch
from epilogues import GELUS, eager, random_epilogue, random_operands
from hypothesis import given
from hypothesis import strategies as st

from fusepass.epilogue import Epilogue, Operand, StageCall
from fusepass.stages import MAX_STAGES, STAGES

_scalars = st.one_of(st.floats(allow_nan=False), st.integers(0, 9).map(Operand))
_stages = st.sampled_from(sorted(STAGES)).flatmap(
    lambda name: st.tuples(*[_scalars] * STAGES[name].arity).map(lambda s: StageCall(name, s))
)
_epilogues = st.lists(_stages, min_size=1, max_size=MAX_STAGES).map(lambda s: Epilogue(tuple(s)))


@given(_epilogues)
def test_text_round_trip(epilogue: Epilogue) -> None:
    again = Epilogue.parse(str(epilogue))
    assert again == epilogue
    assert str(again) == str(epilogue)
    assert pickle.loads(pickle.dumps(epilogue)) == epilogue
    assert hash(again) == hash(epilogue)


@pytest.mark.parametrize("value", [-0.0, 5e-324, 1e308, float("inf"), 1 / 3])
def test_numbers_keep_every_bit(value: float) -> None:
    (read,) = Epilogue.parse(f"mul({value!r})").stages[0].scalars
    assert read == value and math.copysign(1, read) == math.copysign(1, value)


def test_canonical_text() -> None:
    assert str(Epilogue.parse("mul(1e400) clamp(-2,2) gelu")) == "mul(inf) clamp(-2.0, 2.0) gelu"
    assert Epilogue.parse("mul($1) clamp(-2.0, $0)").num_operands == 2
    assert Epilogue.parse("mul(3.0) gelu").structure == "mul gelu"


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("mul(0.5) clamp(-2.0, 2.0) gelu", "mul clamp gelu_within_2"),
        ("clamp(2.0, -2.0) gelu mul(3.0) gelu", "clamp gelu_within_2 mul gelu"),
        ("clamp(-2.0, 2.0000002) gelu", "clamp gelu"),
        ("clamp(0.0, inf) gelu", "clamp gelu"),
        ("clamp(-1.0, $0) gelu", "operands clamp gelu"),
        ("mul($0) clamp(-1.0, 1.0) gelu", "operands mul clamp gelu_within_2"),
        ("clamp(-1.0, 1.0) gelu_tanh", "clamp gelu_tanh"),
        ("clamp(-1.0, 1.0) mul(2.0) gelu", "clamp mul gelu"),
    ],
)
def test_a_build_knows_where_a_clamp_leaves_gelu_little(text: str, structure: str) -> None:
    assert Epilogue.parse(text).structure == structure


def test_no_stages_are_an_epilogue_too() -> None:
    nothing = Epilogue.parse("")
    z = torch.randn(3)
    assert nothing == Epilogue(()) and str(nothing) == nothing.structure == ""
    assert torch.equal(nothing.reference(z), z)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("silu", "unknown stage 'silu'"),
        ("mul", "mul takes 1 scalar"),
        ("gelu(1.0)", "gelu takes 0 scalar"),
        ("clamp(1.0)", "clamp takes 2 scalar"),
        ("mul(nan)", "NaN scalar"),
        ("mul(0,5)", "mul takes 1 scalar"),
        ("mul(half)", "'half' is neither a number nor an operand"),
        ("mul(1.0)gelu", "expected a space"),
        ("mul(1.0) (2.0)", "cannot read"),
        ("gelu " * 8 + "gelu", "at most 8 stages"),
        ("mul(__import__('os'))", "mul takes 1 scalar"),
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


def test_reference_counts_operands() -> None:
    with pytest.raises(ValueError, match=r"takes 1 operand\(s\), got 0"):
        Epilogue.parse("mul($0)").reference(torch.ones(1))
