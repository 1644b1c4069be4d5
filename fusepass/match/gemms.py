"""The matrix products of a graph: which nodes they are, how large, and what they multiply."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_flatten

from .facts import (
    Graph,
    dtype_name,
    dtype_of,
    is_cast,
    is_pointwise,
    is_tangent,
    is_view,
    packet,
    tensor,
)

aten = torch.ops.aten

# packet -> where its first matrix stands among the arguments; the second follows it.
_PRODUCTS: dict[Any, int] = {
    aten.mm: 0,
    aten.addmm: 1,
    aten.bmm: 0,
    aten.baddbmm: 1,
    aten.mv: 0,
    aten.addmv: 1,
    aten._scaled_mm: 0,
    aten._int_mm: 0,
}
# Layers that torch runs as one operator; their Linears are inside.
_WHOLE = (aten._transformer_encoder_layer_fwd, aten._native_multi_head_attention)
_RNNS = (aten.mkldnn_rnn_layer, aten._cudnn_rnn)
# Products that Inductor's decompositions turn into a multiplication and a sum.
_TAKEN_APART = tuple(k for k in _PRODUCTS if k not in (aten._scaled_mm, aten._int_mm))
_SOFTMAX = (aten._softmax, aten._safe_softmax, aten.softmax, aten._softmax_backward_data)
_FAR = 64  # nodes that a search visits; attention's mask, scale and dropout are a few
_THROUGH = (aten.expand, aten.slice, aten.where)


def is_product(node: Node) -> bool:
    """Whether ``node`` is a matrix product, also of a batch, of a vector or of integers."""
    return packet(node) in _PRODUCTS or is_grouped(node)


def is_grouped(node: Node) -> bool:
    """Whether ``node`` multiplies groups of rows with a matrix each, as experts do."""
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and "grouped_mm" in op._schema.name


def is_ours(node: Node) -> bool:
    """Whether ``node`` is a product that runs as one of fusepass's ops already."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "fusepass"


def is_whole_layer(node: Node) -> bool:
    """Whether ``node`` is a layer with Linears that torch runs as one operator."""
    return packet(node) in _WHOLE or is_rnn(node)


def is_rnn(node: Node) -> bool:
    """Whether ``node`` runs all steps of a recurrent layer."""
    return packet(node) in _RNNS


def is_taken_apart(node: Node) -> bool:
    """Whether ``node`` multiplies element by element what the program multiplied as matrices."""
    original = _original(node)
    if original not in _TAKEN_APART or packet(node) is not aten.mul:
        return False
    summed = any(packet(u) is aten.sum for u in node.users)
    return summed or original in (aten.mm, aten.bmm)


def _original(node: Node) -> Any:
    """The operator that ``node`` was a piece of before it was taken apart."""
    return getattr(node.meta.get("original_aten"), "overloadpacket", None)


def operands(node: Node) -> tuple[Node, Node]:
    """The two matrices that a product multiplies."""
    first = _PRODUCTS.get(packet(node), 0)
    a, b = node.args[first : first + 2]
    assert isinstance(a, Node) and isinstance(b, Node)
    return a, b


def flops(node: Node) -> int | None:
    """2·M·N·K of the node's products, with the sizes it was traced with where they are symbolic.

    None where a size is not known before run time, or the node is none of this module's.
    """
    try:
        if is_product(node):
            return 2 * math.prod(map(_known, tensor_of(node).shape)) * _depth(node)
        if is_taken_apart(node):
            return 2 * math.prod(map(_known, tensor_of(node).shape))
        return _whole_flops(node) if is_whole_layer(node) else None
    except _UnknownSize:
        return None


def shape_text(node: Node) -> str | None:
    """``float32 [8, 64] x [64, 256]``: the dtype and the shapes of a product's operands."""
    if not is_product(node):
        return None
    a, b = (tensor(n) for n in operands(node))
    if a is None or b is None:
        return None
    return f"{dtype_name(dtype_of(node))} {_sizes(a)} x {_sizes(b)}"


def _sizes(value: torch.Tensor) -> str:
    return f"[{', '.join(map(str, value.shape))}]"


def tensor_of(node: Node) -> torch.Tensor:
    value = tensor(node)
    if value is None:
        raise _UnknownSize
    return value


def _depth(node: Node) -> int:
    """K, the length of the sums of a product."""
    return _known(tensor_of(operands(node)[0]).shape[-1])


class _UnknownSize(Exception):
    pass


def _known(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    if hint is None:
        raise _UnknownSize
    return int(hint)


def _whole_flops(node: Node) -> int:
    """Every matrix among the layer's weights is multiplied with every token."""
    source = tensor_of(node.args[0])  # type: ignore[arg-type]
    tokens = math.prod(map(_known, source.shape[:-1]))
    schema = node.target._schema  # type: ignore[union-attr]
    names = [a.name for a in schema.arguments]
    weights, _ = tree_flatten([a for n, a in zip(names, node.args, strict=False) if "weight" in n])
    matrices = [v for w in weights if isinstance(w, Node) and (v := tensor(w)) is not None]
    return 2 * tokens * sum(math.prod(map(_known, w.shape)) for w in matrices if w.dim() == 2)


# --- what is multiplied -------------------------------------------------------------------------


def is_matmul(node: Node) -> bool:
    """Whether a product multiplies two computed tensors; a Linear multiplies with a weight."""
    return is_product(node) and all(_is_computed(operand) for operand in operands(node))


def _is_computed(node: Node) -> bool:
    while is_view(node) or is_cast(node) or packet(node) in _THROUGH:
        source = node.args[0]
        if not isinstance(source, Node):
            return True
        node = source
    return node.op not in ("placeholder", "get_attr") or is_tangent(node)


def is_attention(facts: Graph, node: Node) -> bool:
    """Whether ``node`` is one of the two products of an attention spelled out, or of its backward.

    They multiply computed tensors, one's result goes through a softmax into another product, the
    other takes what comes out of a softmax.
    """
    kinds = (aten.mm, aten.bmm, aten.baddbmm) if node in facts.forward else (aten.bmm,)
    if packet(node) not in kinds or not is_matmul(node):
        return False
    if any(_is_softmax(n) for o in operands(node) for n in made_of(o)):
        return True
    softmax = next((n for n in _forth(facts, node) if _is_softmax(n)), None)
    return softmax is not None and any(is_product(n) for n in _forth(facts, softmax))


def has_plain_attention(facts: Graph) -> bool:
    """Whether the graph has an attention with a softmax as a model author writes it, of which
    Inductor may make one operator; the softmax of torch's own attention taken apart is another."""
    softmax = (n for n in facts.graph.nodes if _original(n) in (aten._softmax, aten.softmax))
    return any(packet(m) in (aten.bmm, aten.baddbmm) for n in softmax for m in made_of(n))


def _is_softmax(node: Node) -> bool:
    return _original(node) in _SOFTMAX or packet(node) in _SOFTMAX


def made_of(node: Node) -> Iterator[Node]:
    """``node`` and what it is made of, through pointwise operators, views and casts: some."""
    pending, seen = [node], {node}
    while pending and len(seen) < _FAR:
        current = pending.pop()
        yield current
        if passes(current):
            new = [i for i in current.all_input_nodes if i not in seen]
            seen.update(new)
            pending.extend(new)


def _forth(facts: Graph, node: Node) -> Iterator[Node]:
    """The nodes that ``node``'s value reaches, through pointwise operators, views and softmax."""
    pending, seen = [node], {node}
    while pending and len(seen) < _FAR:
        for user in facts.users_in_phase(pending.pop()):
            if user not in seen:
                seen.add(user)
                yield user
                if passes(user) or _is_softmax(user):
                    pending.append(user)


def passes(node: Node) -> bool:
    """Whether the elements of ``node`` are its inputs', computed one by one or moved."""
    return is_pointwise(node) or is_view(node) or is_cast(node) or packet(node) in _THROUGH


def feeds_attention(facts: Graph, node: Node, spelled_out: bool) -> bool:
    """Whether all that ``node``'s value is used for is to be multiplied by an attention.

    Args:
        spelled_out: whether one that torch has an operator for does not count.
    """
    pending = [node]
    for current in pending:
        users = facts.users_in_phase(current)
        if not users or len(pending) > _FAR:
            return False
        for user in users:
            if is_view(user) or is_cast(user) or packet(user) in _THROUGH:
                pending.append(user)
            elif not (is_attention(facts, user) or (not spelled_out and is_kernel(user))):
                return False
    return True


def is_kernel(node: Node) -> bool:
    """Whether ``node`` is one of torch's operators for a whole attention."""
    return node.op == "call_function" and "attention" in str(node.target)
