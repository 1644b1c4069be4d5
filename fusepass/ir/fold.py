"""Folding: the same program with fewer or cheaper operations.

A rule is one line of algebra on one operation. It says by how much the value it gives may differ
from the one it replaces, and a test holds every rule to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .epilogue import Builder, Epilogue, Node, Output, Value
from .types import Arg, DType, Number, Ref

MAX_ROUNDS = 16  # a rule's result meets the rules again; none of today's makes more than 4 rounds


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


def fold(epilogue: Epilogue, site: Site, rules: Sequence[Rule] | None = None) -> Epilogue:
    """``epilogue`` with ``rules`` (all by default) applied wherever they can be.

    A program that says what eager rounds keeps every rounding: only exact changes are made.
    """
    from .rules import RULES

    exact = any(node.rounded is not None for node in epilogue.nodes)
    chosen = [r for r in (RULES if rules is None else rules) if not (exact and r.rounds)]
    for _ in range(MAX_ROUNDS):
        folded = _pass(epilogue, site, chosen)
        if folded == epilogue:
            break
        epilogue = folded
    return epilogue


def _pass(epilogue: Epilogue, site: Site, rules: Sequence[Rule]) -> Epilogue:
    scope = Scope(site)
    values: list[Arg] = []

    def moved(arg: Arg) -> Arg:
        return values[arg.index] if isinstance(arg, Ref) else arg

    for node in epilogue.nodes:
        args = tuple(map(moved, node.args))
        values.append(_folded(scope, Node(node.op, args, node.rounded), rules))
    outputs = (Output(_value(moved(o.value)), o.kind, o.dtype) for o in epilogue.outputs)
    return scope.builder.finish(*outputs)


def _folded(scope: Scope, node: Node, rules: Sequence[Rule]) -> Arg:
    for rule in rules:
        if node.op in rule.ops and (rule.marked or node.rounded is None):
            found = rule.apply(scope, node)
            if found is not None:
                return found
    return scope.like(node, node.op, *node.args)


def _value(arg: Arg) -> Value:
    assert not isinstance(arg, Number), "no rule makes a number of a value"
    return arg
