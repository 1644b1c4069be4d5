"""An operand of float32 split once: an op of its own, for several products or for a constant.

In "highest" the GEMM on Hopper reads both operands split into 16-bit pieces. ``split(m)`` makes the
pieces of a matrix, rows of K last, in the order in which it is stored; ``linear.split(x, w, ...)``
takes those of x, of w or of both. Where parameters are constants
(``torch._inductor.config.freezing``), Inductor runs ``split`` of a weight when it compiles, and a
call no longer splits w. The operands stay arguments: what runs is still decided by each call, and
cuBLAS, TF32 and the tiles that are summed in float64 read them themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..kernels import fuses
from ..kernels.calls import Call, calls_in

_ARGUMENTS = (
    "(Tensor x, Tensor weight, Tensor? bias, str epilogue, Tensor[] operands, "
    "Tensor? x_split, Tensor? weight_split)"
)


def _stored_km(matrix: Tensor) -> bool:
    """Whether rows lie beside one another, as binding_split.h reads strides; False for neither."""
    k, rows, leading = matrix.shape[-1], 1, [*zip(matrix.shape, matrix.stride(), strict=True)][:-1]
    for size, _ in leading:
        rows *= size
    spaced = [(size, stride) for size, stride in reversed(leading) if size != 1]
    by_row = matrix.stride(-1) == 1 or k == 1
    step = first = spaced[0][1] if spaced else k
    for size, stride in spaced:
        by_row = by_row and stride == step
        step *= size
    if by_row and (rows == 1 or first >= k):
        return False
    beside = 1
    for size, stride in spaced:
        if stride != beside:
            return False
        beside *= size
    return bool(matrix.stride(-1) >= rows)


def _split_shape(matrix: Tensor) -> tuple[int, int]:
    from ..kernels.plan.f32 import split_shape

    rows = 1
    for size in matrix.shape[:-1]:
        rows *= size
    return split_shape(rows, matrix.shape[-1], _stored_km(matrix))


def _empty_split(matrix: Tensor) -> Tensor:
    """Room for the split of a matrix [..., K].

    Raises:
        ValueError: if it is not a float32 matrix.
    """
    torch._check_value(
        matrix.dim() >= 2 and matrix.dtype == torch.float32,
        lambda: "fusepass::split: matrix must be a float32 [..., K]",
    )
    return matrix.new_empty(_split_shape(matrix), dtype=torch.uint8)


def _check_split(name: str, matrix: Tensor, split: Tensor | None) -> None:
    """As the C++ side checks, whatever then runs.

    Raises:
        ValueError: if ``split`` is not of the size that ``fusepass::split(matrix)`` has.
    """
    if split is None:
        return
    torch._check_value(
        matrix.dim() >= 2
        and split.shape == _split_shape(matrix)
        and split.is_contiguous()
        and (split.dtype, split.device) == (torch.uint8, matrix.device),
        lambda: f"fusepass::linear: {name}_split must be what fusepass::split made of {name}",
    )


def _split(matrix: Tensor) -> Tensor:
    from ..kernels import load_binding

    if matrix.device.type == "cuda" and load_binding():
        out: Tensor = torch.ops.fusepass.split.default(matrix)
        return out
    # Every row "not finite": should a kernel ever read this, it sums in float64.
    return _empty_split(matrix).fill_(255)


def _linear_split(*args: Any) -> Tensor:
    from ..kernels import load_binding

    if args[0].device.type == "cuda" and load_binding():
        out: Tensor = torch.ops.fusepass.linear.split(*args)
        return out
    return _fake_linear_split(*args)


def _fake_linear_split(*args: Any) -> Tensor:
    *plain, x_split, weight_split = args
    _check_split("x", plain[0], x_split)
    _check_split("weight", plain[1], weight_split)
    out: Tensor = torch.ops.fusepass.linear.default(*plain)
    return out


def _split_kernels(device: int) -> str:
    """The path of the kernels that split a matrix, built; empty if that cannot be."""
    from ..kernels.build.build import device_arch
    from ..kernels.build.toolchain import BuildError
    from ..kernels.plan.f32 import split_cubin

    try:
        return str(split_cubin(device_arch(device)))
    except (BuildError, OSError):
        return ""


def define(library: torch.library.Library, tags: tuple[torch.Tag, ...]) -> None:
    """Adds ``split(Tensor matrix) -> Tensor`` and the overload ``linear.split``."""
    library.define("split(Tensor matrix) -> Tensor", tags=tags)
    library.define(f"linear.split{_ARGUMENTS} -> Tensor", tags=tags)
    library.define("_split_kernels(int device) -> str")
    library.impl("split", _split, "CompositeExplicitAutograd")
    library.impl("linear.split", _linear_split, "CompositeExplicitAutograd")
    library.impl("_split_kernels", _split_kernels, "CompositeExplicitAutograd")
    torch.library.register_fake("fusepass::split", _empty_split, lib=library)
    torch.library.register_fake("fusepass::linear.split", _fake_linear_split, lib=library)


def use_in(graph: torch.fx.Graph) -> None:
    """Where parameters are about to become constants, splits those that calls would split."""
    from torch._inductor import config
    from torch._inductor.virtualized import V

    # A package hands over empty lists of operands as None (constant.py): it splits in each call.
    if not config.freezing or torch.is_grad_enabled() or V.aot_compilation:
        return
    splitting = {call.node for call in calls_in(graph) if splits(call)}
    for node in graph.find_nodes(op="call_function", target=torch.ops.fusepass.linear.default):
        if node.name in splitting and _is_parameter(node.args[1]):
            _split_ahead(graph, node)


def is_packaged() -> bool:
    """Whether C++ calls the ops: it hands over empty lists of operands as None (constant.py)."""
    from torch._inductor import config
    from torch._inductor.virtualized import V

    return bool(V.aot_compilation or config.cpp_wrapper)


def splits(call: Call) -> bool:
    """Whether the plan takes the split kernel for ``call`` at torch's present precision."""
    from ..kernels.plan import few as plan_few
    from ..kernels.plan.problem import FLOAT32, plan_code

    if call.numerics != "accurate" or call.dtype != torch.float32:
        return False
    if call.with_preact:
        return False  # the op with z takes no split
    if plan_code(call.dtype) != FLOAT32:
        return False
    orders, bare = (call.w_is_kn, call.x_is_km), not call.epilogue
    if plan_few.choose(FLOAT32, call.m, call.n, call.k, *orders, bare=bare) is not None:
        return False  # few rows: their kernel reads float32
    return fuses(call.device, call.dtype, call.m, call.n, call.k, *orders, bare)


def _is_parameter(weight: Any) -> bool:
    """An input of the graph, perhaps seen as its transpose: split runs on it but once."""
    while weight.op == "call_function" and weight.target is torch.ops.aten.permute.default:
        weight = weight.args[0]
    return bool(weight.op == "placeholder")


def _split_ahead(graph: torch.fx.Graph, node: Node) -> None:
    weight = node.args[1]
    assert isinstance(weight, Node)
    with graph.inserting_before(node):
        split = graph.call_function(torch.ops.fusepass.split.default, (weight,))
    split.meta["val"] = torch.ops.fusepass.split.default(weight.meta["val"])
    node.target = torch.ops.fusepass.linear.split
    node.args = (*node.args, None, split)
