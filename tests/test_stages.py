"""Every row of the table of stages: its mathematics, its reference and its operator agree."""

from __future__ import annotations

import pytest
import sympy
import torch

from fusepass.epilogue import StageCall
from fusepass.program import Step, Value
from fusepass.recognise import recognise
from fusepass.stages import STAGES

SCALARS = (0.7, 1.9)
ALONE = [name for name, row in STAGES.items() if row.arity == 0]


@pytest.mark.parametrize("name", STAGES)
def test_formula_and_reference_are_one_function(name: str) -> None:
    row = STAGES[name]
    scalars = SCALARS[: row.arity]
    z = torch.linspace(-6, 6, 49, dtype=torch.float64, requires_grad=True)
    found = row.reference(z, *scalars)
    symbol = sympy.Symbol("z", real=True)
    formula = row.formula(symbol, *map(sympy.Rational, map(str, scalars)))
    wanted = [float(formula.subs(symbol, sympy.Rational(v)).evalf(30)) for v in z.tolist()]
    torch.testing.assert_close(found.detach(), torch.tensor(wanted, dtype=z.dtype))
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("name", ALONE)
def test_the_operator_of_that_name_is_the_stage(name: str) -> None:
    operator = getattr(torch.ops.aten, name, None)
    if operator is None:
        assert name == "gelu_tanh"  # one operator is both of torch's GELUs
        return
    assert recognise((Step(operator.default, (Value(0),)),)) == StageCall(name)
