"""Validate: before a rewrite, run the region's own operators and the epilogue on every bfloat16."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .cpu import differentiable
from .ir import Epilogue
from .ir.reference import evaluate as evaluate_epilogue
from .program import Program, evaluate

# Absolute, or relative where the value is above 1. TOLERANCE leaves room for a constant that equals
# its exact value in float32 only; the others for the rounding of the arithmetic itself, of which a
# GELU written by hand, in any of its forms, shows no more than half.
TOLERANCE = 1e-6
TOLERANCES = {
    torch.float64: 1e-14,
    torch.float32: 2e-6,
    torch.float16: 2.0**-9,
    torch.bfloat16: 2.0**-6,
}

# Where the arithmetic is checked: beyond, one spelling may overflow where another does not, as
# torch's own gelu does.
MODERATE = 2.0**16
MODERATE_FLOAT16 = 2.0**5

# Values a call: below torch's grain size (32768) an operator runs in the thread that calls it. More
# cost more than they save here, and their number is a setting of the whole process.
_BLOCK = 16384

# Run-time operands are tried positive, negative, small and large.
_PROBES = (1.25, -0.375, 3.0e-3, 40.0)


@lru_cache(maxsize=4096)
def validate(
    program: Program, epilogue: Epilogue, dtype: torch.dtype = torch.float32
) -> str | None:
    """None if ``program`` and ``epilogue`` are the same function, else how they differ.

    Both are evaluated in float64 on all 65,536 bfloat16 values; NaN must appear at the same places.

    Args:
        program: the operators of a whole region, casts among them. One to a floating type that
            has all values of ``dtype`` keeps float64; any other is made, and shows what it loses.
        epilogue: what the region was read as.
        dtype: of the program's input.
    """
    points = _every_bfloat16()
    return _compare(program, epilogue, points, TOLERANCE, dtype)


@lru_cache(maxsize=4096)
def validate_arithmetic(program: Program, epilogue: Epilogue, dtype: torch.dtype) -> str | None:
    """None if ``epilogue``, as the op computes it, is about as exact as ``program``.

    What is right on paper may not be what the arithmetic gives: gelu((z + 1e8) - 1e8) is gelu(z)
    there, and so is gelu((z + 1000) - 1000) in bfloat16.

    Args:
        program: the operators of a whole region, casts among them, computed as they stand.
        epilogue: what the region was read as.
        dtype: of the program's input.
    """
    points = _moderate(dtype)
    with _disable_current_modes(), torch.no_grad():
        for operands in _probes(epilogue, dtype):
            for block in points.split(_BLOCK):
                z = block.to(dtype)
                exact = evaluate(program, block, [v.double() for v in operands], dtype).double()
                eager = evaluate(program, z, operands).double()
                ours = differentiable(z, epilogue, operands, "accurate")[0].double()
                i = _first_worse(ours, eager, exact, TOLERANCES[dtype])
                if i is not None:
                    return (
                        f"looks like {epilogue} but computes otherwise: z={z[i].item():.6g} gives "
                        f"{eager[i].item():.9g}, not {ours[i].item():.9g}"
                    )
    return None


def _probes(epilogue: Epilogue, dtype: torch.dtype) -> Iterator[list[torch.Tensor]]:
    count = epilogue.num_operands
    for probe in range(len(_PROBES) if count else 1):
        numbers = [_PROBES[(probe + i) % len(_PROBES)] for i in range(count)]
        yield [torch.tensor(v, dtype=dtype) for v in numbers]


def _first_worse(
    ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, tolerance: float
) -> int | None:
    """Where ours is farther from a finite exact value than eager's, by more than ``tolerance``."""
    off, theirs = (ours - exact).abs(), (eager - exact).abs()
    bound = theirs + tolerance * exact.abs().clamp(min=1.0)
    worse = torch.nonzero(exact.isfinite() & eager.isfinite() & ~(off <= bound))[:, 0]
    return int(worse[0]) if len(worse) else None


@lru_cache(maxsize=4)
def _moderate(dtype: torch.dtype) -> torch.Tensor:
    limit = MODERATE_FLOAT16 if dtype == torch.float16 else MODERATE
    with _disable_current_modes():
        points = _every_bfloat16()
        return points[points.abs() <= limit].to(dtype).double()  # float16 has not all of them


@lru_cache(maxsize=1)
def _every_bfloat16() -> torch.Tensor:
    with _disable_current_modes():
        bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
        return bits.view(torch.bfloat16).double()


def _compare(
    program: Program, epilogue: Epilogue, z: torch.Tensor, tolerance: float, dtype: torch.dtype
) -> str | None:
    """Compares ``program`` of ``z`` with ``epilogue`` of it, both in float64."""
    # The pass runs under the compiler's fake tensors; these numbers are real.
    with _disable_current_modes(), torch.no_grad():
        for operands, block in itertools.product(_probes(epilogue, torch.float64), z.split(_BLOCK)):
            found = evaluate(program, block, operands, dtype).double()
            expected = evaluate_epilogue(epilogue, block, operands)[0]
            i = _first_difference(found, expected, tolerance)
            if i is not None:
                return (
                    f"looks like {epilogue} but differs: z={block[i].item():.6g} gives "
                    f"{found[i].item():.9g}, not {expected[i].item():.9g}"
                )
    return None


def _first_difference(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> int | None:
    unequal = torch.nonzero(found != expected)[:, 0]  # few: NaN and what rounds differently
    found, expected = found[unequal], expected[unequal]
    bound = tolerance * expected.abs().clamp(min=1.0)
    close = (found - expected).abs() <= bound.masked_fill(expected.isinf(), 0.0)
    differs = unequal[~(close | (found.isnan() & expected.isnan()))]
    return int(differs[0]) if len(differs) else None
