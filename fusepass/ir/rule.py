"""A folding rule: one line of algebra on one operation, and what it may know and build with.

It says by how much the value it gives may differ from the one it replaces, and a test holds every
rule to that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .epilogue import Builder, Node
from .types import Arg, DType, Ref


@dataclass(frozen=True)
class Site:
    """What a rule may know of the place where a program runs.

    Attributes:
        dtype: of z and of what is computed: bf16, f16, f32 or f64.
    """

    dtype: DType

    @property
    def short(self) -> bool:
        """Whether results are rounded to 16 bits; float32 is computed in."""
        return self.dtype in (DType.F16, DType.BF16)

    def is_normal(self, number: float) -> bool:
        """Whether the dtype that is computed in holds ``number`` to all its digits."""
        if self.dtype is DType.F64:
            return 2.0**-1022 <= abs(number) <= 1.7976931348623157e308
        return 2.0**-126 <= abs(number) <= (2 - 2.0**-23) * 2.0**127


class Scope:
    """The program so far: what a rule reads and builds with."""

    def __init__(self, site: Site) -> None:
        self.site, self.builder = site, Builder()

    def node(self, arg: Arg, op: str) -> Node | None:
        """The node behind ``arg`` if it is an ``op`` that eager did not round."""
        if not isinstance(arg, Ref):
            return None
        node = self.builder.nodes[arg.index]
        return node if node.op == op and node.rounded is None else None

    def apply(self, op: str, *args: Arg | float) -> Ref:
        """As ``Builder.apply``."""
        return self.builder.apply(op, *args)

    def like(self, node: Node, op: str, *args: Arg | float) -> Ref:
        """``op`` applied to ``args``, rounded as ``node`` is."""
        return self.builder.apply(op, *args, rounded=node.rounded)


Apply = Callable[[Scope, Node], "Arg | None"]


@dataclass(frozen=True)
class Rule:
    """A rewriting rule.

    Attributes:
        name: what it does, for tests and messages.
        ops: the operations it is for.
        apply: the value in place of a node whose arguments are folded already; None: leave it.
        rounds: by how many roundings (relative errors of half an epsilon of the dtype that is
            computed in) the new value may differ from the old; 0: not at all, but for the sign of
            a zero.
        marked: whether it also holds where eager rounds the result.
    """

    name: str
    ops: tuple[str, ...]
    apply: Apply
    rounds: int = 0
    marked: bool = False
