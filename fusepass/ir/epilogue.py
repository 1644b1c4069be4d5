"""Epilogue: the pure pointwise program between a GEMM's result and a site's outputs.

One frozen value drives everything: import, reference, report, kernel and cache key. It is in SSA
and in one normal form, so that equal programs are equal values and have one text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Union

from .heads import Heads
from .row import Row
from .table import ROWS
from .types import COMPUTED, KINDS, Arg, DType, Input, Number, Ref, Z

if TYPE_CHECKING:
    import torch

MAX_NODES = 64  # operations in one epilogue
MAX_NUMBERS = 32  # constants in it: they are arguments of the kernel
MAX_OPERANDS = {"$": 16, "col": 8, "row": 8, "mat": 8}
MAX_OUTPUTS = 4

Value = Union[Ref, Input]


@dataclass(frozen=True)
class Node:
    """One operation, a row of the table, applied to earlier values and numbers.

    Attributes:
        op: the row's name.
        args: one for each of the row's parameters.
        rounded: the dtype that eager rounds the result to; None where nothing says so.
    """

    op: str
    args: tuple[Arg, ...]
    rounded: DType | None = None

    def __post_init__(self) -> None:
        row = ROWS.get(self.op)
        if row is None:
            raise ValueError(f"epilogue: unknown operation {self.op!r}; they are {', '.join(ROWS)}")
        wrong = _wrong(row, self.args, self.rounded)
        if wrong is not None:
            raise ValueError(f"epilogue: {self.op} {wrong}")

    @property
    def refs(self) -> Iterator[Ref]:
        """The nodes it reads, with repetitions."""
        return (a for a in self.args if isinstance(a, Ref))


@dataclass(frozen=True)
class Output:
    """A result that leaves the kernel.

    Attributes:
        value: what is written.
        kind: ``store`` writes M×N elements; ``col_sum`` their sums over the rows, N.
        dtype: of what is written, where that is not z's.
    """

    value: Value
    kind: str = "store"
    dtype: DType | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("store", "col_sum"):
            raise ValueError(f"epilogue: no output of kind {self.kind!r}")

    @property
    def is_sum(self) -> bool:
        """Whether it is one number a column."""
        return self.kind == "col_sum"


@dataclass(frozen=True)
class Epilogue:
    """A program from z (and z1, and operands) to outputs; hashable and picklable.

    Build one with ``Epilogue.parse`` or a ``Builder``. ``Epilogue()`` stores z.

    Attributes:
        nodes: the operations; each reads earlier ones only, each is read.
        outputs: at least one.

    Raises:
        ValueError: if the program is not one, or not in normal form.

    Example:
        >>> str(Epilogue.parse("mul(0.5) clamp(-2, 2) gelu"))
        'mul(0.5) clamp(-2.0, 2.0) gelu'
    """

    nodes: tuple[Node, ...] = ()
    outputs: tuple[Output, ...] = (Output(Z),)

    def __post_init__(self) -> None:
        _check_limits(self)
        if _normal(self.nodes, self.outputs) != (self.nodes, self.outputs):
            raise ValueError("epilogue: not in normal form; a Builder makes it so")

    def __str__(self) -> str:
        from .text import write

        return write(self)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What it reads, in the order of ``KINDS`` and of their indices."""
        read = {a for node in self.nodes for a in node.args if isinstance(a, Input)}
        read |= {o.value for o in self.outputs if isinstance(o.value, Input)}
        return tuple(sorted(read, key=_place))

    @property
    def operands(self) -> tuple[Input, ...]:
        """The inputs that the op is handed, in the order it is handed them."""
        return tuple(i for i in self.inputs if i.is_operand)

    @property
    def num_operands(self) -> int:
        """How many operands the op must be given: every index up to the highest of its kind."""
        return sum(self.count(kind) for kind in KINDS if kind not in COMPUTED)

    @property
    def heads(self) -> Heads:
        """What it does among the columns of one head."""
        return Heads.of(self.inputs)

    def count(self, kind: str) -> int:
        """How many operands of ``kind`` the op must be given."""
        return max((i.index for i in self.inputs if i.kind == kind), default=-1) + 1

    @property
    def numbers(self) -> tuple[float, ...]:
        """The constants in the order of the nodes: run-time arguments of a kernel."""
        return tuple(a.value for node in self.nodes for a in node.args if isinstance(a, Number))

    @property
    def key(self) -> str:
        """The program without its numbers, what a build depends on: ``mul(#) clamp(#, #) gelu``."""
        from .text import write

        return write(self, numbers=False)

    @staticmethod
    def parse(text: str) -> Epilogue:
        """Reads the text form; ``parse(str(e)) == e`` for every epilogue.

        Raises:
            ValueError: naming the part of ``text`` that is not an epilogue.
        """
        from .text import read

        return read(text)

    def reference(
        self, z: torch.Tensor, *operands: torch.Tensor | float, z1: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The epilogue of ``z`` composed from torch's own operators, differentiable.

        Args:
            z: the pre-activation, [..., N], floating point.
            operands: ``num_operands``, by kind and index: scalars, numbers or one-element tensors,
                ``$0`` first; columns, broadcasting with [..., N]; rows, with [..., 1]; matrices, of
                z's shape; beside ``rot`` also of a part of N, the same for all.
            z1: the second pre-activation, of z's shape and dtype, if the program reads one.

        Returns:
            A tensor of z's shape and dtype (unless the output has another), [N] for a ``col_sum``;
            a tuple of them if there are several outputs. Rounded wherever eager rounds. For the
            exact value, pass everything in float64.

        Raises:
            ValueError: if operands are missing or too many.
        """
        from .reference import evaluate

        results = evaluate(self, z, operands, z1)
        return results[0] if len(results) == 1 else results


class Builder:
    """Makes an epilogue node by node. Equal nodes are one; what is not read is dropped.

    Example:
        >>> b = Builder()
        >>> str(b.finish(b.apply("mul", b.apply("sigmoid", Z), Z)))
        'sigmoid mul(z)'
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[Node, Ref] = {}

    def apply(self, op: str, *args: Arg | float, rounded: DType | None = None) -> Ref:
        """The value of ``op`` applied to ``args``.

        Raises:
            ValueError: if the table has no such operation of so many arguments.
        """
        exact = tuple(a if isinstance(a, (Ref, Input, Number)) else Number(a) for a in args)
        node = Node(op, exact, rounded)
        if node not in self._known:
            self._known[node] = Ref(len(self.nodes))
            self.nodes.append(node)
        return self._known[node]

    def finish(self, *outputs: Output | Value) -> Epilogue:
        """The epilogue with these outputs; a value stands for one that stores it.

        Raises:
            ValueError: if it has more nodes, numbers, operands or outputs than a kernel takes.
        """
        exact = tuple(o if isinstance(o, Output) else Output(o) for o in outputs)
        return Epilogue(*_normal(tuple(self.nodes), exact))


@lru_cache(maxsize=4096)
def _normal(
    nodes: tuple[Node, ...], outputs: tuple[Output, ...]
) -> tuple[tuple[Node, ...], tuple[Output, ...]]:
    """The same program with equal nodes merged, in the order in which the outputs ask for them."""
    known: dict[Node, Ref] = {}
    ordered: list[Node] = []
    places: dict[int, Ref] = {}
    for output in outputs:
        for index in _needed(nodes, output.value, places):
            node = nodes[index]
            args = tuple(places[a.index] if isinstance(a, Ref) else a for a in node.args)
            moved = Node(node.op, args, node.rounded)
            if moved not in known:
                known[moved] = Ref(len(ordered))
                ordered.append(moved)
            places[index] = known[moved]
    moved_outputs = (
        Output(places[o.value.index] if isinstance(o.value, Ref) else o.value, o.kind, o.dtype)
        for o in outputs
    )
    return tuple(ordered), tuple(moved_outputs)


def _needed(nodes: Sequence[Node], value: Value, known: dict[int, Ref]) -> list[int]:
    """Indices of the nodes behind ``value`` that are not ``known``, arguments first."""
    order: dict[int, None] = {}
    pending: list[tuple[int, bool]] = [(value.index, False)] if isinstance(value, Ref) else []
    while pending:
        index, expanded = pending.pop()
        if index in known or index in order:
            continue
        if expanded:
            order[index] = None
            continue
        pending.append((index, True))
        before = [a.index for a in nodes[index].refs]
        if any(not 0 <= b < index for b in before):
            raise ValueError("epilogue: an operation reads a later one")
        pending += [(b, False) for b in reversed(before)]
    return list(order)


def _wrong(row: Row, args: tuple[Arg, ...], rounded: DType | None) -> str | None:
    """Why ``row`` is not applied to ``args``."""
    if len(args) != row.arity:
        return f"takes {row.arity} arguments, got {len(args)}"
    if all(isinstance(a, Number) for a in args):
        return "of numbers alone is a number"
    if any(p == "b" and isinstance(a, Number) for p, a in zip(row.parameters, args, strict=True)):
        return "has a number for a condition"
    if rounded is not None and row.result == "b":
        return "is a condition, which nothing rounds"
    return "cannot be rounded to bool; ne(0.0) is meant" if rounded is DType.BOOL else None


def _place(value: Input) -> tuple[int, int, str]:
    dtype = value.dtype.value if value.dtype is not None else ""
    return KINDS.index(value.kind), value.index, dtype


def _check_limits(epilogue: Epilogue) -> None:
    if not 1 <= len(epilogue.outputs) <= MAX_OUTPUTS:
        raise ValueError(f"epilogue: 1 to {MAX_OUTPUTS} outputs, got {len(epilogue.outputs)}")
    if len(epilogue.nodes) > MAX_NODES:
        raise ValueError(f"epilogue: at most {MAX_NODES} operations, got {len(epilogue.nodes)}")
    if len(epilogue.numbers) > MAX_NUMBERS:
        raise ValueError(f"epilogue: at most {MAX_NUMBERS} numbers, got {len(epilogue.numbers)}")
    names = [(i.kind, i.index) for i in epilogue.operands]
    if len(set(names)) < len(names):
        raise ValueError("epilogue: an operand has two dtypes")
    Heads.of(epilogue.inputs)
    for kind, limit in MAX_OPERANDS.items():
        if epilogue.count(kind) > limit:
            raise ValueError(f"epilogue: at most {limit} operands {kind}")
