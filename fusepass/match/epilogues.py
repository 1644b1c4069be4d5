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

from ..ir import Z1, DType, Epilogue, Output, Z
from ..ir.fold import fold
from ..ir.operands import compact
from ..ir.outputs import joined
from ..ir.recognise import recognise
from ..ir.rule import Site
from . import bitwise
from .anchor import Anchor
from .ends import End, dead_with, inside_of, is_of, other_ends, views_to
from .facts import Graph, has_a_place
from .followers import ATTENTION, NOTHING, NoMatch, beyond, left
from .gemms import feeds_attention, is_attention
from .heads import Heads, shows_another_order
from .jumps import TORN, torn
from .operands import Shape, tells_rows
from .readable import Readable
from .region import Region
from .validate import pointwise, validate, validate_arithmetic

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
        heads, by_heads: how z is seen beside operands that are matrices of one head, and these.
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
    heads: Heads | None = None
    by_heads: frozenset[Node] = frozenset()

    @property
    def gemms(self) -> tuple[Anchor, ...]:
        """The GEMMs of the graph that it replaces, one each."""
        both = (self.anchor, *((self.second,) if self.second is not None else ()))
        return tuple({a.gemm: a for a in both}.values())

    def needs(self, anchor: Anchor) -> bool:
        """Whether anything uses z of ``anchor``, or a value on the way, once every user of an end
        has its result."""
        if self.exit is anchor.z:
            return False
        dead = dead_with({end.node for end in self.ends}, self.inside)
        return not all(u in dead for u in anchor.z.users)

    @property
    def is_plain(self) -> bool:
        """Whether it reads z and scalars only, and has one result, of z's dtype."""
        (output, *more) = self.epilogue.outputs
        if self.second is not None or more or self.epilogue.heads.columns:
            return False
        scalars = all(i.kind == "$" for i in self.epilogue.operands)
        return scalars and output.kind == "store" and output.dtype is None


def bare(anchor: Anchor, behind: NoMatch | None) -> Match:
    """The site that is the GEMM alone, with its bias.

    Args:
        behind: why it has no epilogue, if anything behind it might be one.
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
        alone = (End(exit_, exit_),)
        draft = _site(readable, anchor, second, exit_, alone, numerics, checked=False)
        if isinstance(draft, Match) and _is_hopeless(readable, draft, objection, against):
            continue
        found = _site(readable, anchor, second, exit_, alone, numerics)
        if isinstance(found, NoMatch):
            reasons.append(found)
            continue
        if _is_scale(found) and feeds_attention(facts, exit_, True):
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


def _is_hopeless(
    readable: Readable,
    draft: Match,
    objection: Callable[[Match], str | None],
    against: list[NoMatch],
) -> bool:
    """Whether a site that may be right is not wanted, and none with other results either.

    That takes less time to see than that it is right. ``against`` learns why.
    """
    if _is_scale(draft) or any(other_ends(readable, draft.exit)):
        return False
    if (refused := objection(draft)) is not None:
        against.append(NoMatch(refused, draft.exit))
    return refused is not None


def _is_scale(found: Match) -> bool:
    return found.is_plain and all(node.op == "mul" for node in found.epilogue.nodes)


def _site(
    readable: Readable,
    anchor: Anchor,
    second: Anchor | None,
    exit_: Node,
    ends: Sequence[End],
    numerics: str,
    checked: bool = True,
) -> Match | NoMatch:
    """The site with the results ``ends``; not ``checked``, it may not be what it replaces."""
    region, roots = readable.region, readable.region.roots
    inside, outputs = inside_of(region, ends), []
    jump = torn(region, inside, {end.node for end in ends})
    if jump is not None and numerics == "accurate":
        return NoMatch(TORN, jump)
    for end in ends:
        output = _output(readable, end, numerics, checked)
        if isinstance(output, NoMatch):
            return output
        outputs.append(output)
    try:
        epilogue, operands = compact(joined(outputs))
    except ValueError as error:  # more than a kernel takes
        return NoMatch(str(error), exit_)
    nodes = tuple(region.operands[operand] for operand in operands)
    place = min(roots)
    if any(map(has_a_place, region.facts.late(nodes, place))):
        place = exit_
        if len(ends) > 1 or _is_read_before(place, roots, inside):
            return NoMatch("an operand is drawn at random behind the Linear", exit_)
    by_heads = region.by_heads.intersection(nodes)
    if by_heads and not epilogue.heads.columns:
        return NoMatch("takes a matrix of one head, and nothing of it is rotated", exit_)
    told = by_heads or any(tells_rows(n, region.shape) for n in nodes)
    shape = region.shape if told else None
    if not all(end.is_sum or is_of(region, end.value, shape) for end in ends):
        return NoMatch("results of several shapes", exit_)
    if any(shows_another_order(region, end.value) for end in ends):
        return NoMatch("a result of another order in memory than the Linear's", exit_)
    found = tuple(_seen(region, end, shape) for end in ends)
    aside = frozenset(region.aside)
    site = Match(anchor, exit_, found, epilogue, nodes, tuple(inside), place, shape, aside)
    return replace(site, second=second, heads=region.heads, by_heads=frozenset(by_heads))


def _seen(region: Region, end: End, shape: Shape | None) -> End:
    """``end`` with its views behind a result of ``shape``."""
    return end if end.is_sum else replace(end, views=views_to(region, end.value, shape))


def _of_several_ends(readable: Readable, found: Match, numerics: str) -> Iterator[Match]:
    """Sites with other results than ``found``, which move less; those that move least first."""
    if found.second is not None or numerics != "accurate" or found.place is not found.anchor.z:
        return
    for ends in itertools.islice(other_ends(readable, found.exit), _MOST_TRIED):
        several = _site(readable, found.anchor, None, found.exit, ends, numerics)
        if isinstance(several, Match):
            yield several


def _output(readable: Readable, end: End, numerics: str, checked: bool) -> Epilogue | NoMatch:
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
        if not checked:
            return epilogue
        numbered, operands = compact(epilogue)
        steps, values, read = pointwise(program, numbered, operands)
        difference = validate(steps, values, dtype, read)
        if difference is None and numerics == "accurate":
            difference = validate_arithmetic(steps, values, dtype, read)
        if difference is None:
            return epilogue
    assert difference is not None
    return NoMatch(difference, node)


def _is_read_before(place: Node, roots: Sequence[Node], inside: Sequence[Node]) -> bool:
    """Whether a root, or a value on the way that something but ``inside`` reads, too, is needed in
    front of ``place``, where the op would be."""
    region = {*roots, *inside}
    read = [(n, u) for n in region - {place} for u in n.users if u not in region]
    return any(u < place or n not in roots for n, u in read)


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
