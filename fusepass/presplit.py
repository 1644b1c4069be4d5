"""A weight of float32 split once: an op of its own, which freezing folds into a constant.

In "highest" the GEMM on Hopper reads both operands split into 16-bit pieces. Where parameters are
constants (``torch._inductor.config.freezing``), ``linear(x, w, ...)`` becomes
``linear.split(x, w, ..., split_weight(w))``: Inductor runs ``split_weight`` when it compiles, and a
call no longer splits w. The weight stays an argument: what runs is still decided by each call, and
cuBLAS, TF32 and the tiles that are summed in float64 read the weight itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .calls import Call, calls_in
from .kernels import fuses

_ARGUMENTS = (
    "(Tensor x, Tensor weight, Tensor? bias, str epilogue, Tensor[] operands, Tensor split)"
)


def _empty_split(weight: Tensor) -> Tensor:
    """Room for the split of weight [N, K].

    Raises:
        ValueError: if the weight is not a float32 matrix.
    """
    from .kernels.plan_f32 import split_shape

    torch._check_value(
        weight.dim() == 2 and weight.dtype == torch.float32,
        lambda: "fusepass::split_weight: weight must be a float32 [N, K]",
    )
    return weight.new_empty(split_shape(*weight.shape), dtype=torch.uint8)


def _check_split(weight: Tensor, split: Tensor) -> None:
    """As the C++ side checks, whatever then runs.

    Raises:
        ValueError: if ``split`` is not of the size that ``split_weight(weight)`` has.
    """
    from .kernels.plan_f32 import split_shape

    torch._check_value(
        weight.dim() == 2
        and split.shape == split_shape(*weight.shape)
        and split.is_contiguous()
        and (split.dtype, split.device) == (torch.uint8, weight.device),
        lambda: "fusepass::linear: split must be what fusepass::split_weight made of weight",
    )


def _split_weight(weight: Tensor) -> Tensor:
    from .kernels import load_binding

    if weight.device.type == "cuda" and load_binding():
        out: Tensor = torch.ops.fusepass.split_weight.default(weight)
        return out
    # Every row "not finite": should a kernel ever read this, it sums in float64.
    return _empty_split(weight).fill_(255)


def _linear_split(*args: Any) -> Tensor:
    from .kernels import load_binding

    *plain, split = args
    if plain[0].device.type == "cuda" and load_binding():
        out: Tensor = torch.ops.fusepass.linear.split(*plain, split)
        return out
    _check_split(plain[1], split)
    unsplit: Tensor = torch.ops.fusepass.linear.default(*plain)
    return unsplit


def _fake_linear_split(*args: Any) -> Tensor:
    *plain, split = args
    _check_split(plain[1], split)
    out: Tensor = torch.ops.fusepass.linear.default(*plain)
    return out


def _split_kernels(device: int) -> str:
    """The path of the kernels that split a matrix, built; empty if that cannot be."""
    from .kernels.build import device_arch
    from .kernels.plan_f32 import split_cubin
    from .kernels.toolchain import BuildError

    try:
        return str(split_cubin(device_arch(device)))
    except (BuildError, OSError):
        return ""


def define(library: torch.library.Library, tags: tuple[torch.Tag, ...]) -> None:
    """Adds ``split_weight(Tensor weight) -> Tensor`` and the overload ``linear.split``."""
    library.define("split_weight(Tensor weight) -> Tensor", tags=tags)
    library.define(f"linear.split{_ARGUMENTS} -> Tensor", tags=tags)
    library.define("_split_kernels(int device) -> str")
    library.impl("split_weight", _split_weight, "CompositeExplicitAutograd")
    library.impl("linear.split", _linear_split, "CompositeExplicitAutograd")
    library.impl("_split_kernels", _split_kernels, "CompositeExplicitAutograd")
    torch.library.register_fake("fusepass::split_weight", _empty_split, lib=library)
    torch.library.register_fake("fusepass::linear.split", _fake_linear_split, lib=library)


def use_in(graph: torch.fx.Graph) -> None:
    """Where parameters are about to become constants, splits those that calls would split."""
    from torch._inductor import config
    from torch._inductor.virtualized import V

    # A package hands over empty lists of operands as None (constant.py): it splits in each call.
    if not config.freezing or torch.is_grad_enabled() or V.aot_compilation:
        return
    splitting = {call.node for call in calls_in(graph) if _splits(call)}
    for node in graph.find_nodes(op="call_function", target=torch.ops.fusepass.linear.default):
        if node.name in splitting and _is_parameter(node.args[1]):
            _split_ahead(graph, node)


def _splits(call: Call) -> bool:
    """Whether the plan takes the split kernel for ``call`` at torch's present precision."""
    from .kernels.problem import FLOAT32, plan_code

    if call.numerics != "accurate" or call.dtype != torch.float32 or call.n % 2:
        return False
    if plan_code(call.dtype) != FLOAT32:
        return False
    return fuses(call.device, call.dtype, call.m, call.n, call.k, call.w_is_kn)


def _is_parameter(weight: Any) -> bool:
    """An input of the graph, perhaps seen as its transpose: split_weight runs on it but once."""
    while weight.op == "call_function" and weight.target is torch.ops.aten.permute.default:
        weight = weight.args[0]
    return bool(weight.op == "placeholder")


def _split_ahead(graph: torch.fx.Graph, node: Node) -> None:
    weight = node.args[1]
    assert isinstance(weight, Node)
    with graph.inserting_before(node):
        split = graph.call_function(torch.ops.fusepass.split_weight.default, (weight,))
    split.meta["val"] = torch.ops.fusepass.split_weight.default(weight.meta["val"])
    node.target = torch.ops.fusepass.linear.split
    node.args = (*node.args, split)
