"""The operands of a program: in the order of the op's, and numbered anew; groups of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .epilogue import Builder, Epilogue, Node, Output
from .types import COMPUTED, KINDS, Arg, Input, Number, Ref


def places(epilogue: Epilogue) -> Iterator[Input]:
    """Every operand that the op is handed, in order; one that is not read has no dtype."""
    known = {(i.kind, i.index): i for i in epilogue.operands}
    for kind in KINDS:
        for index in range(epilogue.count(kind) if kind not in COMPUTED else 0):
            yield known.get((kind, index), Input(kind, index))


def varied(sizes: Sequence[Any]) -> int:
    """How many first dimensions a tensor of ``sizes`` differs by: those up to the last one that is
    no 1."""
    others = (i + 1 for i, size in enumerate(sizes) if not (isinstance(size, int) and size == 1))
    return max(others, default=0)


def rows_of_group(sizes: Sequence[Any], rows: Sequence[Any]) -> Any:
    """How many rows read the same numbers of a col [*sizes, N] beside a z [*rows, N].

    ``sizes`` are those of ``rows`` up to some dimension and ones behind it; 0 stands for all rows,
    which is what one without sizes has.
    """
    first = varied(sizes)
    return math.prod(rows[first:]) if first else 0


def replaced(
    epilogue: Epilogue,
    moved: Callable[[Arg], Arg],
    changed: Callable[[Node], Node] = lambda node: node,
) -> Epilogue:
    """The program with other inputs: ``moved`` of each argument, and of what is stored.

    ``changed`` of each operation is what is applied, its arguments still those of ``epilogue``.
    """
    builder = Builder()
    made: list[Arg] = []

    def argument(arg: Arg) -> Arg:
        return made[arg.index] if isinstance(arg, Ref) else moved(arg)

    for node in map(changed, epilogue.nodes):
        made.append(builder.apply(node.op, *map(argument, node.args), rounded=node.rounded))
    outputs = []
    for output in epilogue.outputs:
        stored = argument(output.value)
        assert not isinstance(stored, Number)
        outputs.append(Output(stored, output.kind, output.dtype))
    return builder.finish(*outputs)


def compact(epilogue: Epilogue) -> tuple[Epilogue, tuple[Input, ...]]:
    """The program with its operands numbered from 0, each kind by itself, without gaps.

    Returns:
        It, and the operands of ``epilogue`` in the order in which the new program is handed them.
    """
    read = [a for node in epilogue.nodes for a in node.args if isinstance(a, Input)]
    read += [o.value for o in epilogue.outputs if isinstance(o.value, Input)]
    new_of: dict[Input, Input] = {}
    for value in read:
        if value.is_operand and value not in new_of:
            index = sum(known.kind == value.kind for known in new_of)
            new_of[value] = Input(value.kind, index, value.dtype)

    def moved(arg: Arg) -> Arg:
        return new_of.get(arg, arg) if isinstance(arg, Input) else arg

    numbered = replaced(epilogue, moved)
    old = {new: value for value, new in new_of.items()}
    return numbered, tuple(old[operand] for operand in numbered.operands)
