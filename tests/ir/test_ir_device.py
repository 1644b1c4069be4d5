"""Every row's device text, as the emitter puts it out, on every 16-bit value.

Fast texts are held to the error their rows state, of the exact value, with the GPU's approximate
instructions at their worst; exact texts to torch's own operators. NaN and infinities as torch.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from host_epilogues import Case, HostEpilogues
from row_cases import every, exact, gradient, inputs, program

from fusepass.ir import DType, Epilogue
from fusepass.ir.lower import rounded_as_eager
from fusepass.ir.row import BF16_ERROR, F32_ERROR, FLUSHED
from fusepass.ir.table import ROWS

SHORT = (DType.BF16, DType.F16)
LONG = {DType.F32: torch.float32, DType.F64: torch.float64}
# Beyond this a function is never asked, or the square in torch's own is infinite in float32.
REACH = {"gelu_within_2": 2.0, "gelu_half_within_1": 1.0}
REACH |= dict.fromkeys(("gelu_tanh_derivative", "gelu_tanh_gradient"), 2.0**63)
# 2^v is off by at most 2 units in the last place, 1/v by 1, others by twice the second.
ULPS = ((2, 1), (-2, -1), (2, -1), (-2, 1))
# Beyond, one order of operations may overflow where another does not, as torch's own gelu does.
MODERATE = 2.0**100
# In units of float32's or float64's epsilon: other libraries' functions, eager's own order.
EXACT_UNITS = 8
# Eager's order cancels: 1 + erf(v) has the digits of 1. It is off by units of a number like this.
# 1 - tanh(u)^2 is, too, and is multiplied by v u', which is about v^3 / 16, until it is 0.
CANCEL = {"gelu": np.abs, "gelu_tanh": np.abs, "gelu_derivative": np.ones_like}
for _name in ("gelu_tanh_derivative", "gelu_tanh_gradient"):
    CANCEL[_name] = lambda v: 1 + np.minimum(np.abs(v), 8) ** 3 / 16
WRITTEN = tuple(name for name, row in ROWS.items() if row.exact)
SHORTER = tuple(name for name, row in ROWS.items() if row.fast_f32)


@pytest.fixture(scope="module", params=[False, True], ids=["separate", "contracted"])
def host(
    request: pytest.FixtureRequest, host_compiler: str, tmp_path_factory: pytest.TempPathFactory
) -> HostEpilogues:
    cases: list[Case] = [(program(name), dtype) for name in ROWS for dtype in SHORT]
    cases += [(spelled(name, dtype), dtype) for name in WRITTEN for dtype in LONG]
    cases += [(program(name), DType.F32) for name in SHORTER]
    folder: Path = tmp_path_factory.mktemp("rows")
    return HostEpilogues(host_compiler, folder, cases, request.param)


def spelled(name: str, dtype: DType) -> Epilogue:
    """The program that is computed by the exact text: of float32 where it says what is rounded."""
    return rounded_as_eager(program(name), dtype) if dtype is DType.F32 else program(name)


def run(
    host: HostEpilogues, epilogue: Epilogue, dtype: DType, values: list[torch.Tensor],
    ulps: tuple[int, int] = (0, 0),
) -> np.ndarray:  # fmt: skip
    arrays = [v.double().numpy() for v in values]
    return host((epilogue, dtype), *arrays, ulps=ulps)[0]


def within_reach(name: str, z: torch.Tensor) -> torch.Tensor:
    return z[~(z.abs() > REACH[name])] if name in REACH else z


def assert_near(
    got: np.ndarray, wanted: np.ndarray, relative: float, absolute: np.ndarray | float
) -> None:
    with np.errstate(over="ignore"):
        wanted32 = wanted.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    finite = np.isfinite(wanted32)
    assert np.all((got == wanted32)[~finite & ~np.isnan(wanted)])
    off = np.abs(got[finite] - wanted[finite])
    least = np.broadcast_to(absolute, wanted.shape)[finite]
    allowed = np.maximum(relative * np.abs(wanted[finite]), least)
    with np.errstate(invalid="ignore"):  # 0 of a gradient of 0
        worst = int(np.argmax(off / allowed)) if len(off) else 0
    assert np.all(off <= allowed), (worst, got[finite][worst], wanted[finite][worst])


@pytest.mark.parametrize("dtype", SHORT, ids=lambda d: d.value)
@pytest.mark.parametrize("name", ROWS)
def test_fast_texts_have_their_error(host: HostEpilogues, name: str, dtype: DType) -> None:
    row, z = ROWS[name], within_reach(name, every(dtype.in_torch))
    values = inputs(name, z)
    wanted = exact(name, values)
    bf16 = dtype is DType.BF16 and bool(row.fast_bf16)
    relative, floor = (BF16_ERROR, row.floor_bf16) if bf16 else (row.error, row.floor)
    for ulps in ULPS if row.fast or row.is_macro else [(0, 0)]:
        least = floor * gradient(name, values)
        assert_near(run(host, program(name), dtype, values, ulps), wanted, relative, least)


@pytest.mark.parametrize("name", [n for n in ROWS if ROWS[n].fast])
def test_fast_texts_between_16_bit_values(host: HostEpilogues, name: str) -> None:
    """Pre-activations are float32."""
    random = np.random.default_rng(0)
    spread = random.uniform(-15, 15, 60_000), random.normal(0, 1, 30_000)
    powers = np.exp2(random.uniform(-60, 4, 20_000)) * random.choice([-1, 1], 20_000)
    z = torch.from_numpy(np.concatenate([*spread, powers]).astype(np.float32))
    values = inputs(name, within_reach(name, z))
    wanted, row = exact(name, values), ROWS[name]
    for dtype in SHORT:
        bf16 = dtype is DType.BF16 and bool(row.fast_bf16)
        relative, floor = (BF16_ERROR, row.floor_bf16) if bf16 else (row.error, row.floor)
        for ulps in ULPS:
            least = floor * gradient(name, values)
            assert_near(run(host, program(name), dtype, values, ulps), wanted, relative, least)


@pytest.mark.parametrize("name", SHORTER)
def test_fast_texts_of_float32(host: HostEpilogues, name: str) -> None:
    """Off by no more than 2^-22 of the argument, whatever it is."""
    random = np.random.default_rng(0)
    spread = random.uniform(-9, 9, 60_000), random.normal(0, 1, 30_000)
    powers = np.exp2(random.uniform(-120, 127, 20_000)) * random.choice([-1, 1], 20_000)
    z = torch.from_numpy(np.concatenate([*spread, powers]).astype(np.float32))
    z = within_reach(name, torch.cat([z, every(torch.bfloat16).float()]))
    z = torch.cat([z, z.new_zeros(-len(z) % 4)])
    wanted = exact(name, [z])
    with np.errstate(invalid="ignore"):
        least = F32_ERROR * z.abs().double().numpy() + FLUSHED
    for ulps in ULPS:
        assert_near(run(host, program(name), DType.F32, [z], ulps), wanted, 0.0, least)


@pytest.mark.parametrize("dtype", LONG, ids=lambda d: d.value)
@pytest.mark.parametrize("name", WRITTEN)
def test_exact_texts_are_torch_operators(host: HostEpilogues, name: str, dtype: DType) -> None:
    """In the dtype itself, whose rounding both have."""
    torch_dtype = LONG[dtype]
    values = [v.to(torch_dtype) for v in inputs(name, every(torch.bfloat16))]
    values = [v[v.abs() <= MODERATE] for v in values]
    wanted = program(name).reference(*values).double().numpy()
    got = run(host, spelled(name, dtype), dtype, values)
    info = torch.finfo(torch_dtype)
    finite = np.isfinite(wanted)
    z = values[0].double().numpy()
    scale = CANCEL[name](z) * gradient(name, values) if name in CANCEL else np.abs(wanted)
    scale = scale[finite]
    off, allowed = np.abs(got[finite] - wanted[finite]), EXACT_UNITS * info.eps * scale + info.tiny
    worst = int(np.argmax(off / allowed))
    assert np.all(off <= allowed), (values[0][finite][worst], got[finite][worst])
    np.testing.assert_array_equal(got[~finite], wanted[~finite])


@pytest.mark.parametrize("name", WRITTEN)
def test_exact_texts_of_what_is_not_finite(host: HostEpilogues, name: str) -> None:
    """Beside float64: torch's float32 kernels for CPUs do not take +inf as its others do."""
    z = torch.tensor([math.nan, math.inf, -math.inf, 1.0, 0.0, -0.0], dtype=torch.float64)
    mats = [z[torch.tensor(order)] for order in ([0, 3, 1, 2, 1, 2], [3, 1, 0, 4, 2, 0])]
    values = [z, *mats[: program(name).count("mat")]]
    wanted = program(name).reference(*values).numpy()
    for dtype in LONG:
        got = run(host, spelled(name, dtype), dtype, values)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
