"""Recognition: macros in place of the primitives that a graph spells them with.

Nothing needs to be recognised to be right. A composite of one variable is recognised by its
mathematics; one with parameters (a slope, a weight) by the one spelling of its expansion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .agreement import agree, resembling
from .epilogue import Builder, Epilogue, Node, Output
from .fold import fold
from .lower import inline
from .mathematics import expression, same
from .rule import Site
from .rules import SPELLING
from .table import ROWS
from .types import Arg, DType, Input, Number, Ref, Z

MAX_PASSES = 3
MAX_STEPS = 24  # of a composite; tanh-GELU has ten
# Every composite of one variable has one of these: without, sympy need not be asked.
_FUNCTIONS = {"erf", "erfc", "tanh", "sigmoid", "exp", "expm1", "exp2", "log", "log1p", "abs"}
_FUNCTIONS |= {"softplus", "silu", "logsigmoid"}
_WEIGHTS = {"prelu", "softcap", "gelu_tanh_gradient"}  # whose parameter may be anything


def recognise(epilogue: Epilogue, dtype: DType) -> Epilogue:
    """``epilogue`` in one spelling, with composites replaced by macros.

    A program that says what eager rounds is left as it is: a macro rounds once.

    Args:
        dtype: the site's; constants must agree to its precision.
    """
    if any(node.rounded is not None for node in epilogue.nodes):
        return epilogue
    for _ in range(MAX_PASSES):  # mish is found where softplus has been
        folded = fold(epilogue, Site(dtype), SPELLING)
        epilogue = _pass(folded, dtype)
        if epilogue == folded:
            break
    return epilogue


def _pass(epilogue: Epilogue, dtype: DType) -> Epilogue:
    builder, values = Builder(), list[Ref]()

    def moved(arg: Arg) -> Arg:
        return values[arg.index] if isinstance(arg, Ref) else arg

    for index, node in enumerate(epilogue.nodes):
        found = _macro(epilogue, index, dtype)
        op, args = found if found is not None else (node.op, node.args)
        values.append(builder.apply(op, *map(moved, args)))
    outputs = []
    for output in epilogue.outputs:
        value = moved(output.value)
        assert not isinstance(value, Number)
        outputs.append(Output(value, output.kind, output.dtype))
    return fold(builder.finish(*outputs), Site(dtype), SPELLING)


Found = tuple[str, tuple[Arg, ...]]


def _macro(epilogue: Epilogue, index: int, dtype: DType) -> Found | None:
    """The macro that node ``index`` is, the longest if several, with its arguments."""
    parts = _parts(epilogue, index)
    if parts and _has_a_function(epilogue, parts[-1]):
        composite = _composite(_alone(epilogue, parts[-1]), dtype)
        if composite is not None:
            name, place = composite
            return name, (parts[place].base,)
    for name, pattern, fixed in _patterns():
        bound: dict[Input, Arg] = dict(fixed)
        value = pattern.outputs[0].value
        if _unify(epilogue, Ref(index), pattern, value, bound) and _allowed(name, bound):
            parameters = (bound[Input("$", i)] for i in range(ROWS[name].arity - 1))
            return name, (bound[Z], *parameters)
    return None


# --- by mathematics -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A value as a function of one other, ``base``, and the nodes that compute it."""

    base: Arg
    nodes: tuple[int, ...]


def _parts(epilogue: Epilogue, index: int) -> list[_Part]:
    """Node ``index`` as a function of each value that it is one of alone, the shortest first.

    A node depends on earlier ones only. Taken from the last to the first, those behind ``index``
    leave but one to be taken where that one is all they depend on.
    """
    found, taken, pending, inputs = list[_Part](), list[int](), {index}, set[Input]()
    while pending and len(taken) <= MAX_STEPS:
        last = max(pending)
        if len(taken) > 1 and len(pending) == 1 and not inputs:
            found.append(_Part(Ref(last), tuple(taken)))
        pending.remove(last)
        taken.append(last)
        node = epilogue.nodes[last]
        pending |= {ref.index for ref in node.refs}
        inputs |= {a for a in node.args if isinstance(a, Input)}
    if not pending and len(inputs) == 1 and 1 < len(taken) <= MAX_STEPS:
        found.append(_Part(inputs.pop(), tuple(taken)))
    return found


def _has_a_function(epilogue: Epilogue, part: _Part) -> bool:
    return any(epilogue.nodes[i].op in _FUNCTIONS for i in part.nodes)


def _alone(epilogue: Epilogue, part: _Part) -> Epilogue:
    """``part`` as a program, its base called z."""
    builder, values = Builder(), dict[Arg, Arg]({part.base: Z})
    for i in reversed(part.nodes):
        node = epilogue.nodes[i]
        values[Ref(i)] = builder.apply(node.op, *(values.get(a, a) for a in node.args))
    result = values[Ref(part.nodes[0])]
    assert isinstance(result, Ref)
    return builder.finish(result)


@lru_cache(maxsize=4096)  # programs that have their beginning in common have its parts in common
def _composite(part: Epilogue, dtype: DType) -> tuple[str, int] | None:
    """The longest macro that the result of ``part`` is, and its place among its ``_parts``."""
    result = part.outputs[0].value
    assert isinstance(result, Ref)
    parts = _parts(part, result.index)
    for place in reversed(range(len(parts))):
        if _has_a_function(part, parts[place]):
            name = _by_mathematics(_alone(part, parts[place]), dtype)
            if name is not None:
                return name, place
    return None


@lru_cache(maxsize=4096)
def _by_mathematics(part: Epilogue, dtype: DType) -> str | None:
    """The macro of no parameters that ``part`` is."""
    macros = _unary_macros()
    for place in resembling(part, macros):
        macro = macros[place]
        wanted = expression(part, dtype is DType.F64)
        formula = expression(_expanded(macro), True)
        if wanted is not None and formula is not None and same(wanted, formula):
            return macro.nodes[0].op if agree(part, macro, dtype) else None
    return None


@lru_cache(maxsize=1)
def _unary_macros() -> tuple[Epilogue, ...]:
    rows = (n for n, row in ROWS.items() if row.is_macro and not row.lowered and row.arity == 1)
    return tuple(map(Epilogue.parse, rows))


def _expanded(macro: Epilogue) -> Epilogue:
    return Epilogue.parse(ROWS[macro.nodes[0].op].expansion)


# --- by spelling ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, Epilogue, dict[Input, Arg]], ...]:
    """Expansions as folding leaves them, the longest first, with parameters that are fixed.

    A first parameter of 1, a slope or a weight, is not to be seen in a graph.
    """
    found = []
    for name, row in ROWS.items():
        if not row.is_macro or row.lowered:
            continue
        expansion, fixed = Epilogue.parse(row.expansion), Input("$", 0)
        found.append((name, _spelled(expansion), dict[Input, Arg]()))
        if fixed in expansion.inputs:
            builder, parameters = Builder(), list[Arg](Input("$", i) for i in range(row.arity - 1))
            value = inline(builder, expansion, (Z, Number(1.0), *parameters[1:]))
            if not isinstance(value, Number):
                one = _spelled(builder.finish(value))
                found.append((name, one, {fixed: Number(1.0)}))
    found = [each for each in found if len(each[1].nodes) > 1 or not each[2]]
    return tuple(sorted(found, key=lambda each: -len(each[1].nodes)))


def _spelled(epilogue: Epilogue) -> Epilogue:
    return fold(epilogue, Site(DType.F32), SPELLING)


def _allowed(name: str, bound: dict[Input, Arg]) -> bool:
    """Whether eager's function takes these parameters: numbers, but for a weight."""
    parameters = [value for place, value in bound.items() if place.kind == "$"]
    return name in _WEIGHTS or all(isinstance(p, Number) for p in parameters)


def _unify(
    epilogue: Epilogue, value: Arg, pattern: Epilogue, wanted: Arg, bound: dict[Input, Arg]
) -> bool:
    """Whether ``value`` is what ``wanted`` of the pattern says; ``bound`` learns its inputs."""
    if isinstance(wanted, Input):
        return bound.setdefault(wanted, value) == value
    if isinstance(wanted, Number) or not isinstance(value, Ref):
        return value == wanted
    node, model = epilogue.nodes[value.index], pattern.nodes[wanted.index]
    if node.op != model.op:
        return False
    for args in _orders(node):
        trial = dict(bound)
        pairs = zip(args, model.args, strict=True)
        if all(_unify(epilogue, a, pattern, w, trial) for a, w in pairs):
            bound.update(trial)
            return True
    return False


def _orders(node: Node) -> Iterator[tuple[Arg, ...]]:
    yield node.args
    if ROWS[node.op].commutative:
        first, second, *rest = node.args
        yield (second, first, *rest)
