"""A program's outputs: which the framework's GEMM has written; those of several programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from .epilogue import Builder, Epilogue, Output
from .types import Input, Ref, Z


@lru_cache(maxsize=4096)
def with_preact(epilogue: Epilogue) -> Epilogue:
    """The program with one more output, z."""
    return Epilogue(epilogue.nodes, (*epilogue.outputs, Output(Z)))


@lru_cache(maxsize=4096)
def taken(epilogue: Epilogue) -> tuple[Input | None, ...]:
    """For each output the GEMM result that it is, Z or Z1, or None if it must be computed.

    Each result is one output's alone: outputs share no memory.
    """
    found: list[Input | None] = []
    for output in epilogue.outputs:
        value = output.value
        is_gemm = isinstance(value, Input) and not value.is_operand
        plain = is_gemm and output == Output(value) and value not in found
        found.append(value if plain and isinstance(value, Input) else None)
    return tuple(found)


@lru_cache(maxsize=4096)
def computed(epilogue: Epilogue) -> Epilogue | None:
    """The program of those outputs that no GEMM has written; None if there are none."""
    pairs = zip(epilogue.outputs, taken(epilogue), strict=True)
    outputs = tuple(output for output, of_gemm in pairs if of_gemm is None)
    return Epilogue(epilogue.nodes, outputs) if outputs else None


@lru_cache(maxsize=4096)
def without_gemms(epilogue: Epilogue) -> Epilogue:
    """The program without the z and z1 that are stored behind its results."""
    count = len(epilogue.outputs)
    while count > 1 and taken(epilogue)[count - 1] is not None:
        count -= 1
    return Epilogue(epilogue.nodes, epilogue.outputs[:count])


def reads_only_z(epilogue: Epilogue) -> bool:
    """Whether it is of z and scalars, and has one output, like z."""
    of_z = all(i.kind in ("z", "$") for i in epilogue.inputs)
    (first, *more) = epilogue.outputs
    return of_z and not more and not first.is_sum and first.dtype is None


def joined(programs: Sequence[Epilogue]) -> Epilogue:
    """One program with the outputs of all, in order; what is equal in them is computed once."""
    if len(programs) == 1:
        return programs[0]
    builder, outputs = Builder(), list[Output]()
    for program in programs:
        made: list[Ref] = []
        for node in program.nodes:
            args = (made[a.index] if isinstance(a, Ref) else a for a in node.args)
            made.append(builder.apply(node.op, *args, rounded=node.rounded))
        for output in program.outputs:
            value = output.value
            value = made[value.index] if isinstance(value, Ref) else value
            outputs.append(replace(output, value=value))
    return builder.finish(*outputs)
