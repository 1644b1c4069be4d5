"""Whether two programs of z agree in arithmetic, not on paper only: gelu((z + 1e8) - 1e8)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from .epilogue import Epilogue
from .types import DType

if TYPE_CHECKING:
    import torch

# In which arithmetic a spelling must agree, for each dtype of a site, and how nearly: absolutely,
# or relatively where the value is above 1. In float64 there is room for a constant that is right to
# float32 only; else for the rounding of the arithmetic itself, of ten operations or so.
_ROUNDED = {DType.F32: 2e-6, DType.BF16: 2.0**-5, DType.F16: 2.0**-8}
_TOLERANCES = {
    DType.F64: {DType.F64: 1e-14},
    **{
        dtype: {DType.F64: 1e-6, DType.F32: _ROUNDED[DType.F32], dtype: _ROUNDED[dtype]}
        for dtype in _ROUNDED
    },
}

# Beyond, one spelling may overflow where another does not, as torch's own gelu does.
_MODERATE = {DType.F16: 2.0**10}
_MODERATE_ELSE = 2.0**16


# A first look, at numbers that bfloat16 has, and wider than any of the tolerances in float64.
_FEW = (-2.296875, -0.69921875, 0.400390625, 1.1015625, 3.90625)
_RESEMBLANCE = 1e-4


@lru_cache(maxsize=4096)
def agree(spelled: Epilogue, macro: Epilogue, dtype: DType) -> bool:
    """Whether ``spelled`` gives what ``macro`` gives in float64, on all moderate bfloat16 values.

    Args:
        spelled, macro: functions of z alone.
        dtype: the site's. ``spelled`` is computed in float64, in float32 and in this dtype.
    """
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    # The pass runs under the compiler's fake tensors; these numbers are real.
    with _disable_current_modes(), torch.no_grad():
        for arithmetic, tolerance in _TOLERANCES[dtype].items():
            z = _points(_MODERATE.get(arithmetic, _MODERATE_ELSE)).to(arithmetic.in_torch)
            if not _close(_of(spelled, z), _of(macro, z.double()), tolerance).all():
                return False
    return True


def resembling(spelled: Epilogue, macros: tuple[Epilogue, ...]) -> list[int]:
    """Places among ``macros`` of those that are near ``spelled`` at a few points, in float64.

    What ``agree`` would not let pass is told here at little cost. sympy may take minutes for it:
    the digits of an erf of 1000 are half a million.

    Args:
        spelled, macros: functions of z alone.
    """
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        z = torch.tensor(_FEW, dtype=torch.float64)
        close = _close(_of(spelled, z), _few_values(macros), _RESEMBLANCE)
        return close.all(dim=1).nonzero().flatten().tolist()


@lru_cache(maxsize=4)
def _few_values(macros: tuple[Epilogue, ...]) -> torch.Tensor:
    """[len(macros), len(_FEW)]"""
    import torch

    z = torch.tensor(_FEW, dtype=torch.float64)
    return torch.stack([_of(macro, z) for macro in macros])


def _of(epilogue: Epilogue, z: torch.Tensor) -> torch.Tensor:
    result = epilogue.reference(z)
    assert not isinstance(result, tuple)
    return result.double()


@lru_cache(maxsize=2)
def _points(largest: float) -> torch.Tensor:
    import torch

    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.bfloat16).double()
    return every[~(every.abs() > largest)]


def _close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> torch.Tensor:
    bound = tolerance * wanted.abs().clamp(min=1.0)
    close = (found - wanted).abs() <= bound.masked_fill(wanted.isinf(), 0.0)
    return close | (found == wanted) | (found.isnan() & wanted.isnan())
