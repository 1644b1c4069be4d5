"""Products whose results later products' sites take: nothing of what follows them is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..match.followers import NOTHING
from ..match.operands import LATER
from ..report import Miss, Report, Site


def told(sites: Iterable[Site], misses: Iterable[Miss]) -> Report:
    """The report of a graph's sites and misses.

    One that was left because its result is joined with that of a later product, which might take
    it, has nothing left to be taken where that one is a site and does.
    """
    sites = tuple(sites)
    takers = {node: site for site in sites for node in site.nodes}
    return Report(
        tuple(_without_taken(site, takers) for site in sites),
        tuple(_as_taken(miss, takers) for miss in misses),
    )


def _without_taken(site: Site, takers: dict[str, Site]) -> Site:
    taken = site.follows is not None and site.follows.endswith(LATER) and site.next in takers
    return replace(site, follows=None) if taken else site


def _as_taken(miss: Miss, takers: dict[str, Site]) -> Miss:
    if not (miss.reason.endswith(LATER) and miss.node in takers):
        return miss
    taker = takers[miss.node]
    name = taker.module or taker.node
    return replace(miss, reason=f"{NOTHING}: its result goes into the epilogue of `{name}`")
