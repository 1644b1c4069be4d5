"""Epilogue: the ordered stages between a Linear's pre-activation and the site's output.

One frozen value drives everything: the reference, the kernel, the report, the cache key. Its text
form, ``mul(0.5) clamp(-2.0, 2.0) gelu``, is the only form that leaves this process.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Union

from .stages import MAX_SCALARS, MAX_STAGES, STAGES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Operand:
    """A scalar known only at run time: the ``index``-th tensor of the op's ``operands``."""

    index: int

    def __str__(self) -> str:
        return f"${self.index}"


Scalar = Union[float, Operand]

_STAGE_TEXT = re.compile(r"([a-z_]\w*)(?:\(([^()]*)\))?")


@dataclass(frozen=True)
class StageCall:
    """One stage with its scalars, e.g. ``clamp(-2.0, 2.0)``."""

    name: str
    scalars: tuple[Scalar, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in STAGES:
            known = ", ".join(STAGES)
            raise ValueError(f"epilogue: unknown stage {self.name!r}; the stages are {known}")
        arity = STAGES[self.name].arity
        if len(self.scalars) != arity:
            raise ValueError(
                f"epilogue: {self.name} takes {arity} scalar(s), got {len(self.scalars)}"
            )
        for scalar in self.scalars:
            if not isinstance(scalar, Operand) and math.isnan(scalar):
                raise ValueError(f"epilogue: {self.name} has a NaN scalar; it has no text form")

    def __str__(self) -> str:
        if not self.scalars:
            return self.name
        return f"{self.name}({', '.join(_scalar_text(s) for s in self.scalars)})"


@dataclass(frozen=True)
class Epilogue:
    """The stages in the order they are applied, none for a bare GEMM; hashable and picklable.

    Example:
        >>> str(Epilogue.parse("mul(0.5) clamp(-2, 2) gelu"))
        'mul(0.5) clamp(-2.0, 2.0) gelu'
    """

    stages: tuple[StageCall, ...]

    def __post_init__(self) -> None:
        if len(self.stages) > MAX_STAGES:
            raise ValueError(f"epilogue: at most {MAX_STAGES} stages, got {len(self.stages)}")
        if sum(len(s.scalars) for s in self.stages) > MAX_SCALARS:
            raise ValueError(f"epilogue: at most {MAX_SCALARS} scalars in all")

    def __str__(self) -> str:
        return " ".join(map(str, self.stages))

    @property
    def structure(self) -> str:
        """What a build depends on: the stages without their numbers, ``mul clamp gelu``.

        A gelu after a clamp to constants within [-2, 2] is ``gelu_within_2``, a cheaper one. The
        word ``operands`` stands first if there are run-time operands, which cost a kernel more.
        """
        names = " ".join(map(_build_name, (None, *self.stages), self.stages))
        return f"operands {names}" if self.num_operands else names

    @property
    def num_operands(self) -> int:
        """How many run-time operands the op must be given."""
        indices = [v.index for s in self.stages for v in s.scalars if isinstance(v, Operand)]
        return max(indices, default=-1) + 1

    @staticmethod
    def parse(text: str) -> Epilogue:
        """Reads the text form; ``parse(str(e)) == e`` for every epilogue.

        Raises:
            ValueError: naming the part of ``text`` that is not an epilogue.
        """
        return _parse(text)

    def reference(self, z: torch.Tensor, *operands: torch.Tensor | float) -> torch.Tensor:
        """The epilogue of ``z`` composed from torch's own operators, differentiable.

        Args:
            z: the pre-activation, any shape, floating point.
            operands: the run-time scalars, numbers or one-element tensors, ``$0`` first.

        Returns:
            A tensor of ``z``'s shape and dtype, rounded wherever eager rounds. For the exact
            value, pass ``z`` in float64.

        Raises:
            ValueError: if the number of operands is not ``num_operands``.
        """
        if len(operands) != self.num_operands:
            raise ValueError(
                f"epilogue {self}: takes {self.num_operands} operand(s), got {len(operands)}"
            )
        for stage in self.stages:
            scalars = [operands[s.index] if isinstance(s, Operand) else s for s in stage.scalars]
            z = STAGES[stage.name].reference(z, *scalars)
        return z


def _build_name(before: StageCall | None, stage: StageCall) -> str:
    bounds = before.scalars if before is not None and before.name == "clamp" else (math.inf,)
    within = all(isinstance(b, float) and abs(b) <= 2 for b in bounds)
    return "gelu_within_2" if stage.name == "gelu" and within else stage.name


def _scalar_text(scalar: Scalar) -> str:
    return str(scalar) if isinstance(scalar, Operand) else repr(float(scalar))


def _parse_scalar(text: str) -> Scalar:
    text = text.strip()
    if re.fullmatch(r"\$\d+", text):
        return Operand(int(text[1:]))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"epilogue: {text!r} is neither a number nor an operand like $0") from None


@lru_cache(maxsize=4096)
def _parse(text: str) -> Epilogue:
    stages, position = [], 0
    while position < len(text):
        found = _STAGE_TEXT.match(text, position)
        if found is None:
            raise ValueError(f"epilogue: cannot read {text[position:]!r} in {text!r}")
        name, arguments = found.groups()
        scalars = () if arguments is None else tuple(map(_parse_scalar, arguments.split(",")))
        stages.append(StageCall(name, scalars))
        position = found.end()
        if position < len(text) and text[position] != " ":
            raise ValueError(f"epilogue: expected a space before {text[position:]!r} in {text!r}")
        position += 1
    return Epilogue(tuple(stages))
