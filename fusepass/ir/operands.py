"""Numbering the operands of a program anew, in the order in which it reads them."""

from __future__ import annotations

from .epilogue import Builder, Epilogue, Output
from .types import Arg, Input, Number


def compact(epilogue: Epilogue) -> tuple[Epilogue, tuple[Input, ...]]:
    """The program with its operands numbered from 0, each kind by itself, without gaps.

    Returns:
        It, and the operands of ``epilogue`` in the order in which the new program is handed them.
    """
    read = [a for node in epilogue.nodes for a in node.args if isinstance(a, Input)]
    read += [o.value for o in epilogue.outputs if isinstance(o.value, Input)]
    places: dict[Input, Input] = {}
    for value in read:
        if value.is_operand and value not in places:
            index = sum(known.kind == value.kind for known in places)
            places[value] = Input(value.kind, index, value.dtype)

    def moved(arg: Arg) -> Arg:
        return places.get(arg, arg) if isinstance(arg, Input) else arg

    builder = Builder()
    for node in epilogue.nodes:
        builder.apply(node.op, *map(moved, node.args), rounded=node.rounded)
    outputs = []
    for output in epilogue.outputs:
        stored = moved(output.value)
        assert not isinstance(stored, Number)
        outputs.append(Output(stored, output.kind, output.dtype))
    numbered = builder.finish(*outputs)
    old = {new: value for value, new in places.items()}
    return numbered, tuple(old[operand] for operand in numbered.operands)
