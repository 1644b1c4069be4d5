"""A cast that loses something of z is no identity; neither is a constant that rounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import Model, check, fuse
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LOSSY = (torch.bool, torch.int8, torch.int32, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2)
# What follows the cast back to the Linear's dtype.
TAILS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "a factor": lambda z: z * 0.5,
    "a divisor": lambda z: z / 3,
    "a bound": lambda z: torch.maximum(z, torch.zeros((), dtype=z.dtype)),
    "gelu by hand": lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))),
}


def _narrower(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    floats = (torch.float16, torch.bfloat16, torch.float32)
    return (*LOSSY, *(d for d in floats if torch.promote_types(d, dtype) != d))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
def test_what_a_cast_loses_stays_lost(dtype: torch.dtype, tail: str, numerics: str) -> None:
    linear = nn.Linear(24, 40, dtype=dtype)
    with torch.no_grad():
        linear.weight.normal_()
    casts = _narrower(dtype)

    def model(x: torch.Tensor) -> list[torch.Tensor]:
        return [TAILS[tail](linear(x).to(lossy).to(dtype)) for lossy in casts]

    x = torch.randn(6, 24, dtype=dtype)
    with torch.no_grad():
        fused = fuse(model, numerics)
        for ours, eager in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(ours, eager)
    assert fused.epilogues == [] and fused.before == fused.after
    assert len(fused.reasons) == len(casts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bool_that_takes_part_in_arithmetic(dtype: torch.dtype) -> None:
    linear, x = nn.Linear(24, 40, dtype=dtype), torch.randn(6, 24, dtype=dtype)
    with torch.no_grad():
        fused = fuse(lambda x: linear(x).bool() * 0.5)
        assert torch.equal(fused(x), linear(x).bool() * 0.5)
    assert fused.epilogues == []


def test_a_lossy_cast_in_training() -> None:
    linear = nn.Linear(24, 40)
    x = torch.randn(6, 24)

    def model(x: torch.Tensor) -> torch.Tensor:
        z = linear(x)
        return F.gelu(z.bool().float()) * z

    fused = fuse(model)
    found = torch.autograd.grad(fused(x).sum(), linear.weight)
    torch.testing.assert_close(found, torch.autograd.grad(model(x).sum(), linear.weight))
    assert fused.epilogues == []


@pytest.mark.parametrize(
    ("dtype", "constant"),
    [(torch.bfloat16, 10), (torch.bfloat16, 1000), (torch.float16, 10), (torch.float16, 1000),
     (torch.float32, 1000), (torch.float64, 1000)],
)  # fmt: skip
def test_a_constant_that_rounds_in_the_sites_dtype(dtype: torch.dtype, constant: int) -> None:
    """On paper it is gelu(z); what eager's arithmetic loses is lost no more than there."""

    def tail(z: torch.Tensor) -> torch.Tensor:
        z = (z + constant) - constant
        return 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))

    sites = [f"add({constant}.0) sub({constant}.0) gelu"]
    model, x = Model(tail, dtype), torch.randn(6, 24, dtype=dtype)
    if dtype in (torch.bfloat16, torch.float16):
        assert check(model, x, sites) == []
        return
    with torch.no_grad():
        fused = fuse(model)
        # As far apart as a sum of z and the constant may be rounded; gelu's slope is below 1.13.
        rounding = 1.13 * torch.finfo(dtype).eps * 1024
        torch.testing.assert_close(fused(x), model(x), rtol=1e-6, atol=rounding)
    assert fused.epilogues == sites


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_by_hand_in_the_sites_own_dtype(dtype: torch.dtype) -> None:
    assert check(Model(TAILS["gelu by hand"], dtype), torch.randn(6, 24).to(dtype), ["gelu"]) == []


@pytest.mark.parametrize("bits", [torch.int16, torch.float16])
def test_bits_read_as_another_type_are_no_view(bits: torch.dtype) -> None:
    linear, x = nn.Linear(24, 40, dtype=torch.bfloat16), torch.randn(6, 24, dtype=torch.bfloat16)

    def model(x: torch.Tensor) -> torch.Tensor:
        return F.relu(linear(x).view(bits)).view(torch.bfloat16) * 2.0

    with torch.no_grad():
        fused = fuse(model)
        assert torch.equal(fused(x), model(x))
    assert fused.epilogues == []


@pytest.mark.parametrize(
    ("tail", "epilogues"),
    [
        (lambda z: F.gelu(z[:, :1].expand(6, 40)), []),
        (lambda z: F.gelu(z.unsqueeze(0).expand(3, 6, 40)), []),
        (lambda z: F.gelu(z.t().clone(memory_format=torch.contiguous_format)), ["gelu"]),
        (lambda z: F.gelu(z.unsqueeze(1).squeeze(1)), ["gelu"]),
        (lambda z: F.gelu(z.view(2, 3, 5, 8).to(memory_format=torch.channels_last)), ["gelu"]),
        (lambda z: F.gelu(z.view(2, 3, 5, 8).double(memory_format=torch.channels_last)), []),
    ],
)
def test_views_that_repeat_or_move_elements(tail: Callable, epilogues: list[str]) -> None:
    linear, x = nn.Linear(24, 40), torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(lambda x: tail(linear(x)))
        found, eager = fused(x), tail(linear(x))
    torch.testing.assert_close(found, eager)
    assert found.stride() == eager.stride() and fused.epilogues == epilogues
