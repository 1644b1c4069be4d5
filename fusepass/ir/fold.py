"""Folding: the same program with fewer or cheaper operations, by the rules of ``rules.py``."""

from __future__ import annotations

from collections.abc import Sequence

from .epilogue import Epilogue, Node, Output, Value
from .rule import Rule, Scope, Site
from .rules import RULES
from .types import Arg, Number, Ref

MAX_ROUNDS = 16  # a rule's result meets the rules again; none of today's makes more than 4 rounds


def fold(epilogue: Epilogue, site: Site, rules: Sequence[Rule] | None = None) -> Epilogue:
    """``epilogue`` with ``rules`` (all by default) applied wherever they can be.

    A program that says what eager rounds keeps every rounding: only exact changes are made.
    """
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
