"""What the author of a model wrote at a place of its graph: RMSNorm, dropout, a residual, a gate.

A graph holds the operators that a program was taken apart to; a reason names the program.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

from .facts import (
    Graph,
    has_a_place,
    is_cast,
    is_pointwise,
    is_view,
    numel_is_one,
    packet,
    shape_of,
)
from .gemms import is_ours, is_product

aten = torch.ops.aten

PARTS = (aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind)
_ADDITIONS = (aten.add, aten.sub, aten.rsub)
_FACTORS = (aten.mul, aten.div)
_FAR = 32  # nodes that a search looks at

# Operators of torch that Inductor takes apart -> what a model's author calls them.
_LAYERS = {
    "native_layer_norm": "LayerNorm",
    "layer_norm": "LayerNorm",
    "native_group_norm": "GroupNorm",
    "group_norm": "GroupNorm",
    "_fused_rms_norm": "RMSNorm",
    "rms_norm": "RMSNorm",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "native_batch_norm": "BatchNorm",
    "cudnn_batch_norm": "BatchNorm",
    "batch_norm": "BatchNorm",
    "instance_norm": "InstanceNorm",
    "_native_batch_norm_legit": "BatchNorm",
    "_native_batch_norm_legit_no_training": "BatchNorm",
    "_native_batch_norm_legit_functional": "BatchNorm",
    "native_dropout": "dropout",
    "dropout": "dropout",
    "linalg_vector_norm": "a norm of the values",
    "logsumexp": "logsumexp",
}


def is_part(node: Node) -> bool:
    """Whether ``node`` takes a part of its input, or one of its several results."""
    return packet(node) in PARTS or node.target is operator.getitem


def operator_of(node: Node) -> str:
    """The operator that the user's program ran: ``silu`` for the ``neg`` it was taken apart to."""
    schema = getattr(node.meta.get("original_aten"), "_schema", None)
    schema = schema or getattr(node.target, "_schema", None)
    name = str(schema.name) if schema is not None else getattr(node.target, "__name__", "")
    return (name or str(node.target)).split("::")[-1]


def layer_of(node: Node) -> str | None:
    """``LayerNorm``, ``softmax``, ``dropout``: the layer that ``node`` is a piece of, if any."""
    return _LAYERS.get(operator_of(node))


# --- idioms: several operators that have one name -----------------------------------------------


def idiom(facts: Graph, uses: Sequence[Node]) -> str | None:
    """What several uses of one value are together: ``RMSNorm``, ``RoPE (rotary embedding)``.

    Args:
        uses: the operators that take one value, or a part of it.
    """
    squares = [u for u in uses if _is_square(u)]
    if any(_root_of(facts, u, aten.mean) for u in squares):
        return "RMSNorm"
    if any(_root_of(facts, u, aten.sum) for u in squares):
        return "a norm of the values"
    if {aten.mean, aten.sub} <= {packet(u) for u in uses}:
        return "LayerNorm, spelled out,"
    if any(_rotates(facts, u) for u in uses):
        return "RoPE (rotary embedding)"
    return None


def _is_square(node: Node) -> bool:
    if packet(node) is aten.pow:
        return bool(node.args[1] == 2)
    return packet(node) is aten.mul and node.args[0] is node.args[1]


def _root_of(facts: Graph, node: Node, kind: Any) -> bool:
    """Whether a root is taken of a mean or sum of ``node``'s values, an epsilon added or not."""
    made = [u for u in _through(facts, node) if packet(u) is kind]
    made += [u for m in made for u in _through(facts, m) if packet(u) is aten.add]
    return any(_reaches(facts, m, (aten.rsqrt, aten.sqrt, aten.pow)) for m in made)


def _reaches(facts: Graph, node: Node, kinds: tuple[Any, ...]) -> bool:
    """Whether ``node``'s value goes through views and casts alone into one of ``kinds``."""
    return any(packet(u) in kinds for u in _through(facts, node))


def _through(facts: Graph, node: Node) -> Iterable[Node]:
    pending = [node]
    for current in pending:
        for user in facts.users_in_phase(current):
            yield user
            if (is_view(user) or is_cast(user)) and len(pending) < _FAR:
                pending.append(user)


def _rotates(facts: Graph, node: Node) -> bool:
    """A half of each row is negated and joined with the other, or the rows become complex numbers,
    or products with two halves are joined."""
    if packet(node) is aten.view_as_complex:
        return True
    if packet(node) is aten.neg:
        return is_part(_source(node)) and _reaches(facts, node, (aten.cat, aten.stack))
    if packet(node) is not aten.mul or not is_part(_source(node)):
        return False
    sums = [u for u in _through(facts, node) if packet(u) in (aten.sub, aten.add)]
    return any(
        packet(s) is aten.sub and _of_two_products(s) and _reaches(facts, s, (aten.cat, aten.stack))
        for s in sums
    )


def _of_two_products(node: Node) -> bool:
    return len(node.all_input_nodes) == 2 and all(
        packet(_peeled(i)) is aten.mul for i in node.all_input_nodes
    )


def _source(node: Node) -> Node:
    """The node behind the views and casts in front of ``node``'s first input."""
    return _peeled(node.all_input_nodes[0])


def _peeled(node: Node) -> Node:
    while is_view(node) or is_cast(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def sigmoid_times(nodes: Sequence[Node]) -> str | None:
    """The name of ``z·sigmoid(c·z)`` spelled out, if that is what ``nodes`` compute of a z."""
    kinds = [packet(n) for n in nodes]
    rest = [k for k in kinds if k is not aten.sigmoid]
    if kinds.count(aten.sigmoid) != 1 or any(k is not aten.mul for k in rest):
        return None
    factors = [a for n in nodes if packet(n) is aten.mul for a in n.args if isinstance(a, float)]
    if len(rest) == 1 and not factors:
        return "SiLU: z·sigmoid(z)"
    if len(rest) != 2 or len(factors) != 1:
        return None
    name = "quick GELU" if abs(factors[0] - 1.702) < 1e-3 else "SiLU with a factor"
    return f"{name}: z·sigmoid({factors[0]:g}z)"


# --- the other input of an operator of two ------------------------------------------------------


def other_input(node: Node, value: Node, others: Sequence[Node]) -> str | None:
    """What ``node`` adds to ``value`` or multiplies it with, beyond "another tensor"."""
    if packet(node) in (aten.where, aten.masked_fill):
        return "a mask"
    if packet(node) not in (*_ADDITIONS, *_FACTORS):
        return None
    other, adds = others[0], packet(node) in _ADDITIONS
    if any(_is_random(o) for o in others):
        return "a random mask, as dropout makes it"
    if _is_vector(other, value):
        return "a vector added" if adds else "a layer scale (a vector)"
    if shape_of(other)[-1:] == (1,):
        return "a number a row added" if adds else "a factor a row"
    source = _product_behind(other, value)
    if not adds:
        return f"a gate ({source})" if source else None
    if source and len(other.users) == 1:  # a residual goes on to other places
        return f"{source} added"
    return "a residual added" if _numel(other) == _numel(value) else "a broadcast tensor added"


def joined_later(facts: Graph, node: Node, value: Node, z: Node) -> list[Node]:
    """The products behind ``z`` whose results a pointwise ``node`` joins with ``value``."""
    others = [i for i in node.all_input_nodes if i is not value]
    late = facts.late(others, z) if is_pointwise(node) else ()
    return [n for n in late if n is not z and (is_product(n) or is_ours(n))]


def _product_behind(other: Node, value: Node) -> str | None:
    """The one product that ``other`` is a pointwise function of, as a gate is; None if none is."""
    whole = _peeled(value)
    while is_part(whole):
        whole = _peeled(whole.all_input_nodes[0])
    frontier = {other}
    for _ in range(_FAR):
        latest = max(frontier)  # nodes compare by their place in the graph
        if len(frontier) == 1 and latest is whole:
            return "another part of the Linear's result"
        if len(frontier) == 1 and (is_product(latest) or is_ours(latest)):
            return "another Linear's result"
        simple = is_pointwise(latest) or is_view(latest) or is_cast(latest) or is_part(latest)
        frontier.remove(latest)
        frontier.update(i for i in latest.all_input_nodes if not numel_is_one(i))
        if not simple or not frontier:
            return None
    return None


def _is_vector(other: Node, value: Node) -> bool:
    """One row of elements, which all rows of ``value`` share."""
    shape = shape_of(other)
    one_row = bool(shape) and shape[:-1] == (1,) * (len(shape) - 1)
    return one_row and shape[-1:] == shape_of(value)[-1:]


def _numel(node: Node) -> Any:
    total: Any = 1
    for size in shape_of(node):
        total = total * size
    return total


def _is_random(node: Node) -> bool:
    """Whether ``node`` is made of random numbers, a few operators before."""
    pending = [node]
    for current in pending:
        if has_a_place(current):
            return True
        if len(pending) < 8 and (is_pointwise(current) or is_cast(current) or is_view(current)):
            pending.extend(current.all_input_nodes)
    return False
