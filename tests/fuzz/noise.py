"""How far rounding may take a program's results, by trying.

Sums cancel (``t / s * s`` has the gradient 0 for ``s``), and how large the terms were is not seen
in the result. Every operation's result is moved by a random relative error of one rounding, as in
stochastic arithmetic: what the program's results then do, some other order of rounding may do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Their gradients ask which elements equal the result. What else rounds nothing may still differ by
# a rounding, where a fused op computes its input once more: relu6(t) - t.
_ASKED = {aten.amax, aten.amin, aten.max, aten.min, aten.detach}


class Rounding(TorchDispatchMode):
    """Each floating-point result of an operator is off by at most ``eps`` of itself.

    By more where the result is of a type with fewer digits: what eager rounds between two operators
    need not be rounded. A cast's result is off by ``eps``: what it loses is asked for.

    Args:
        eps: the relative distance of the program's own type's numbers.
        seed: of the random errors, uniform in [-eps, eps].
    """

    def __init__(self, eps: float, seed: int) -> None:
        super().__init__()
        self._eps = eps
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ASKED or not _computes(func):
            return result
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.is_floating_point():
                noise = torch.rand(value.shape, generator=self._generator, dtype=torch.float64)
                eps = self._eps
                if func.overloadpacket is not aten._to_copy:
                    eps = max(eps, torch.finfo(value.dtype).eps)
                value.copy_(value.double() * (1 + (2 * noise - 1) * eps))
        return result


def _computes(func: Any) -> bool:
    """Whether the result of ``func`` is memory of its own, or was written by it."""
    returned = [r.alias_info for r in func._schema.returns]
    return all(info is None or info.is_write for info in returned)
