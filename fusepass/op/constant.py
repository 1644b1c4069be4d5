"""The op's overloads without operands: what compiled graphs call on a GPU.

To read a list that a Python program passes costs a microsecond, a fifth of all that a call costs
the host. And the runtime of an AOTInductor package hands an empty ``Tensor[]`` over as None, which
no schema takes for one. Below ``torch.compile`` alone: they are not differentiable by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ARGUMENTS = '(Tensor x, Tensor weight, Tensor? bias, str epilogue, *, str numerics="accurate")'
_GEMM_ARGUMENTS = (
    '(Tensor x, Tensor[] weights, Tensor?[] biases, str epilogue, *, str numerics="accurate")'
)


def _linear(*args: Any, numerics: str = "accurate") -> Tensor:
    out: Tensor = torch.ops.fusepass.linear.default(*args, [], numerics=numerics)
    return out


def _linear_with_preact(*args: Any, numerics: str = "accurate") -> tuple[Tensor, Tensor]:
    both: tuple[Tensor, Tensor] = torch.ops.fusepass.linear_with_preact.default(
        *args, [], numerics=numerics
    )
    return both


def _gemm(*args: Any, numerics: str = "accurate") -> list[Tensor]:
    outputs: list[Tensor] = torch.ops.fusepass.gemm.default(*args, [], numerics=numerics)
    return outputs


def define(library: torch.library.Library, tags: tuple[torch.Tag, ...]) -> None:
    """Adds the overloads ``constant`` to the ops."""
    library.define(f"linear.constant{_ARGUMENTS} -> Tensor", tags=tags)
    library.define(f"linear_with_preact.constant{_ARGUMENTS} -> (Tensor, Tensor)", tags=tags)
    library.define(f"gemm.constant{_GEMM_ARGUMENTS} -> Tensor[]", tags=tags)
    kernels = {"linear": _linear, "linear_with_preact": _linear_with_preact, "gemm": _gemm}
    # All but a GPU's, which are the binding's, lead into the op's own kernels.
    for name, kernel in kernels.items():
        library.impl(f"{name}.constant", kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fusepass::{name}.constant", kernel, lib=library)


def use_in(graph: torch.fx.Graph) -> None:
    """Calls without operands go to the overloads, on a GPU and where a package is being made."""
    from torch._inductor.virtualized import V

    ops = torch.ops.fusepass
    for op in (ops.linear, ops.linear_with_preact, ops.gemm):
        for node in graph.find_nodes(op="call_function", target=op.default):
            on_gpu = node.args[0].meta["val"].device.type == "cuda"
            if (on_gpu or V.aot_compilation) and not node.args[4]:
                node.target, node.args = op.constant, node.args[:4]
