"""A program's values in float64 by formulas that do not cancel.

Eager's ``1 + erf(z / sqrt(2))`` is exactly 0 for z below about -8.3, in float64 as well, where
GELU's true value is a tiny negative number: ``sign``, a cast to bool and a division tell the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ADDITIONS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)


def _gelu(z: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return z * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    return z * 0.5 * torch.erfc(z * -math.sqrt(0.5))


def _ndtr(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(z * -math.sqrt(0.5))


_FUNCTIONS = {torch.nn.functional.gelu: _gelu, torch.special.ndtr: _ndtr}
# By the function whose result 1 is added to: the sum, of the function's argument.
_SUMS: dict[Any, Callable[[Tensor], Tensor]] = {
    torch.erf: lambda a: torch.erfc(-a),
    torch.tanh: lambda a: 2 * torch.sigmoid(2 * a),
}


class Exact(TorchFunctionMode):
    """``gelu``, ``ndtr``, ``1 + erf(a)`` and ``1 + tanh(a)`` keep the digits of a tiny result."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}  # by the function's result

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            return _FUNCTIONS[func](*args, **kwargs)
        if func in _ADDITIONS and len(args) == 2 and not kwargs:
            for value, one in (args, args[::-1]):
                if isinstance(one, int | float) and one == 1 and id(value) in self._sums:
                    return self._sums[id(value)][1]()
        result = func(*args, **kwargs)
        if func in _SUMS:
            argument, exact = args[0], _SUMS[func]
            self._sums[id(result)] = result, lambda: exact(argument)  # kept: ids are not used again
        return result
