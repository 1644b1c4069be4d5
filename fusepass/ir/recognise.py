"""Recognition: macros in place of the primitives that a graph spells them with.

Nothing needs to be recognised to be right. A composite of one variable is recognised by its
mathematics; one with parameters (a slope, a weight) by the one spelling of its expansion.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from .agreement import agree, resemble
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
        found = _pass(fold(epilogue, Site(dtype), SPELLING), dtype)
        if found == epilogue:
            break
        epilogue = found
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
    for base, part in _composites(epilogue, index):
        name = _by_mathematics(part, dtype)
        if name is not None:
            return name, (base,)
    for name, pattern, fixed in _patterns():
        bound: dict[Input, Arg] = dict(fixed)
        value = pattern.outputs[0].value
        if _unify(epilogue, Ref(index), pattern, value, bound) and _allowed(name, bound):
            parameters = (bound[Input("$", i)] for i in range(ROWS[name].arity - 1))
            return name, (bound[Z], *parameters)
    return None


# --- by mathematics -------------------------------------------------------------------------------


def _composites(epilogue: Epilogue, index: int) -> Iterator[tuple[Arg, Epilogue]]:
    """Values that node ``index`` is a function of alone, and that function, the longest first."""
    found: list[tuple[int, Arg, Epilogue]] = []
    behind = _behind(epilogue, index)
    inputs = {a for i in behind for a in epilogue.nodes[i].args if isinstance(a, Input)}
    bases: list[Arg] = [*sorted(inputs, key=str), *(Ref(i) for i in sorted(behind - {index}))]
    for base in bases:
        part = _part(epilogue, index, base)
        if part is not None and 1 < len(part.nodes) <= MAX_STEPS:
            found.append((len(part.nodes), base, part))
    found.sort(key=lambda each: -each[0])
    return ((base, part) for _, base, part in found)


def _behind(epilogue: Epilogue, index: int) -> set[int]:
    seen, pending = {index}, [index]
    while pending:
        for ref in epilogue.nodes[pending.pop()].refs:
            if ref.index not in seen:
                seen.add(ref.index)
                pending.append(ref.index)
    return seen


def _part(epilogue: Epilogue, index: int, base: Arg) -> Epilogue | None:
    """Node ``index`` as a function of ``base``, called z; None if it reads anything else."""
    builder, values = Builder(), dict[int, Ref]()

    def value(arg: Arg) -> Arg | None:
        if arg == base:
            return Z
        if isinstance(arg, Ref):
            return values.get(arg.index)
        return arg if isinstance(arg, Number) else None

    for i in sorted(_behind(epilogue, index)):
        node = epilogue.nodes[i]
        args = [v for a in node.args if (v := value(a)) is not None]
        if Ref(i) != base and len(args) == len(node.args):
            values[i] = builder.apply(node.op, *args)
    return builder.finish(values[index]) if index in values else None


@lru_cache(maxsize=4096)
def _by_mathematics(part: Epilogue, dtype: DType) -> str | None:
    """The macro of no parameters that ``part`` is."""
    if not any(node.op in _FUNCTIONS for node in part.nodes):
        return None
    for name in _unary_macros():
        macro = Epilogue.parse(name)
        if not resemble(part, macro):
            continue
        wanted = expression(part, dtype is DType.F64)
        formula = expression(Epilogue.parse(ROWS[name].expansion), True)
        if wanted is not None and formula is not None and same(wanted, formula):
            return name if agree(part, macro, dtype) else None
    return None


@lru_cache(maxsize=1)
def _unary_macros() -> tuple[str, ...]:
    return tuple(
        n for n, row in ROWS.items() if row.is_macro and not row.lowered and row.arity == 1
    )


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
