"""Claims: products that passes of torch's own would do something with, where these are on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable

import torch
from torch.fx import Node

from ..match.facts import is_awaited, is_cast, is_pointwise, is_view, packet, shape_of

aten = torch.ops.aten

_PARTS = (aten.split, aten.split_with_sizes, aten.slice, aten.cat)
_FAR = 16  # nodes between a collective and its product; torch's patterns have five at most


def claim(gemm: Node) -> str | None:
    """The pass of torch's that would take ``gemm`` away from its GEMM library, or None."""
    from torch._inductor import config

    if getattr(config, "_micro_pipeline_tp", False) and _is_pipelined(gemm):
        return "asynchronous tensor parallelism runs this product while it communicates"
    return None


def bare_claim(gemm: Node) -> str | None:
    """As ``claim``, of passes that would only make the product alone faster, or None."""
    from torch._inductor import config

    if config.freezing and not torch.is_grad_enabled() and _has_sisters(gemm):
        return "freezing makes one product of this and of others of the same input"
    if _takes_a_matrix(gemm):
        return "torch's GEMM adds the tensor that is added to its result"
    return None


# --- communication -------------------------------------------------------------------------------


def _is_pipelined(gemm: Node) -> bool:
    gathers = any(_reaches(a, "all_gather_into_tensor", _inputs) for a in gemm.all_input_nodes)
    return gathers or _reaches(gemm, "reduce_scatter_tensor", lambda n: n.users)


def _inputs(node: Node) -> Iterable[Node]:
    return node.all_input_nodes


def _reaches(start: Node, collective: str, neighbours: Callable[[Node], Iterable[Node]]) -> bool:
    """Whether a collective is found from ``start`` on, through what only moves elements."""
    pending, seen = [start], {start}
    while pending and len(seen) < _FAR:
        node = pending.pop()
        if f"_c10d_functional.{collective}" in str(node.target):
            return True
        if node is start or _moves(node):
            new = [n for n in neighbours(node) if n not in seen]
            seen.update(new)
            pending.extend(new)
    return False


def _moves(node: Node) -> bool:
    if node.target is operator.getitem or is_view(node) or is_cast(node):
        return True
    return packet(node) in _PARTS or is_awaited(node)


# --- several products as one ---------------------------------------------------------------------


def _has_sisters(gemm: Node) -> bool:
    """Whether another product of the same kind multiplies the same matrix with a parameter."""
    first = 1 if gemm.target is aten.addmm.default else 0
    x, kn = gemm.args[first : first + 2]
    assert isinstance(x, Node) and isinstance(kn, Node)
    sisters = [u for u in x.users if u.target is gemm.target and u.args[first] is x]
    return len(sisters) > 1 and all(_is_parameter(u.args[first + 1]) for u in sisters)


def _is_parameter(node: object) -> bool:
    while isinstance(node, Node) and is_view(node):
        node = node.args[0]
    return isinstance(node, Node) and node.op in ("placeholder", "get_attr")


def _takes_a_matrix(gemm: Node) -> bool:
    """Whether Inductor makes an ``addmm`` of an ``mm`` and the matrix added to it.

    It does not where everything that reads the sum is pointwise: it then adds in that kernel.
    """
    if gemm.target is not aten.mm.default or len(gemm.users) != 1:
        return False
    (user,) = gemm.users
    if user.target is not aten.add.Tensor or shape_of(user) != shape_of(gemm):
        return False
    others = [a for a in user.args if a is not gemm]
    same = len(others) == 1 and isinstance(others[0], Node) and shape_of(others[0]) != ()
    return same and not all(is_pointwise(u) for u in user.users)
