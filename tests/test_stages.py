"""Every row of the table of stages: a new row is tested here as soon as it is in the table.

The kernels' functions are compiled on the host from their own source; the kernels themselves run in
gpu/test_every_stage.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import sympy
import torch
from device_functions import FUNCTIONS, DeviceFunctions

from fusepass.epilogue import Epilogue, StageCall
from fusepass.kernels import toolchain
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


@pytest.fixture(scope="module")
def device(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> DeviceFunctions:
    return DeviceFunctions(host_compiler, tmp_path_factory.mktemp("stages"), contract=False)


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if f.split()[1] in STAGES])
def test_the_kernels_function(device: DeviceFunctions, function: str) -> None:
    """On every bfloat16 value, infinities and NaN among them: near the reference in float64."""
    kernel, name = function.split()
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    z = values.view(torch.bfloat16).float()
    # Beyond, a power in the formula overflows in float32; what counts then is the infinity's sign.
    z = z[~(z.abs() > 1e12) | z.isinf()]
    exact = Epilogue((StageCall(name),)).reference(z.double())
    got = torch.from_numpy(device(function, z.numpy(), 0, 0)).double()
    assert torch.equal(got.isnan(), exact.isnan())
    relative = 1e-6 if kernel == "float32" else 3e-5
    torch.testing.assert_close(got, exact, rtol=relative, atol=1e-6, equal_nan=True)


def test_there_is_a_case_for_every_stage_in_the_pointwise_kernel() -> None:
    """It would pass elements on unchanged otherwise."""
    source = (Path(toolchain.__file__).parent / "hybrid.cu").read_text()
    for name in STAGES:
        case = f"case k{''.join(part.title() for part in name.split('_'))}:"
        assert case in source and f"stage_{name}(" in source, name
