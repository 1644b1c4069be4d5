"""Validation: every bfloat16 value, in float64 and in the site's own arithmetic."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from graphs import fuse
from torch._subclasses import FakeTensorMode

from fusepass.ir import Epilogue, Input
from fusepass.match import epilogues as match
from fusepass.match import importing
from fusepass.match.program import Program, Step, TensorConst, Value, evaluate
from fusepass.match.validate import validate, validate_arithmetic

aten = torch.ops.aten
Z = Value(0)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

HARDTANH: Program = (
    Step(aten.clamp_min.default, (Z, -2)),
    Step(aten.clamp_max.default, (Value(1), 2)),
)
GELU: Program = (
    Step(aten.mul.Tensor, (Z, 0.5)),
    Step(aten.mul.Tensor, (Z, 0.7071067811865476)),
    Step(aten.erf.default, (Value(2),)),
    Step(aten.add.Tensor, (Value(3), 1)),
    Step(aten.mul.Tensor, (Value(1), Value(4))),
)


@pytest.mark.parametrize(
    ("program", "epilogue"),
    [
        (HARDTANH, "clamp(-2, 2)"),
        (GELU, "gelu"),
        ((Step(aten.neg.default, (Z,)),), "mul(-1)"),
        ((Step(aten.div.Tensor, (Z, 3)),), "mul(0.3333333333333333)"),
        ((Step(aten.mul.Tensor, (Z, Input("$", 0))),), "mul($0)"),
        ((Step(aten.maximum.default, (Z, TensorConst(0.0))),), "clamp(0, inf)"),
    ],
)
def test_equal_functions_pass(program: Program, epilogue: str) -> None:
    assert validate(program, Epilogue.parse(epilogue)) is None


@pytest.mark.parametrize(
    ("program", "epilogue", "at"),
    [
        (HARDTANH, "clamp(-2, 2.001)", "z=2"),
        (HARDTANH, "clamp(-inf, 2)", "z=-"),
        (GELU, "gelu_tanh", "z="),
        ((Step(aten.mul.Tensor, (Z, 0.50001)),), "mul(0.5)", "z="),
        ((Step(aten.mul.Tensor, (Z, 1.000002)),), "mul(1)", "z="),  # twice what is let pass
        ((Step(aten.mul.Tensor, (Z, Input("$", 0))),), "div($0)", "z="),
        ((Step(aten.abs.default, (Z,)),), "mul(1)", "z=-"),
        # torch's fmax turns NaN into the bound, its clamp does not.
        ((Step(aten.fmax.default, (Z, TensorConst(0.0))),), "clamp(0, inf)", "z=nan"),
        ((Step(aten.nan_to_num.default, (Z,)),), "mul(1)", "inf"),
    ],
)  # fmt: skip
def test_different_functions_are_named(program: Program, epilogue: str, at: str) -> None:
    difference = validate(program, Epilogue.parse(epilogue))
    assert difference is not None and "looks like" in difference and at in difference


def test_a_finite_result_where_infinity_is_due_differs() -> None:
    program = (Step(aten.clamp_max.default, (Z, 3.5e38)),)
    assert "z=inf" in (validate(program, Epilogue.parse("mul(1)")) or "")


def cancelling(c: float) -> Program:
    return (
        Step(aten.add.Tensor, (Z, c)),
        Step(aten.sub.Tensor, (Value(1), c)),
        Step(aten.gelu.default, (Value(2),)),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_epilogue_that_cancels_where_the_program_does_not_is_refused(dtype: torch.dtype) -> None:
    gelu, far = Epilogue.parse("gelu"), Epilogue.parse("add(1e8) sub(1e8) gelu")
    program: Program = (Step(aten.gelu.default, (Z,)),)
    assert validate_arithmetic(program, gelu, dtype) is None
    assert validate_arithmetic(GELU, gelu, dtype) is None
    assert "computes otherwise" in (validate_arithmetic(program, far, dtype) or "")


def test_arithmetic_that_cancels_is_not_its_mathematics() -> None:
    """Where eager's is not float64, an epilogue that loses less than it does is no worse."""
    gelu = Epilogue.parse("gelu")
    assert validate(cancelling(1e8), gelu) is None  # as near as float64 is to the mathematics
    assert "otherwise" in (validate_arithmetic(cancelling(1e8), gelu, torch.float64) or "")
    assert validate_arithmetic(cancelling(1e8), gelu, torch.float32) is None


def test_what_is_misread_is_not_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph stays as it is, even where every rule that reads it is wrong."""
    linear, x = torch.nn.Linear(24, 40), torch.randn(6, 24)
    monkeypatch.setitem(importing._READERS, "neg", lambda b, z: b.apply("mul", z, -1.001))
    with torch.no_grad():
        fused = fuse(lambda x: -linear(x))
        torch.testing.assert_close(fused(x), -linear(x))
    assert fused.before == fused.after and fused.epilogues == []
    (reason,) = fused.reasons
    assert reason.startswith("looks like mul(-1.001) but differs: z=")


def test_where_recognition_errs_the_program_as_written_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear, x = torch.nn.Linear(24, 40), torch.randn(6, 24)
    wrong = Epilogue.parse("gelu_tanh")
    monkeypatch.setattr(match, "_canonical", lambda epilogue, dtype, numerics: wrong)
    with torch.no_grad():
        fused = fuse(lambda x: linear(x).sigmoid() + 0.25)
        torch.testing.assert_close(fused(x), linear(x).sigmoid() + 0.25)
    assert fused.epilogues == ["sigmoid add(0.25)"]


def test_it_runs_under_the_compilers_fake_tensors() -> None:
    with FakeTensorMode():
        assert validate(GELU, Epilogue.parse("gelu")) is None
        assert validate(GELU, Epilogue.parse("gelu mul(2)")) is not None


def test_it_leaves_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    validate((Step(aten.mul.Tensor, (Z, 0.123)),), Epilogue.parse("mul(0.123)"))
    assert torch.get_num_threads() == before


def test_evaluate_resolves_values_constants_and_operands() -> None:
    program = (
        Step(aten.mul.Tensor, (Z, Input("$", 1))),
        Step(aten.add.Tensor, (Value(1), TensorConst(1.0)), (("alpha", 2),)),
        Step(aten.sub.Tensor, (Z, Value(2))),
    )
    z = torch.tensor([3.0])
    operands = {Input("$", 1): torch.tensor(5.0)}
    assert evaluate(program, z, operands).item() == 3 - (15 + 2)
    assert evaluate((), z) is z


def test_a_thread_that_starts_meanwhile_keeps_all_its_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread takes the process's count of threads at its first torch call, and keeps it."""
    from fusepass.match import validate as validating

    threads = torch.get_num_threads()
    told: list[int] = []

    def observed(*arguments: object) -> torch.Tensor:
        with ThreadPoolExecutor(1) as fresh:
            told.append(fresh.submit(torch.get_num_threads).result())
        return evaluate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(validating, "evaluate", observed)
    torch.set_num_threads(3)
    try:
        program: Program = (Step(aten.mul.Tensor, (Z, 0.71875)),)  # of no other test: not cached
        assert validate(program, Epilogue.parse("mul(0.71875)")) is None
        assert told and set(told) == {3}
    finally:
        torch.set_num_threads(threads)
