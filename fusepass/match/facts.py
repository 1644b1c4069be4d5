"""What one pass over a graph needs to know about its nodes; nothing here edits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten
_packet = torch._ops.OpOverloadPacket

_VIEWS: tuple[_packet, ...] = (
    aten.view,
    aten._unsafe_view,
    aten.reshape,
    aten.permute,
    aten.transpose,
    aten.t,
    aten.unsqueeze,
    aten.squeeze,
    aten.alias,
    aten.detach,
    aten.clone,
)
_CASTS: tuple[_packet, ...] = (torch.ops.prims.convert_element_type, aten._to_copy)
_FILLS: dict[_packet, int] = {aten.full: 1, aten.full_like: 1, aten.scalar_tensor: 0}
_COPIES: tuple[_packet, ...] = (
    aten.lift_fresh_copy,
    aten.lift_fresh,
    aten.expand,
    torch.ops.prims.device_put,
)
_REAL = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
_REDUCTIONS = (aten.sum, aten.mean, aten.amax, aten.amin, aten.var_mean, aten.var, aten.prod)
# Rounded correctly wherever they run: of known numbers they make a known number.
_EXACT: tuple[_packet, ...] = (aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.sqrt)
# AOTAutograd's name for the gradient of an output; a parameter of the user's may be called alike.
_TANGENT = re.compile(r"tangents_\d+")


def packet(node: Node) -> Any:
    """The operator without its overload, or None for what is no ATen call."""
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def is_tangent(node: Node) -> bool:
    """Whether ``node`` is the gradient of an output, which a joint graph is given."""
    return node.op == "placeholder" and bool(_TANGENT.fullmatch(str(node.target)))


def is_view(node: Node) -> bool:
    return packet(node) in _VIEWS and node.target is not aten.view.dtype  # which reads other bits


def is_cast(node: Node) -> bool:
    return packet(node) in _CASTS


def is_identity(node: Node) -> bool:
    """Views and casts: nodes of a region that compute nothing."""
    return is_view(node) or is_cast(node)


def origin(node: Node) -> tuple[Any, ...]:
    """What ``node`` is a view or a cast of, and which: each GEMM of a graph has its own."""
    path: list[Any] = []
    while is_identity(node) and isinstance(node.args[0], Node):
        moved = packet(node) in (aten.permute, aten.transpose, aten.t)
        what = str(node.args[1:]) if moved else (shape_of(node), dtype_of(node))
        path.append((packet(node), what))
        node = node.args[0]
    return (node, *path)


def has_a_place(node: Node) -> bool:
    """Whether other nodes notice when ``node`` runs: it draws random numbers or has effects."""
    if isinstance(node.target, torch._ops.OpOverload):
        return _is_random(node.target) or _mutates(node)
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def _is_random(op: torch._ops.OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in op.tags


def is_awaited(node: Node) -> bool:
    """Whether ``node`` waits for what other processes send; what runs before hides the time."""
    return "_c10d_functional.wait_tensor" in str(node.target)


def is_pointwise(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or _is_random(node.target):
        return False
    return torch.Tag.pointwise in node.target.tags or packet(node) is aten.special_ndtr


def is_fusible(node: Node) -> bool:
    """Whether Inductor generates the code of ``node``, and fuses it with what it reads."""
    return is_pointwise(node) or is_cast(node) or packet(node) in _REDUCTIONS


def tensor(node: Node) -> torch.Tensor | None:
    """The (fake) tensor ``node`` stands for, if it is one."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def dtype_of(node: Node) -> torch.dtype | None:
    value = tensor(node)
    return None if value is None else value.dtype


def shape_of(node: Node) -> tuple[Any, ...]:
    """The shape with symbolic sizes as expressions: comparing two of them adds no guard."""
    value = tensor(node)
    return () if value is None else sizes_of(value)


def sizes_of(value: torch.Tensor) -> tuple[Any, ...]:
    """``shape_of`` a fake tensor."""
    return tuple(map(expression, value.shape))


def expression(size: Any) -> Any:
    """A size or stride as a number or an expression that equals another without a guard."""
    return size if isinstance(size, int) else size.node.expr


def numel_is_one(node: Node) -> bool:
    return tensor(node) is not None and all(s == 1 for s in shape_of(node))


def dtype_name(dtype: torch.dtype | None) -> str:
    """``float16`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


@dataclass
class Graph:
    """A joint or inference graph; true of it while it is edited, if new nodes are announced.

    Attributes:
        forward: the ancestors of the outputs and of the inputs' new values, as far as these do not
            depend on tangents; all nodes that matter, in a graph without a backward.
        has_backward: whether it is a joint graph, which the partitioner will cut in two.
        numbers: the number that fills a node, of each node for which it is known now.
    """

    graph: torch.fx.Graph
    forward: set[Node] = field(init=False)
    has_backward: bool = field(init=False)
    numbers: dict[Node, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        nodes = list(self.graph.nodes)
        backward: set[Node] = set()
        for node in nodes:
            if is_tangent(node) or any(i in backward for i in node.all_input_nodes):
                backward.add(node)
        self.has_backward = bool(backward)
        output = nodes[-1]
        self.forward = {output}
        written = [n for n in nodes if not n.users and _mutates(n)]
        pending = [n for n in (*output.all_input_nodes, *written) if n not in backward]
        while pending:
            node = pending.pop()
            if node not in self.forward:
                self.forward.add(node)
                pending.extend(node.all_input_nodes)
        for node in nodes:
            number = self._number(node)
            if number is not None:
                self.numbers[node] = number

    def announce(self, node: Node, like: Node) -> None:
        """A new node, which is of the forward if ``like`` is."""
        if like in self.forward:
            self.forward.add(node)

    def forget(self, node: Node) -> None:
        """``node`` is of the forward no more if nothing there reads it."""
        if not any(user in self.forward for user in node.users):
            self.forward.discard(node)

    def users_in_phase(self, node: Node) -> list[Node]:
        """The users of ``node`` in its own part of a joint graph.

        What the backward reads of the forward is read from what is saved; behind a node of the
        backward there is only the backward.
        """
        if node not in self.forward:
            return list(node.users)
        return [u for u in node.users if u in self.forward]

    def depends_on(self, node: Node, source: Node) -> bool:
        """Whether ``source`` is an ancestor of ``node``; nodes before it need no visit."""
        seen, pending = set(), [node]
        while pending:
            current = pending.pop()
            if current is source:
                return True
            if current in seen or current < source:
                continue
            seen.add(current)
            pending.extend(current.all_input_nodes)
        return False

    def late(self, nodes: Sequence[Node], before: Node) -> set[Node]:
        """``nodes`` and their ancestors, as far as they stand behind ``before`` or are it."""
        late: set[Node] = set()
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node not in late and not node < before:
                late.add(node)
                pending.extend(node.all_input_nodes)
        return late

    def constant(self, node: Node) -> float | None:
        """The number that fills ``node``, if that is known now."""
        return self.numbers.get(node)

    def _number(self, node: Node) -> float | None:
        """``constant``, from the numbers of the nodes before ``node``."""
        if dtype_of(node) not in _REAL:
            return None
        if node.op == "get_attr":
            return self._attribute(node)
        kind = packet(node)
        if kind in _FILLS:
            position = _FILLS[kind]
            value = node.args[position] if len(node.args) > position else None
        elif kind in _COPIES or is_identity(node):
            source = node.args[0]
            value = self.numbers.get(source) if isinstance(source, Node) else None
        elif kind in _EXACT and numel_is_one(node):
            return self._computed(node)
        else:
            return None
        return _rounded(value, dtype_of(node)) if isinstance(value, (bool, int, float)) else None

    def _computed(self, node: Node) -> float | None:
        inputs = node.all_input_nodes
        if any(i not in self.numbers for i in inputs):
            return None
        with _disable_current_modes():
            scalars = {i: torch.tensor(self.numbers[i], dtype=dtype_of(i)) for i in inputs}
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), scalars.__getitem__)
            return float(node.target(*args, **kwargs).item())  # type: ignore[operator]

    def _attribute(self, node: Node) -> float | None:
        value: Any = self.graph.owning_module
        for name in str(node.target).split("."):
            value = getattr(value, name, None)
        if not isinstance(value, torch.Tensor) or isinstance(value, torch._subclasses.FakeTensor):
            return None
        if value.numel() != 1:
            return None
        with _disable_current_modes():
            return float(value.item())


def _rounded(value: float, dtype: torch.dtype | None) -> float:
    with _disable_current_modes():
        return float(torch.tensor(float(value), dtype=torch.float64).to(dtype).item())
