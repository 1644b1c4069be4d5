"""Lowering: an epilogue as a device computes it best, the same function.

What a kernel is built for is the lowered program without its numbers; the numbers are its run-time
arguments. float64 and ``bitwise`` keep every operation, float32 all but a GELU of what is bounded;
16-bit results allow more.
"""

from __future__ import annotations

import math
from collections import Counter

from .epilogue import Builder, Epilogue, Node, Output
from .fold import fold
from .interval import Interval, intervals
from .rule import Site
from .rules import RULES
from .table import ROWS
from .types import Arg, DType, Input, Number, Ref

INF = math.inf
_BOUNDS = ("clamp", "maximum", "minimum")


def lower(epilogue: Epilogue, dtype: DType) -> Epilogue:
    """The program to generate code for.

    Args:
        epilogue: any; one that says what eager rounds is computed to the letter.
        dtype: the site's: bf16, f16, f32 or f64.
    """
    marked = any(node.rounded is not None for node in epilogue.nodes)
    site = Site(dtype)
    if site.short and not marked:
        epilogue = fold(_expanded(epilogue), site, RULES)
    if dtype is not DType.F64 and not marked:
        epilogue = _cheaper_gelu(epilogue, site.short)
    return _one_sided(epilogue)


def rounded_as_eager(epilogue: Epilogue, dtype: DType) -> Epilogue:
    """The program that says of each operation what eager rounds it to: ``dtype`` if it did not."""
    copy = _Copy(epilogue)
    for node in epilogue.nodes:
        rounded = dtype if ROWS[node.op].result == "v" else None
        copy.values.append(copy.same(Node(node.op, node.args, node.rounded or rounded)))
    return copy.finish()


class _Copy:
    """A program as it is built anew, node by node."""

    def __init__(self, epilogue: Epilogue) -> None:
        self.builder, self.values, self.outputs = Builder(), list[Arg](), epilogue.outputs

    def moved(self, arg: Arg) -> Arg:
        return self.values[arg.index] if isinstance(arg, Ref) else arg

    def same(self, node: Node) -> Ref:
        return self.builder.apply(node.op, *map(self.moved, node.args), rounded=node.rounded)

    def finish(self) -> Epilogue:
        outputs = []
        for output in self.outputs:
            value = self.moved(output.value)
            assert not isinstance(value, Number)
            outputs.append(Output(value, output.kind, output.dtype))
        return self.builder.finish(*outputs)


def inline(builder: Builder, expansion: Epilogue, args: tuple[Arg, ...]) -> Arg:
    """The value of ``expansion`` with z and $0, $1, … being ``args``."""
    values: list[Arg] = []

    def moved(arg: Arg) -> Arg:
        if isinstance(arg, Ref):
            return values[arg.index]
        if isinstance(arg, Input):
            return args[0] if arg.kind == "z" else args[1 + arg.index]
        return arg

    for node in expansion.nodes:
        values.append(builder.apply(node.op, *map(moved, node.args)))
    return moved(expansion.outputs[0].value)


# --- macros without a device function for 16 bits -------------------------------------------------


def _expanded(epilogue: Epilogue) -> Epilogue:
    copy = _Copy(epilogue)
    for node in epilogue.nodes:
        row, args = ROWS[node.op], tuple(map(copy.moved, node.args))
        if node.op == "softplus":
            copy.values.append(_softplus(copy.builder, args))
        elif row.is_macro and not row.fast:
            copy.values.append(inline(copy.builder, Epilogue.parse(row.expansion), args))
        else:
            copy.values.append(copy.same(node))
    return copy.finish()


def _softplus(builder: Builder, args: tuple[Arg, ...]) -> Arg:
    """log(1 + exp(u)) / beta with u = beta z, and z itself where u is above the threshold."""
    z, beta, threshold = args
    alone = beta == Number(1.0)
    u = z if alone else builder.apply("mul", z, beta)
    soft: Arg = builder.apply("softplus_1", u)
    if not alone:
        soft = builder.apply("div", soft, beta)
    if isinstance(threshold, Number) and threshold.value >= 17:
        return soft  # from 17 on log1p(exp(-u)) is less than 2^-24 of u
    return builder.apply("where", builder.apply("gt", u, threshold), z, soft)


# --- gelu -----------------------------------------------------------------------------------------


def _cheaper_gelu(epilogue: Epilogue, short: bool) -> Epilogue:
    """gelu that knows that |v| <= 2, and in 16 bits starts from v/2 where a factor can give that.

    mul(c) clamp(l, h) gelu is mul(c/2) clamp(l/2, h/2) and then a gelu of half its argument. Not
    where c z may be -inf, whose gelu is NaN, and c/2 z not: an unbounded c z with |c| > 1. There
    gelu's positive part comes from the product itself.
    """
    facts, uses = intervals(epilogue), _uses(epilogue)
    copy = _Copy(epilogue)
    for node in epilogue.nodes:
        value: Arg | None = None
        if node.op == "gelu":
            argument = _interval(node.args[0], facts)
            within, bounded = argument.magnitude <= 2, argument.lo > -INF
            half = _half(copy, epilogue.nodes, uses, node.args[0], bounded) if short else None
            if half is not None:
                value = copy.builder.apply("gelu_half_within_1" if within else "gelu_half", half)
            elif within:
                value = copy.builder.apply("gelu_within_2", copy.moved(node.args[0]))
            elif short and not bounded and _is_product(epilogue.nodes, node.args[0]):
                value = copy.builder.apply("gelu_of_product", copy.moved(node.args[0]))
        copy.values.append(copy.same(node) if value is None else value)
    return copy.finish()


def _is_product(nodes: tuple[Node, ...], arg: Arg) -> bool:
    """Whether ``arg``'s last instruction is a multiplication."""
    return isinstance(arg, Ref) and nodes[arg.index].op in ("mul", "square")


def _interval(arg: Arg, facts: tuple[Interval, ...]) -> Interval:
    return facts[arg.index] if isinstance(arg, Ref) else Interval()


def _uses(epilogue: Epilogue) -> Counter[int]:
    uses = Counter(ref.index for node in epilogue.nodes for ref in node.refs)
    uses.update(o.value.index for o in epilogue.outputs if isinstance(o.value, Ref))
    return uses


def _half(
    copy: _Copy, nodes: tuple[Node, ...], uses: Counter[int], arg: Arg, bounded: bool
) -> Arg | None:
    """``arg`` / 2 at no cost, from a scalar factor and bounds that nothing else reads.

    Args:
        bounded: whether the argument of the gelu is, from below.
    """
    if not isinstance(arg, Ref) or uses[arg.index] > 1:
        return None
    node = nodes[arg.index]
    scalars = [s for a in node.args[1:] if (s := _half_scalar(copy, a)) is not None]
    if node.op not in ("mul", *_BOUNDS) or len(scalars) < len(node.args) - 1:
        return None
    if node.op == "mul":
        shrinks = isinstance(node.args[1], Number) and abs(node.args[1].value) <= 1
        value = copy.moved(node.args[0]) if bounded or shrinks else None
    else:
        value = _half(copy, nodes, uses, node.args[0], bounded)
    return None if value is None else copy.builder.apply(node.op, value, *scalars)


def _half_scalar(copy: _Copy, arg: Arg) -> Arg | None:
    if isinstance(arg, Number):
        return Number(arg.value / 2)
    if isinstance(arg, Input) and arg.kind == "$":
        return copy.builder.apply("mul", arg, 0.5)
    return None


# --- bounds that are none -------------------------------------------------------------------------


def _one_sided(epilogue: Epilogue) -> Epilogue:
    copy = _Copy(epilogue)
    for node in epilogue.nodes:
        value, *bounds = node.args
        if node.op == "clamp" and bounds[0] == Number(-INF):
            node = Node("minimum", (value, bounds[1]), node.rounded)
        elif node.op == "clamp" and bounds[1] == Number(INF):
            node = Node("maximum", (value, bounds[0]), node.rounded)
        copy.values.append(copy.same(node))
    return copy.finish()
