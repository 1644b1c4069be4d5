"""Points: the numbers on which a region and what it was read as are compared."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..ir import DType, Input, Z

# Values a call: below torch's grain size (32768) an operator runs in the thread that calls it. More
# cost more than they save here, and their number is a setting of the whole process.
_BLOCK = 16384

# Of two tensors each pair of these is tried, whatever the others are.
_SPECIAL = (
    0.0, -0.0, 1.0, -1.0, 0.5, -0.375, 2.0, -7.5, 40.0, 3e-3, 1e-38, -1e-40, 3e38, -3e38,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
_SPREAD = 4.0  # of random numbers

Block = dict[Input, Tensor]


@lru_cache(maxsize=8)  # tens of megabytes each, of several tensors
def points(tensors: tuple[Input, ...], dtype: torch.dtype, limit: float | None) -> list[Block]:
    """Blocks of values of z and of ``tensors``, each [P], in float64; masks are bools.

    The same in every process.

    Args:
        tensors: what is read beside z, no scalars among them.
        dtype: of z, and of those that have none of their own. It has all values.
        limit: of their magnitude; None: infinities and NaN are among them.
    """
    every = (Z, *(t for t in tensors if t != Z))
    with _disable_current_modes():
        if len(every) == 1:
            columns = {Z: _every_bfloat16()}
        else:
            generator = torch.Generator().manual_seed(0)
            parts = [*_alone(every, generator), *_pairs(every, generator)]
            columns = {p: torch.cat([part[p] for part in parts]) for p in every}
        exact = {p: _rounded(v, p, dtype) for p, v in columns.items()}
        if limit is not None:
            near = torch.stack([v.double().abs() <= limit for v in exact.values()]).all(0)
            exact = {p: v[near] for p, v in exact.items()}
        count = len(exact[Z])
        return [{p: v[i : i + _BLOCK] for p, v in exact.items()} for i in range(0, count, _BLOCK)]


def _rounded(values: Tensor, place: Input, dtype: torch.dtype) -> Tensor:
    if place.dtype is DType.BOOL:
        return values > 0
    # float16 has not all of bfloat16's values.
    return values.to(dtype if place.dtype is None else place.dtype.in_torch).double()


def _alone(every: tuple[Input, ...], generator: torch.Generator) -> list[Block]:
    """Each is every bfloat16 once, the others random."""
    whole, parts = _every_bfloat16(), []
    for place in every:
        if place.dtype is not DType.BOOL:
            others = {p: _drawn(len(whole), generator) for p in every}
            parts.append({**others, place: whole})
    return parts


def _pairs(every: tuple[Input, ...], generator: torch.Generator) -> list[Block]:
    """Each two are each pair of special numbers, the others random."""
    special = torch.tensor(_SPECIAL, dtype=torch.float64)
    first = special.repeat_interleave(len(special))
    second = special.repeat(len(special))
    parts = []
    for one, other in itertools.combinations(every, 2):
        others = {p: _drawn(len(first), generator) for p in every}
        parts.append({**others, one: first, other: second})
    return parts


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(count, generator=generator) * _SPREAD
    return drawn.bfloat16().double()


@lru_cache(maxsize=1)
def _every_bfloat16() -> Tensor:
    with _disable_current_modes():
        bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
        return bits.view(torch.bfloat16).double()
