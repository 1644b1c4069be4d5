"""Match: from a GEMM node to the epilogue behind it, or to the reason why there is none.

Pure: the graph is read, never changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch.fx import Node

from ..ir import Z1, Builder, DType, Epilogue, Output, Ref, Z
from ..ir.fold import fold
from ..ir.operands import compact
from ..ir.recognise import recognise
from ..ir.rule import Site
from . import bitwise
from .anchor import Anchor
from .ends import End, inside_of, other_ends
from .facts import Graph, has_a_place, is_identity, is_view, shape_of
from .followers import ATTENTION, NOTHING, NoMatch, beyond, left
from .gemms import feeds_attention, is_attention
from .operands import Shape
from .readable import Readable
from .region import Region
from .validate import validate, validate_arithmetic

_MOST_TRIED = 8  # sites of several results


@dataclass(frozen=True)
class Match:
    """A region that an epilogue replaces.

    Attributes:
        anchor: the GEMM.
        exit: the last of what the epilogue computes, or the most of it.
        ends: the results, one for each of the epilogue's outputs.
        epilogue: the program.
        operands: the nodes of its operands, in the order of ``epilogue.operands``.
        inside: the nodes behind the pre-activation that the op computes.
        aside: nodes that the epilogue computes of operands alone.
        place: the node that the op is put in front of: z, or ``exit`` where an operand is drawn at
            random behind z and must stay there.
        shape: [..., N] of the op's result, beside which it reads rows and matrices; None: [M, N].
        stopped: what follows and might have been part of the epilogue, if anything is.
        second: the GEMM whose result is z1, where the epilogue reads two.
    """

    anchor: Anchor
    exit: Node
    ends: tuple[End, ...]
    epilogue: Epilogue
    operands: tuple[Node, ...]
    inside: tuple[Node, ...]
    place: Node
    shape: Shape | None = None
    aside: frozenset[Node] = frozenset()
    stopped: NoMatch | None = None
    second: Anchor | None = None

    @property
    def gemms(self) -> tuple[Anchor, ...]:
        """The GEMMs of the graph that it replaces, one each."""
        both = (self.anchor, *((self.second,) if self.second is not None else ()))
        return tuple({a.gemm: a for a in both}.values())

    @property
    def size(self) -> int:
        """How many computing nodes the epilogue replaces."""
        return sum(not is_identity(n) for n in self.inside)

    @property
    def is_plain(self) -> bool:
        """Whether it reads z and scalars only, and has one result, of z's dtype."""
        (output, *more) = self.epilogue.outputs
        if self.second is not None or more:
            return False
        scalars = all(i.kind == "$" for i in self.epilogue.operands)
        return scalars and output.kind == "store" and output.dtype is None


def bare(anchor: Anchor, behind: NoMatch) -> Match:
    """The site that is the GEMM alone, with its bias.

    Args:
        behind: why it has no epilogue.
    """
    end = End(anchor.z, anchor.z)
    return Match(anchor, anchor.z, (end,), Epilogue(), (), (), anchor.z, stopped=behind)


def match(
    facts: Graph,
    anchor: Anchor,
    numerics: str,
    objection: Callable[[Match], str | None] = lambda found: None,
    second: Anchor | None = None,
) -> Match | NoMatch:
    """The largest region behind ``anchor`` that is an epilogue, or why there is none.

    Args:
        facts: of the anchor's graph.
        numerics: ``accurate`` or ``bitwise``.
        objection: why a site is not to be, though it is right; a smaller one is then tried.
        second: a GEMM of the same x, whose result the epilogue must read, too.
    """
    z1 = None if second is None else second.z
    region = Region(facts, anchor.z, tensors=numerics == "accurate", z1=z1)
    blocked = ATTENTION if is_attention(facts, anchor.gemm) else anchor.blocked
    if blocked is not None:
        return NoMatch(blocked, left(region).node)
    readable = Readable(region)
    reasons = [readable.first] if readable.first is not None else []
    against: list[NoMatch] = []
    for exit_ in readable.exits():
        found = _site(readable, anchor, exit_, (End(exit_, exit_),), numerics)
        if isinstance(found, NoMatch):
            reasons.append(found)
            continue
        if second is not None:
            early = min(anchor.z, second.z) if found.place is anchor.z else found.place
            found = replace(found, second=second, place=early)
        scale = all(node.op == "mul" for node in found.epilogue.nodes) and found.is_plain
        if scale and feeds_attention(facts, exit_, True):
            return NoMatch("a scale of attention, which is computed with it", exit_)
        last = readable.first or next(reversed([*reasons, *against]), None)
        for several in _of_several_ends(readable, found, numerics):
            if objection(several) is None:
                return replace(several, stopped=beyond(region, exit_, last))
        refused = objection(found)
        if refused is None:
            return replace(found, stopped=beyond(region, exit_, last))
        against.append(NoMatch(refused, exit_))
    return against[0] if against else left(region, readable.unfinished(reasons))


# --- a site ---------------------------------------------------------------------------------------


def _site(
    readable: Readable, anchor: Anchor, exit_: Node, ends: Sequence[End], numerics: str
) -> Match | NoMatch:
    """The site with the results ``ends``."""
    region, z = readable.region, anchor.z
    inside, outputs = inside_of(region, ends), []
    for end in ends:
        output = _output(readable, end, numerics)
        if isinstance(output, NoMatch):
            return output
        outputs.append(output)
    try:
        epilogue, operands = compact(_joined(outputs))
    except ValueError as error:  # more than a kernel takes
        return NoMatch(str(error), exit_)
    nodes = tuple(region.operands[operand] for operand in operands)
    place = z
    if any(map(has_a_place, region.facts.late(nodes, z))):
        place = exit_
        if len(ends) > 1 or _is_read_before(place, z, inside):
            return NoMatch("an operand is drawn at random behind the Linear", exit_)
    shape = region.shape if any(i.kind in ("row", "mat") for i in operands) else None
    found = tuple(_seen(region, end, shape) for end in ends)
    aside = frozenset(region.aside)
    return Match(anchor, exit_, found, epilogue, nodes, tuple(inside), place, shape, aside)


def _seen(region: Region, end: End, shape: Shape | None) -> End:
    """``end`` with its views behind a result of ``shape``."""
    return end if end.is_sum else replace(end, views=_views(region, end.value, shape))


def _of_several_ends(readable: Readable, found: Match, numerics: str) -> Iterator[Match]:
    """Sites with other results than ``found``, which move less; those that move least first."""
    if found.second is not None or numerics != "accurate" or found.place is not found.anchor.z:
        return
    for ends in itertools.islice(other_ends(readable, found.exit), _MOST_TRIED):
        several = _site(readable, found.anchor, found.exit, ends, numerics)
        if isinstance(several, Match):
            yield several


def _output(readable: Readable, end: End, numerics: str) -> Epilogue | NoMatch:
    """The program of one result, which reads the region's operands."""
    region, node = readable.region, end.value
    inside = region.behind(node)
    written = _written(readable, end, inside, numerics)
    if isinstance(written, str):
        return NoMatch(written, node)
    program = region.program(inside)
    dtype: torch.dtype = region.z.meta["val"].dtype
    difference = None
    for epilogue in (_canonical(written, dtype, numerics), written):
        if not epilogue.nodes and not end.is_sum:
            return NoMatch(f"{NOTHING}: a factor of 1 changes nothing", node)
        if len(region.roots) > 1 and not {Z, Z1} <= set(epilogue.inputs):
            return NoMatch("one of two products makes no difference", node)
        numbered, operands = compact(epilogue)
        difference = validate(program, numbered, dtype, operands)
        if difference is None and numerics == "accurate":
            difference = validate_arithmetic(program, numbered, dtype, operands)
        if difference is None:
            return epilogue
    assert difference is not None
    return NoMatch(difference, node)


def _joined(programs: Sequence[Epilogue]) -> Epilogue:
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


def _is_read_before(place: Node, z: Node, inside: Sequence[Node]) -> bool:
    """Whether z, or a value on the way that something but ``inside`` reads, too, is needed in
    front of ``place``, where the op would be."""
    region = {z, *inside}
    on_the_way = region - {z, place}
    return any(u < place and u not in region for u in z.users) or any(
        u not in region for n in on_the_way for u in n.users
    )


def _written(readable: Readable, end: End, inside: Sequence[Node], numerics: str) -> Epilogue | str:
    """What ``inside`` computes, as it is written, or why that is no epilogue."""
    region = readable.region
    if numerics == "bitwise":
        return bitwise.written(region, inside)
    own, dtype = (DType.of(n.meta["val"].dtype) for n in (region.z, end.node))
    kind = "col_sum" if end.is_sum else "store"
    output = Output(readable.values[end.value], kind, None if dtype is own else dtype)
    try:
        return readable.importer.builder.finish(output)
    except ValueError as error:  # more than a kernel takes
        return str(error)


@lru_cache(maxsize=4096)
def _canonical(epilogue: Epilogue, dtype: torch.dtype, numerics: str) -> Epilogue:
    """The same function in one spelling, with macros, and fewer or cheaper operations."""
    if numerics == "bitwise":
        return epilogue
    site = DType.of(dtype)
    assert site is not None, "a GEMM's dtype is one of the table's"
    return fold(recognise(epilogue, site), Site(site))


def _views(region: Region, node: Node, shape: Shape | None) -> tuple[Node, ...]:
    """The views on the way from z, or from the last value of ``shape``, to ``node``.

    All ways have the same.
    """
    views: list[Node] = []
    while node not in region.roots:
        if shape is not None and region.members[node].in_rows and shape_of(node) == shape:
            break
        if is_view(node):
            views.append(node)
        node = region.members[node].inputs[0]
    return tuple(views[::-1])
