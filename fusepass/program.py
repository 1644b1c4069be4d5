"""Program: a region's pointwise operators as plain data.

What the matcher reads off the graph, what the recogniser compares with the table of stages, what
the validator runs, and the key under which both remember their answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import torch

from .epilogue import Operand


@dataclass(frozen=True)
class Value:
    """A tensor of the program: 0 is its input, ``i`` the result of step ``i - 1``."""

    index: int


@dataclass(frozen=True)
class TensorConst:
    """A tensor that holds one number everywhere; ``value`` is as its dtype rounded it."""

    value: float


@dataclass(frozen=True)
class Symbolic:
    """A number that only the compiler's shape variables know, such as a dynamic size."""

    name: str


Arg = Union[Value, TensorConst, Symbolic, Operand, float, int, bool, str, None]


@dataclass(frozen=True)
class Step:
    """One ATen operator applied to earlier values and numbers."""

    target: torch._ops.OpOverload
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...] = ()
    # 0.0 and -0.0 are equal, and so are 1 and True, but they are not the same step: what is
    # remembered about the one must not be taken for the other.
    spelling: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spelling", repr((self.args, self.kwargs)))

    @property
    def name(self) -> str:
        """The operator without namespace and overload: ``mul``."""
        return str(self.target._schema.name).split("::")[-1]


Program = tuple[Step, ...]


def evaluate(
    program: Program, z: torch.Tensor, operands: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """Runs ``program``'s own operators on ``z``.

    Args:
        program: the steps; casts and views are not among them.
        z: the input, any shape; every step computes in its dtype.
        operands: the run-time scalars, ``$0`` first, 0-d and in ``z``'s dtype.

    Returns:
        The last step's result, or ``z`` for an empty program.
    """
    values = [z]

    def resolve(arg: Arg) -> Any:
        if isinstance(arg, Value):
            return values[arg.index]
        if isinstance(arg, TensorConst):
            return torch.tensor(arg.value, dtype=z.dtype)
        return operands[arg.index] if isinstance(arg, Operand) else arg

    for step in program:
        kwargs = {name: resolve(arg) for name, arg in step.kwargs}
        values.append(step.target(*map(resolve, step.args), **kwargs))
    return values[-1]
