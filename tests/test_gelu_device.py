"""Both GELUs as the kernels compute them, for every 16-bit value: correctly rounded but at ties.

Where the stored result is not the float64 result correctly rounded, the float64 result lies
within the documented error of the middle between two neighbours.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from device_functions import DeviceFunctions

# Relative error, or absolute where that is more: the GEMM's Phi ends at -6, and what float32
# holds only as a subnormal may be flushed to 0.
FLUSHED = 2e-37
BOUNDS = {
    "gemm gelu": (6.6e-6, 3e-14),
    "gemm gelu_tanh": (1.1e-5, FLUSHED),  # 3.5e-6 down to -6
    "gemm gelu_within_2": (9e-6, FLUSHED),
    "hybrid gelu": (7e-6, FLUSHED),  # 2.5e-6 down to -6
    "hybrid gelu_tanh": (9e-6, FLUSHED),  # 3e-6 down to -6
}
# Beyond this a function is never asked.
REACH = {"gemm gelu_within_2": 2.0}
# Of 65280 and 63488 values, with the instructions at their worst.
MOST = {torch.bfloat16: 210, torch.float16: 60}
# 2^v is off by at most 2 units in the last place, 1/v by 1.
ULPS = tuple(itertools.product((-2, -1, 0, 1, 2), (-1, 0, 1)))


@pytest.fixture(scope="module", params=[False, True], ids=["separate", "contracted"])
def device(
    request: pytest.FixtureRequest,
    host_compiler: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> DeviceFunctions:
    folder: Path = tmp_path_factory.mktemp("device")
    return DeviceFunctions(host_compiler, folder, request.param)


def exact(name: str, z: np.ndarray) -> np.ndarray:
    """In float64 and without cancellation, so that tails keep their digits."""
    if "tanh" not in name:
        return np.array([v / 2 * math.erfc(-v / math.sqrt(2)) for v in z.tolist()])
    with np.errstate(over="ignore"):
        return z / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def every(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def spacing(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    info = torch.finfo(dtype)
    smallest = int(math.log2(info.smallest_normal))
    return np.ldexp(info.eps, np.maximum(np.frexp(values)[1] - 1, smallest))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", BOUNDS)
def test_every_16_bit_value(device: DeviceFunctions, name: str, dtype: torch.dtype) -> None:
    z = every(dtype)
    z = z[z.isfinite() & (z.abs() <= REACH.get(name, math.inf))]
    wanted = exact(name, z.double().numpy())
    unit = spacing(wanted, dtype)
    nearest = np.rint(wanted / unit) * unit
    relative, absolute = BOUNDS[name]
    error = np.maximum(relative * np.abs(wanted), absolute)
    counts, worst = {}, 0.0
    for ulps in ULPS:
        before = device(name, z.float().numpy(), *ulps)
        got = torch.from_numpy(before).to(dtype).double().numpy()
        assert np.all(np.abs(before - wanted) <= error), ulps
        counts[ulps] = int((got != nearest).sum())
        other = (got != nearest) & (error < unit / 2)
        off = np.abs(got - wanted)[other]
        assert np.all(off <= unit[other] / 2 + error[other]), ulps
        worst = max(worst, float((off / unit[other]).max(initial=0.5)) - 0.5)
    print(
        f"{name}, {dtype}: of {z.numel()} values {counts[0, 0]} not the nearest (at most "
        f"{max(counts.values())}), the worst {worst:.1e} units beyond the middle"
    )
    assert max(counts.values()) <= MOST[dtype]
    assert worst <= 0.01


@pytest.mark.parametrize("name", BOUNDS)
def test_between_16_bit_values(device: DeviceFunctions, name: str) -> None:
    """The GEMM's pre-activations are float32."""
    random = np.random.default_rng(0)
    spread = random.uniform(-15, 15, 100_000), random.normal(0, 1, 50_000)
    z = np.concatenate([*spread, np.exp2(random.uniform(-60, 4, 50_000))]).astype(np.float32)
    z = z[np.abs(z) <= REACH.get(name, math.inf)]
    wanted = exact(name, z.astype(np.float64))
    relative, absolute = BOUNDS[name]
    for ulps in ((0, 0), (2, 1), (-2, -1), (2, -1), (-2, 1)):
        off = np.abs(device(name, z, *ulps) - wanted)
        assert np.all(off <= np.maximum(relative * np.abs(wanted), absolute)), ulps


@pytest.mark.parametrize("name", BOUNDS)
def test_nan_and_infinities_as_torch(device: DeviceFunctions, name: str) -> None:
    biggest = torch.finfo(torch.float32).max
    z = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, biggest, -biggest, 1e30, -1e30])
    z = z[~(z.abs() > REACH.get(name, math.inf))]
    kind = "tanh" if name.endswith("tanh") else "none"
    # In float64: torch's float32 kernels for CPUs do not take such numbers as its others do.
    wanted = torch.nn.functional.gelu(z.double(), approximate=kind).float()
    got = torch.from_numpy(device(name, z.numpy(), 0, 0))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0, equal_nan=True)
