"""Validate: before a rewrite, run the region's own operators and the epilogue on every bfloat16."""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .epilogue import Epilogue
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
    return _compare(program, epilogue, points, torch.float64, TOLERANCE, dtype)


@lru_cache(maxsize=4096)
def validate_arithmetic(program: Program, stage: Epilogue, dtype: torch.dtype) -> str | None:
    """None if ``program`` computes ``stage`` also in its own arithmetic, rounding where it rounds.

    A stage recognised by its mathematics alone may not be what the arithmetic gives:
    gelu((z + 1e8) - 1e8) is gelu(z) on paper, and so is gelu((z + 1000) - 1000) in bfloat16.

    Args:
        program: the operators of one stage, casts among them.
        stage: an epilogue of that one stage.
        dtype: of the program's input.
    """
    # A 16-bit type anywhere rounds to 16 bits.
    tolerance = max(TOLERANCES.get(d, 0.0) for d in (dtype, *(s.cast for s in program)) if d)
    return _compare(program, stage, _moderate(dtype), dtype, tolerance)


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
    program: Program,
    epilogue: Epilogue,
    z: torch.Tensor,
    dtype: torch.dtype,
    tolerance: float,
    exact: torch.dtype | None = None,
) -> str | None:
    """Compares ``program`` of ``z`` in ``dtype`` with ``epilogue`` of it in float64."""
    count = epilogue.num_operands
    # The pass runs under the compiler's fake tensors; these numbers are real.
    with _disable_current_modes(), torch.no_grad():
        probes = range(len(_PROBES) if count else 1)
        for probe, block in itertools.product(probes, z.split(_BLOCK)):
            numbers = [_PROBES[(probe + i) % len(_PROBES)] for i in range(count)]
            operands = [torch.tensor(v, dtype=dtype) for v in numbers]
            found = evaluate(program, block.to(dtype), operands, exact).double()
            expected = epilogue.reference(block, *(v.double() for v in operands))
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
