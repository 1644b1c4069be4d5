"""The op for AOTInductor packages: overloads without operands.

The runtime of a package hands an empty ``Tensor[]`` over as None, which no schema takes for one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

_ARGUMENTS = '(Tensor x, Tensor weight, Tensor? bias, str epilogue, *, str numerics="accurate")'


def _linear(*args: Any, numerics: str = "accurate") -> Tensor:
    out: Tensor = torch.ops.fusepass.linear.default(*args, [], numerics=numerics)
    return out


def _linear_with_preact(*args: Any, numerics: str = "accurate") -> tuple[Tensor, Tensor]:
    both: tuple[Tensor, Tensor] = torch.ops.fusepass.linear_with_preact.default(
        *args, [], numerics=numerics
    )
    return both


def define(library: torch.library.Library, tags: tuple[torch.Tag, ...]) -> None:
    """Adds the overloads ``constant`` to both ops."""
    library.define(f"linear.constant{_ARGUMENTS} -> Tensor", tags=tags)
    library.define(f"linear_with_preact.constant{_ARGUMENTS} -> (Tensor, Tensor)", tags=tags)
    # Fake tensors too take this way, into the op's own kernels.
    library.impl("linear.constant", _linear, "CompositeExplicitAutograd")
    library.impl("linear_with_preact.constant", _linear_with_preact, "CompositeExplicitAutograd")


def use_in(graph: torch.fx.Graph) -> None:
    """Where a package is being made, calls without operands go to the overloads."""
    from torch._inductor.virtualized import V

    if not V.aot_compilation:
        return
    for op in (torch.ops.fusepass.linear, torch.ops.fusepass.linear_with_preact):
        for node in graph.find_nodes(op="call_function", target=op.default):
            if not node.args[4]:
                _without_operands(node, op.constant)


def _without_operands(node: Node, target: Any) -> None:
    node.target, node.args = target, node.args[:4]
