"""Folding rules: each fires, and none changes a value by more than it says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_programs import SPECIAL, WRITTEN, programs, run, short_number, tensors

from fusepass.ir import DType, Epilogue
from fusepass.ir.fold import fold
from fusepass.ir.rule import Rule, Site
from fusepass.ir.rules import RULES

SITES = tuple(map(Site, (DType.BF16, DType.F32, DType.F64)))
# For each rule texts that it rewrites; # is any number.
PATTERNS = {
    "what commutes begins with the chain": ["mat0 add(z)", "mul(#, _)", "gelu add(z, _)"],
    "subtraction begins with the chain": ["sub(#, _)", "v0 = tanh; abs rsub(v0)", "z1 sub(z)"],
    "-a = a * -1": ["neg", "neg~bf16"],
    "max, min with a number = clamp": ["maximum(#)", "minimum(#)"],
    "powers that eager computes otherwise": [
        f"pow({e})" for e in (0.5, 2.0, 3.0, -1.0, -0.5, -2.0)
    ],
    "1 / a = reciprocal(a)": ["div(1.0, _)"],
    "a * a = square(a)": ["mul(z)", "v0 = tanh; v0 mul(v0)"],
    "nothing to do": [
        "gelu mul(1.0)", "div(1.0)", "add(0.0)", "add(-0.0)", "sub(0.0)", "sub(-0.0)", "pow(1.0)",
        "to", "clamp(-inf, inf)",
    ],
    "a sign that is not seen": ["mul(-1.0) abs", "abs abs", "mul(-1.0) square", "abs square"],
    "condition != 0": ["gt(#) ne(0.0)", "mat0:bool ne(0.0)"],
    "not not": ["gt(#) logical_not logical_not"],
    "where(not c, a, b) = where(c, b, a)": [
        "gt(#) logical_not where(z, #)", "gt(#) where(z, z)",
    ],
    "a / 2^n = a * 2^-n": ["div(0.25)", "div(-4096.0)", "div(4.0)~bf16"],
    "a / c = a * (1/c), 16 bits": ["div(#)"],
    "a * c * -1 = a * -c": ["mul(#) mul(-1.0)", "mul(-1.0) mul(#)"],
    "a * c * d = a * cd": ["mul(#) mul(#)"],
    "two one-sided clamps": ["clamp(#, inf) clamp(-inf, #)", "clamp(-inf, 2.0) clamp(-1.0, inf)"],
}  # fmt: skip
# And texts that it rewrites for some numbers only.
ALSO = {
    "nothing to do": ["mul(#)", "div(#)", "add(#)", "sub(#)", "pow(#)", "clamp(#, #)"],
    "two one-sided clamps": [
        "clamp(-inf, #) clamp(#, inf)", "clamp(#, inf) clamp(#, #)", "clamp(#, #) clamp(-inf, #)",
    ],
    "a / 2^n = a * 2^-n": ["div(#)"],
    "condition != 0": ["gt(#) ne(#)", "ne(#)"],
}  # fmt: skip
# Texts that look like it and must stay.
KEPT = {
    "nothing to do": ["mul(1.0)~bf16", "mul(-1.0)", "rsub(0.0)", "add(1e-30)"],
    "a / 2^n = a * 2^-n": ["div(3.0)", "div(0.0)", "div(inf)", "div(5e-324)"],
    "a / c = a * (1/c), 16 bits": ["div(0.0)", "div(1e-39)", "div(inf)", "div(3.0)~bf16"],
    "a * c * d = a * cd": ["mul(2.0) mul(0.25)", "mul(1e200) mul(1e200)", "mul(1e-200) mul(1e-200)",
                           "mul(2.0)~bf16 mul(3.0)", "mul($0) mul(2.0)"],
    "two one-sided clamps": ["clamp(-inf, 1.0) clamp(2.0, inf)", "clamp(0.0, 1.0) clamp(-inf, 0.5)",
                             "clamp(-inf, $0) clamp($1, inf)", "clamp(0.0, inf) clamp(1.0, 2.0)"],
    "condition != 0": ["ne(0.0)", "gt(0.0) ne(1.0)"],
    "not not": ["logical_not logical_not"],
    "what commutes begins with the chain": ["gelu add(z)", "v0 = gelu; tanh maximum(v0, _)"],
}  # fmt: skip


def by_name(name: str) -> Rule:
    return next(rule for rule in RULES if rule.name == name)


def numbered(text: str, numbers: Iterable[float]) -> Epilogue:
    """``text`` with a number in the place of each #."""
    first, *rest = text.split("#")
    pairs = zip(numbers, rest, strict=False)
    return Epilogue.parse(first + "".join(f"{number!r}{part}" for number, part in pairs))


def folds(name: str, epilogue: Epilogue) -> list[tuple[Site, Epilogue]]:
    return [(site, fold(epilogue, site, [by_name(name)])) for site in SITES]


def test_every_rule_has_its_patterns() -> None:
    assert set(PATTERNS) == {rule.name for rule in RULES} and len(PATTERNS) == len(RULES)
    assert set(KEPT) <= set(PATTERNS)


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, ts in PATTERNS.items() for t in ts])
def test_a_rule_fires(name: str, text: str) -> None:
    epilogue = numbered(text, itertools.cycle((3.0, 5.0)))
    assert any(folded != epilogue for _, folded in folds(name, epilogue))


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, ts in KEPT.items() for t in ts])
def test_a_rule_does_not(name: str, text: str) -> None:
    epilogue = Epilogue.parse(text)
    assert all(folded == epilogue for _, folded in folds(name, epilogue))


# Eager has no other numbers than those of its dtype.
_any_number = st.one_of(
    st.floats(-1000, 1000, width=32),
    st.floats(allow_nan=False, width=32),
    st.sampled_from([1.0, -1.0, 2.0, 0.0, -0.0]),
)


@pytest.mark.parametrize("name", PATTERNS)
@given(st.data())
@settings(max_examples=40)
def test_a_rule_changes_no_value_by_more_than_it_says(name: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([*PATTERNS[name], *ALSO.get(name, ())]))
    epilogue = numbered(text, [data.draw(_any_number) for _ in range(text.count("#"))])
    rounds = by_name(name).rounds
    given_ = tensors(epilogue, 8, len(SPECIAL), torch.float32)
    given_["z"][0] = torch.tensor(SPECIAL)
    for site, folded in folds(name, epilogue):
        if folded == epilogue or site.dtype is DType.F64:
            continue
        got = run(folded, given_)
        if rounds == 0:  # equal, zeros of either sign and NaN among them
            torch.testing.assert_close(got, run(epilogue, given_), rtol=0, atol=0, equal_nan=True)
            continue
        exact = run(epilogue, {k: widened(v) for k, v in given_.items()})
        exact = torch.where(exact.abs() > torch.finfo(torch.float32).max, exact.sign() * math.inf,
                            exact)  # fmt: skip
        bound = rounds * 2.0**-24
        torch.testing.assert_close(got.double(), exact, rtol=bound, atol=2.0**-148, equal_nan=True)


def widened(value: object) -> object:
    if isinstance(value, list):
        return [widened(v) for v in value]
    real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if real else value


# Not those to which the sign of a zero matters, and one that refuses 0.
_SIGNED = {"div", "reciprocal", "rsqrt", "pow", "softsign", "softcap", "softplus", "celu"}
_CONTINUED = tuple(op for op in WRITTEN if op not in _SIGNED)


# Where rules meet often.
_STEPS = (
    "mul(-1.0)", "mul(1.0)", "mul(2.0)", "neg", "abs", "square", "tanh", "add(0.0)", "rsub(1.0)",
    "clamp(-1.0, inf)", "clamp(-inf, 2.0)", "clamp(-inf, 0.5)", "maximum(-0.5)", "minimum(1.5)",
    "gt(0.5)", "ne(0.0)", "logical_not", "where(z, 2.0)", "add(z)", "mul(z, _)",
)  # fmt: skip
_chains = st.lists(st.sampled_from(_STEPS), max_size=10).map(" ".join).map(Epilogue.parse)


@given(st.one_of(programs(_CONTINUED, number=short_number, plain=True), _chains))
@settings(max_examples=500)
def test_exact_rules_together_keep_every_value(epilogue: Epilogue) -> None:
    exact = [rule for rule in RULES if not rule.rounds]
    given_ = tensors(epilogue, 8, 16, torch.float32)
    folded = fold(epilogue, Site(DType.F32), exact)
    wanted, got = run(epilogue, given_), run(folded, given_)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    assert len(folded.nodes) <= 2 * len(epilogue.nodes)


@given(programs())
@settings(max_examples=200)
def test_what_is_folded_stays(epilogue: Epilogue) -> None:
    for site in SITES:
        folded = fold(epilogue, site)
        assert fold(folded, site) == folded


@pytest.mark.parametrize(
    ("written", "short", "long"),
    [
        ("neg", "mul(-1.0)", "mul(-1.0)"),
        ("maximum(0.0)", "clamp(0.0, inf)", "clamp(0.0, inf)"),
        ("div(2.0)", "mul(0.5)", "mul(0.5)"),
        ("div(3.0)", "mul(0.3333333333333333)", "div(3.0)"),
        ("mul(2.0) mul(-1.0) mul(0.25)", "mul(-2.0) mul(0.25)", "mul(-2.0) mul(0.25)"),
        ("clamp(-inf, 1.0) clamp(-1.0, inf)", "clamp(-1.0, 1.0)", "clamp(-1.0, 1.0)"),
        ("z1 mul(z)", "mul(z1)", "mul(z1)"),
        ("v0 = gelu; mat0 add(v0)", "gelu add(mat0)",
         "gelu add(mat0)"),
        ("pow(3.0)", "square mul(z)", "square mul(z)"),
        ("div(3.0)~bf16 mul(2.0)", "div(3.0)~bf16 mul(2.0)", "div(3.0)~bf16 mul(2.0)"),
    ],
)  # fmt: skip
def test_canonical(written: str, short: str, long: str) -> None:
    epilogue = Epilogue.parse(written)
    assert str(fold(epilogue, Site(DType.BF16))) == short
    assert str(fold(epilogue, Site(DType.F32))) == long


@pytest.mark.parametrize(
    ("dtype", "written", "folded"),
    [
        (DType.BF16, "mul(0.1) mul(0.3)", "mul(0.03)"),
        (DType.F32, "mul(0.1) mul(0.3)", "mul(0.1) mul(0.3)"),
        (DType.F64, "mul(0.1) mul(0.3)", "mul(0.1) mul(0.3)"),
        (DType.F32, "mul(0.1) mul(0.5)", "mul(0.05)"),
        (DType.F64, "mul(1.1) mul(2.0)", "mul(2.2)"),
        # Each has 13 bits, the product 25: one more than float32.
        (DType.F32, "mul(4097.0) mul(4099.0)", "mul(4097.0) mul(4099.0)"),
        (DType.F64, "mul(4097.0) mul(4099.0)", "mul(16793603.0)"),
    ],
)
def test_what_float32_and_float64_would_show_is_kept(
    dtype: DType, written: str, folded: str
) -> None:
    assert str(fold(Epilogue.parse(written), Site(dtype))) == folded
