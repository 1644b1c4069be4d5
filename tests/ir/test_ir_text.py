"""The text form is one to one: program -> text -> program, and texts that are none are named."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_programs import programs

from fusepass.ir import Builder, DType, Epilogue, Input, Node, Output, Ref, Z
from fusepass.ir.operands import compact


@given(programs())
@settings(max_examples=500)
def test_a_program_is_its_text(epilogue: Epilogue) -> None:
    text = str(epilogue)
    again = Epilogue.parse(text)
    assert again == epilogue and str(again) == text and hash(again) == hash(epilogue)
    assert list(map(repr, again.numbers)) == list(map(repr, epilogue.numbers))
    assert pickle.loads(pickle.dumps(epilogue)) == epilogue
    assert epilogue.key.count("#") == len(epilogue.numbers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mul(0.5) clamp(-2.0, 2.0) gelu",
        "mul(-0.0) div(inf) add(5e-324)",
        "mul($0) clamp(-1.0, $1)",
        "mul(col0) add(mat0)",
        "silu mul(z1)",
        "sigmoid mul(2.0) add(z)",
        "gelu add(z)",
        "rsub(1.0) div(1.0, _)",
        "where(mat0:bool, _, 0.0)",
        "mul(row0:f32)",
        "gelu, tanh",
        "z, gelu",
        "store:f32",
        "col_sum",
        "gelu store:f32, mul(mat0) col_sum",
        "mul(0.5)~bf16 gelu~bf16",
        "v0 = mul(0.5); v0 gelu mul(v0)",
        "v0 = gelu; v1 = v0 mul(mat0); v1, v1 col_sum, v0",
        "v0 = mat0 mul(col0); gelu add(v0)",
        "mat0:bool mul(2.0)",
    ],
)
def test_canonical_texts(text: str) -> None:
    assert str(Epilogue.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("mul(1e400) clamp(-2,2) gelu", "mul(inf) clamp(-2.0, 2.0) gelu"),
        ("z mul(z)", "mul(z)"),
        ("z", ""),
        ("gelu, gelu", "v0 = gelu; v0, v0"),
        ("v5 = gelu; v5", "gelu"),
        ("v1 = tanh; v0 = tanh; v1 mul(v0)", "v0 = tanh; v0 mul(v0)"),
        ("mul(_, 2.0)", "mul(2.0)"),
    ],
)
def test_other_texts_of_the_same(text: str, canonical: str) -> None:
    assert str(Epilogue.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swish", "unknown operation 'swish'"),
        ("gelu_half", "unknown operation 'gelu_half'"),
        ("mul", "mul takes 1 argument"),
        ("gelu(1.0)", "gelu takes 0 argument"),
        ("clamp(1.0)", "clamp takes 2 argument"),
        ("mul(nan)", "NaN scalar"),
        ("mul(0,5)", "mul takes 1 argument"),
        ("mul(half)", "'half' is neither a number nor an operand"),
        ("mul(1_0)", "'1_0' is neither a number nor an operand"),
        ("mul(mat01)", "'mat01' is neither"),
        ("mul(mat0:int8)", "'mat0:int8' is neither"),
        ("mul($0:f32)", "is neither"),
        ("mul(1.0)gelu", "expected a space"),
        ("mul(1.0)  gelu", "cannot read"),
        ("gelu ", "a space at the end"),
        (" gelu", "cannot read"),
        ("mul(1.0) (2.0)", "cannot read"),
        ("gelu " * 64 + "gelu", "at most 64 operations"),
        ("mul(mat0) add(mat0:bool)", "two dtypes"),
        ("mul(mat9)", "at most 8 operands mat"),
        ("mul(__import__('os'))", "expected a space"),
        ("v0 gelu", "v0 has no value yet"),
        ("v0 = gelu; mul(2.0)", "v0 is never read"),
        ("v0 = gelu; v0 = tanh; v0", "named twice"),
        ("v0 = gelu store:f32; v0", "expected a value for v0"),
        ("x = gelu; x", "expected `v0 = ...`"),
        ("gelu z", "expected an operation, not 'z'"),
        ("gelu~int", "no dtype 'int'"),
        ("gelu~bool", "gelu cannot be rounded to bool"),
        ("gt(0.0)~bf16", "gt is a condition, which nothing rounds"),
        ("where(1.0, _, 0.0)", "where has a number for a condition"),
        ("store:f32 gelu", "nothing follows store"),
        ("gelu:f32", "cannot read gelu:f32"),
        ("mul(_, _)", "mul takes 1 argument"),
        ("gelu, tanh, exp, log, sin", "1 to 4 outputs"),
        ("gelu,tanh", "expected a space"),
    ],
)
def test_bad_text_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Epilogue.parse(text)


@given(st.text("mulz01vgeatc()=;,. _:~$#", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        epilogue = Epilogue.parse(text)
    except ValueError as error:
        assert str(error).startswith("epilogue: ")
    else:
        assert Epilogue.parse(str(epilogue)) == epilogue


def test_a_key_is_shared_by_programs_that_differ_in_numbers() -> None:
    first, second = (Epilogue.parse(f"mul({a}) add(mat0) clamp({a}, 4.0)") for a in ("0.5", "-3"))
    assert first != second and first.key == second.key == "mul(#) add(mat0) clamp(#, #)"


def test_zeros_of_two_signs_are_two_programs() -> None:
    assert Epilogue.parse("mul(0.0)") != Epilogue.parse("mul(-0.0)")
    assert Epilogue.parse("mul(1)") == Epilogue.parse("mul(1.0)")


def test_equal_nodes_are_one_and_unread_ones_are_gone() -> None:
    builder = Builder()
    builder.apply("exp", Z)
    twice = [builder.apply("tanh", builder.apply("mul", Z, 2)) for _ in range(2)]
    epilogue = builder.finish(builder.apply("add", *twice))
    assert str(epilogue) == "v0 = mul(2.0) tanh; v0 add(v0)" and len(epilogue.nodes) == 3


def test_only_normal_forms_are_epilogues() -> None:
    with pytest.raises(ValueError, match="normal form"):
        Epilogue((Node("tanh", (Z,)), Node("exp", (Z,))), (Output(Ref(1)),))
    with pytest.raises(ValueError, match="later one"):
        Epilogue((Node("tanh", (Ref(0),)),), (Output(Ref(0)),))


def test_operands_in_the_order_they_are_given() -> None:
    epilogue = Epilogue.parse("mul(mat1) add(col0:f32) mul($1) add(row0)")
    assert list(map(str, epilogue.operands)) == ["$1", "col0:f32", "row0", "mat1"]
    assert epilogue.num_operands == 2 + 1 + 1 + 2 and epilogue.count("mat") == 2
    assert epilogue.operands[1] == Input("col", 0, DType.F32)


def test_operands_are_numbered_without_gaps() -> None:
    epilogue = Epilogue.parse("mul(mat1) add($3) mul(mat0:bool) add(mat1)")
    numbered, old = compact(epilogue)
    assert str(numbered) == "mul(mat0) add($0) mul(mat1:bool) add(mat0)"
    assert list(map(str, old)) == ["$3", "mat1", "mat0:bool"]
    assert compact(numbered) == (numbered, numbered.operands)
