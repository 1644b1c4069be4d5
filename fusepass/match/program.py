"""Program: a region's pointwise operators as plain data.

What the matcher reads off the graph, what the validator runs, and, without its casts, what the
import reads; the key under which answers are remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

import torch

from ..ir import Input


@dataclass(frozen=True)
class Value:
    """A tensor of the program: 0 is its input, ``i`` the result of step ``i - 1``."""

    index: int


@dataclass(frozen=True)
class TensorConst:
    """A tensor that holds one number everywhere.

    Attributes:
        value: as ``dtype`` rounded it.
        dtype: of the tensor; it counts in type promotion.
        scalar: whether the tensor has no dimension, and so does not make a result wider.
    """

    value: float
    dtype: torch.dtype = torch.float32
    scalar: bool = True


@dataclass(frozen=True)
class Symbolic:
    """A number that only the compiler's shape variables know, such as a dynamic size."""

    name: str


Arg = Union[Value, TensorConst, Symbolic, Input, torch.dtype, float, int, bool, str, None]

CAST = torch.ops.prims.convert_element_type.default  # how every cast is written here


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

    @property
    def cast(self) -> torch.dtype | None:
        """The dtype of the result, of a step that only casts."""
        dtype = self.args[1] if self.target is CAST else None
        return dtype if isinstance(dtype, torch.dtype) else None


Program = tuple[Step, ...]


def without_casts(program: Program) -> Program:
    """What ``program`` computes, for readers to whom the precision on the way is no matter."""
    values, steps = [Value(0)], []

    def moved(arg: Arg) -> Arg:
        return values[arg.index] if isinstance(arg, Value) else arg

    for step in program:
        args = tuple(map(moved, step.args))
        if step.cast is not None:
            values.append(args[0])  # type: ignore[arg-type]
            continue
        kwargs = tuple((name, moved(arg)) for name, arg in step.kwargs)
        steps.append(Step(step.target, args, kwargs))
        values.append(Value(len(steps)))
    return tuple(steps)


def evaluate(
    program: Program,
    z: torch.Tensor,
    operands: Mapping[Input, torch.Tensor] | None = None,
    exact: torch.dtype | None = None,
) -> torch.Tensor:
    """Runs ``program``'s own operators on ``z``, every one, casts among them.

    Args:
        program: the steps.
        z: the input, any shape.
        operands: scalars of no dimension, all others broadcasting with ``z``.
        exact: None to round where the program rounds. Else the dtype of the program's input, and
            ``z`` is wider: a cast to a floating type that holds all of ``exact``'s values keeps
            ``z``'s dtype, and so do constants. Other casts are made: they lose something of z.

    Returns:
        The last step's result, or ``z`` for an empty program.
    """
    values, known = [z], operands or {}

    def resolve(arg: Arg) -> Any:
        if isinstance(arg, Value):
            return values[arg.index]
        if isinstance(arg, TensorConst):
            shape, dtype = (() if arg.scalar else (1,)), arg.dtype
            if exact is not None and dtype.is_floating_point:
                shape, dtype = (), z.dtype
            return torch.full(shape, arg.value, dtype=dtype)
        if isinstance(arg, torch.dtype) and exact is not None and keeps(arg, exact):
            return z.dtype
        return known[arg] if isinstance(arg, Input) else arg

    for step in program:
        kwargs = {name: resolve(arg) for name, arg in step.kwargs}
        values.append(step.target(*map(resolve, step.args), **kwargs))
    return values[-1]


def keeps(dtype: torch.dtype, of: torch.dtype) -> bool:
    """Whether ``dtype`` is a floating type that has every value of ``of``."""
    return dtype.is_floating_point and represents(dtype, of)


def represents(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every value of ``narrow`` is a value of ``wide``."""
    if wide == narrow:
        return True
    try:
        return torch.promote_types(wide, narrow) == wide
    except RuntimeError:  # float8 and its like have no promotion
        return False
