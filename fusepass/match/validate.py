"""Validate: before a rewrite, run the region's own operators and the epilogue on many numbers.

A function of z is asked about every bfloat16. One of several tensors is asked about every bfloat16
of each beside random numbers of the others, and about each pair of special numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..ir import Z1, DType, Epilogue, Input, Output, Z
from ..ir.epilogue import MAX_NODES
from ..ir.operands import replaced
from ..ir.reference import evaluate as evaluate_epilogue
from ..op.cpu import differentiable
from .points import points
from .program import Program, Step, evaluate

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

# Run-time scalars are tried positive, negative, small and large.
_PROBES = (1.25, -0.375, 3.0e-3, 40.0)

Given = Mapping[Input, Tensor]


@lru_cache(maxsize=4096)
def validate(
    program: Program,
    epilogue: Epilogue,
    dtype: torch.dtype = torch.float32,
    operands: tuple[Input, ...] | None = None,
) -> str | None:
    """None if ``program`` and ``epilogue`` are the same function, else how they differ.

    Both are evaluated in float64; NaN must appear at the same places.

    Args:
        program: the operators of a whole region, casts among them. One to a floating type that
            has all values of ``dtype`` keeps float64; any other is made, and shows what it loses.
        epilogue: what the region was read as.
        dtype: of the program's input.
        operands: what ``program`` calls the epilogue's operands; None: the same.
    """
    places = _places(program, epilogue, operands)
    (output,) = epilogue.outputs
    plain = Epilogue(epilogue.nodes, (Output(output.value),))  # of z's dtype, float64
    # The pass runs under the compiler's fake tensors; these numbers are real.
    with _disable_current_modes(), torch.no_grad():
        for given in _given(places, dtype, False):
            z, read = given[Z], _ordered(given, places, epilogue)
            found = evaluate(program, z, given, dtype).double()
            expected = evaluate_epilogue(plain, z, read, given.get(Z1))[0].double()
            i = _first_difference(found, expected, TOLERANCE, _scale(given))
            if i is not None:
                return (
                    f"looks like {epilogue} but differs: {_at(i, given)} gives "
                    f"{found[i].item():.9g}, not {expected[i].item():.9g}"
                )
    return None


@lru_cache(maxsize=4096)
def validate_arithmetic(
    program: Program,
    epilogue: Epilogue,
    dtype: torch.dtype,
    operands: tuple[Input, ...] | None = None,
) -> str | None:
    """None if ``epilogue``, as the op computes it, is about as exact as ``program``.

    What is right on paper may not be what the arithmetic gives: gelu((z + 1e8) - 1e8) is gelu(z)
    there, and so is gelu((z + 1000) - 1000) in bfloat16.

    Args:
        program: the operators of a whole region, casts among them, computed as they stand.
        epilogue: what the region was read as.
        dtype: of the program's input.
        operands: as in ``validate``.
    """
    places = _places(program, epilogue, operands)
    with _disable_current_modes(), torch.no_grad():
        for given in _given(places, dtype, True):
            rounded = {p: v if _is_mask(v) else v.to(_own(p, dtype)) for p, v in given.items()}
            z, read = rounded[Z], _ordered(rounded, places, epilogue)
            exact = evaluate(program, given[Z], given, dtype).double()
            eager = evaluate(program, z, rounded).double()
            (ours,) = differentiable(z, epilogue, read, "accurate", rounded.get(Z1))
            i = _first_worse(ours.double(), eager, exact, TOLERANCES[dtype], _scale(given))
            if i is not None:
                return (
                    f"looks like {epilogue} but computes otherwise: {_at(i, given)} gives "
                    f"{eager[i].item():.9g}, not {ours[i].item():.9g}"
                )
    return None


def pointwise(
    program: Program, epilogue: Epilogue, operands: tuple[Input, ...]
) -> tuple[Program, Epilogue, tuple[Input, ...]]:
    """Both, and what ``program`` calls the operands, with z1, another number of each element, for
    what a rotation makes of z, and a mask for what tells columns of a head apart.

    That they are these, match/heads.py and parts.py have seen; what is computed of them is to be
    right whatever they are.
    """
    if not epilogue.heads.columns:
        return program, epilogue, operands
    mask = Input("mat", epilogue.count("mat"), DType.BOOL)
    theirs = Input("mat", MAX_NODES, DType.BOOL)  # as none of a region's is called

    def moved(arg: Any, first: Input = mask) -> Any:
        kind = arg.kind if isinstance(arg, Input) else None
        return Z1 if kind == "rot" else first if kind == "first" else arg

    steps = []
    for step in program:
        kwargs = tuple((name, moved(value, theirs)) for name, value in step.kwargs)
        steps.append(Step(step.target, tuple(moved(a, theirs) for a in step.args), kwargs))
    told = (theirs,) * (epilogue.heads.first > 0)
    return tuple(steps), replaced(epilogue, moved), (*operands, *told)


# --- what both are given --------------------------------------------------------------------------


def _places(
    program: Program, epilogue: Epilogue, operands: tuple[Input, ...] | None
) -> dict[Input, Input]:
    """The program's inputs, z apart, and which of the epilogue's each is, if it reads it."""
    names = dict(zip(operands or epilogue.operands, epilogue.operands, strict=True))
    read = [a for s in program for a in (*s.args, *dict(s.kwargs).values()) if isinstance(a, Input)]
    return {place: names.get(place, place) for place in (*names, *read)}


def _given(places: Mapping[Input, Input], dtype: torch.dtype, moderate: bool) -> Iterator[Given]:
    """Values of z and of each place, block by block: scalars of no dimension, else [P].

    Args:
        places: as ``_places`` has them.
        dtype: z's; numbers are of it, or of the operand's own dtype, held in float64.
        moderate: whether to leave out what is large.
    """
    tensors = tuple(p for p in places if p.kind != "$")
    scalars = [p for p in places if p.kind == "$"]
    limit = MODERATE_FLOAT16 if dtype == torch.float16 else MODERATE
    blocks = points(tensors, dtype, limit if moderate else None)
    for probe in range(len(_PROBES) if scalars else 1):
        numbers = {
            place: torch.tensor(_PROBES[(probe + i) % len(_PROBES)], dtype=torch.float64)
            for i, place in enumerate(scalars)
        }
        yield from ({**block, **numbers} for block in blocks)


def _ordered(given: Given, places: Mapping[Input, Input], epilogue: Epilogue) -> list[Tensor]:
    """The values of the epilogue's operands, in its order."""
    values = {own: given[place] for place, own in places.items()}
    return [values[operand] for operand in epilogue.operands]


def _is_mask(value: Tensor) -> bool:
    return value.dtype == torch.bool


def _own(place: Input, dtype: torch.dtype) -> torch.dtype:
    return dtype if place.dtype is None else place.dtype.in_torch


def _scale(given: Given) -> Tensor:
    """What an absolute difference is measured by, of several tensors: a factor makes it larger."""
    scale = torch.ones((), dtype=torch.float64)
    tensors = [v for v in given.values() if v.dim() and not _is_mask(v)]
    for value in tensors if len(tensors) > 1 else ():
        scale = scale * value.nan_to_num(1.0, 1.0, 1.0).abs().clamp(min=1.0)
    return scale


def _at(i: int, given: Given) -> str:
    return ", ".join(f"{p}={v[i].item():.6g}" for p, v in given.items() if v.dim())


# --- comparisons ----------------------------------------------------------------------------------


def _first_worse(
    ours: Tensor, eager: Tensor, exact: Tensor, tolerance: float, scale: Tensor
) -> int | None:
    """Where ours is farther from a finite exact value than eager's, by more than ``tolerance``."""
    off, theirs = (ours - exact).abs(), (eager - exact).abs()
    bound = theirs + tolerance * torch.maximum(exact.abs(), scale)
    worse = torch.nonzero(exact.isfinite() & eager.isfinite() & ~(off <= bound))[:, 0]
    return int(worse[0]) if len(worse) else None


def _first_difference(
    found: Tensor, expected: Tensor, tolerance: float, scale: Tensor
) -> int | None:
    unequal = torch.nonzero(found != expected)[:, 0]  # few: NaN and what rounds differently
    found, expected, scale = found[unequal], expected[unequal], scale.expand(found.shape)[unequal]
    bound = tolerance * torch.maximum(expected.abs(), scale)
    close = (found - expected).abs() <= bound.masked_fill(expected.isinf(), 0.0)
    differs = unequal[~(close | (found.isnan() & expected.isnan()))]
    return int(differs[0]) if len(differs) else None
