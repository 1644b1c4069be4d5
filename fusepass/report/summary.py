"""A Report summed up: how many of its FLOPs run as what, identical layers in one row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .entries import Entry, Miss, Site

_DIGITS = re.compile(r"\d+")


def fused(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites with an epilogue."""
    return tuple(s for s in sites if s.epilogue)


def gemms(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites without an epilogue."""
    return tuple(s for s in sites if not s.epilogue)


@dataclass(frozen=True)
class Flops:
    """The floating-point operations of a report's GEMMs, by what runs them.

    Attributes:
        fused: in sites with an epilogue.
        gemms: in sites without one.
        left: in misses.
        unknown: how many GEMMs are counted nowhere, for a size is known only at run time.
    """

    fused: int
    gemms: int
    left: int
    unknown: int

    @classmethod
    def of(cls, sites: Sequence[Site], misses: Sequence[Miss]) -> Flops:
        """The sums over a report's entries."""

        def known(entries: Sequence[Entry]) -> int:
            return sum(e.flops or 0 for e in entries)

        entries: list[Entry] = [*sites, *misses]
        unknown = sum(e.flops is None for e in entries)
        return cls(known(fused(sites)), known(gemms(sites)), known(misses), unknown)

    @property
    def total(self) -> int:
        """All that are known."""
        return self.fused + self.gemms + self.left

    def share(self, flops: int | None) -> str | None:
        """``flops`` as a share of the total, ``31.2%``; None where either is unknown or zero."""
        return f"{flops / self.total:.1%}" if flops is not None and self.total else None


@dataclass(frozen=True)
class Row:
    """Entries that differ in nothing but the layer they belong to.

    The products of a layer's backward are one row, though of two shapes: nobody wrote them.

    Attributes:
        name: of all of them, ``layers.0-23.up``.
        entries: in the order of the graph.
        flops: of all of them, or None where unknown.
    """

    name: str
    entries: tuple[Entry, ...]
    flops: int | None

    @property
    def first(self) -> Entry:
        """The entry that stands for all."""
        return self.entries[0]

    @property
    def shape(self) -> str | None:
        """The shapes of all of them, each once."""
        shapes = dict.fromkeys(e.shape for e in self.entries if e.shape)
        return " and ".join(shapes) or None

    @property
    def title(self) -> str:
        """The name, with how many there are."""
        count = len(self.entries)
        return self.name if count == 1 else f"{self.name} × {count}"


def rows(entries: Iterable[Entry]) -> list[Row]:
    """The entries in rows, those with the most FLOPs first."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        sizes = None if entry.backward else (entry.shape, entry.flops)
        key = (_pattern(entry), entry.backward, entry.title, entry.details, sizes)
        groups.setdefault(key, []).append(entry)
    made = [Row(_name(g), tuple(g), _sum(g)) for g in groups.values()]
    return sorted(made, key=lambda row: -1 if row.flops is None else row.flops, reverse=True)


def _pattern(entry: Entry) -> str:
    return _DIGITS.sub("*", entry.module or entry.node)


def _sum(group: Sequence[Entry]) -> int | None:
    known = [e.flops for e in group if e.flops is not None]
    return sum(known) if len(known) == len(group) else None


def _name(group: Sequence[Entry]) -> str:
    """The common name, with the numbers that differ as a range or a star."""
    names = [entry.module or entry.node for entry in group]
    if group[0].module is None:
        return names[0]
    numbers = zip(*(map(int, _DIGITS.findall(name)) for name in names), strict=True)
    ranges = iter([_range(sorted(set(n))) for n in numbers])
    return _DIGITS.sub(lambda _: next(ranges), names[0])


def _range(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if first == last:
        return str(first)
    return f"{first}-{last}" if len(numbers) == last - first + 1 else "*"


# --- as text ------------------------------------------------------------------------------------


def count_text(sites: Sequence[Site], misses: Sequence[Miss]) -> str:
    """``24 fused, 49 missed``."""
    bare = f"{len(gemms(sites))} without an epilogue, " if gemms(sites) else ""
    return f"{len(fused(sites))} fused, {bare}{len(misses)} missed"


def flops_text(flops: Flops) -> str:
    """``1.3 TFLOP in products: 31.2% fused, 68.8% left``, or an empty text."""
    if not flops.total:
        return ""
    parts = (("fused", flops.fused), ("without an epilogue", flops.gemms), ("left", flops.left))
    shares = ", ".join(f"{flops.share(n)} {what}" for what, n in parts if n)
    unknown = f" ({flops.unknown} of unknown size not counted)" if flops.unknown else ""
    return f"{amount(flops.total)} in products: {shares}{unknown}"


def amount(flops: int) -> str:
    """``1.3 TFLOP``."""
    value, units = float(flops), ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def to_text(sites: Sequence[Site], misses: Sequence[Miss], remarks: Sequence[str]) -> str:
    """The report as a reader wants it on a terminal."""
    notes = [f"  note  {note}" for note in remarks]
    if not sites and not misses:
        return "\n".join(["fusepass: no matrix product in the graphs", *notes])
    flops = Flops.of(sites, misses)
    lines = [f"fusepass: {count_text(sites, misses)}"]
    lines += [f"  {text}" for text in [flops_text(flops)] if text]
    sections = (("fused", fused(sites)), ("gemm", gemms(sites)), ("missed", misses))
    for word, entries in sections:
        for row in rows(entries):
            lines += _row_text(word, row, flops)
    return "\n".join(lines + notes)


def _row_text(word: str, row: Row, flops: Flops) -> list[str]:
    entry = row.first
    share = flops.share(row.flops)
    shape = row.shape and row.shape + (f", {share} of the FLOPs" if share else "")
    rest = [line for line in (shape, *entry.details) if line]
    return [f"  {word}  {row.title}: {entry.title}", *(f"          {line}" for line in rest)]
