"""The text of a graph as lines of a page: marked where fusepass did something, repeats folded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_NODE = re.compile(r"(\w+)(?:: [^=]*)? = ([\w.]+)\((.*)\)$", re.DOTALL)
_TEXT = re.compile(r"'[^']*'")  # a string argument: its words are no nodes
_PRODUCT = re.compile(r" = (aten\.(add)?mm|aten\.bmm|fusepass\.\w+)\(")
_NAME = re.compile(r"\b[A-Za-z_]\w*")
_LEAST = 24  # lines that are worth folding
_INPUTS = 8  # more inputs than these in a row are folded


@dataclass(frozen=True)
class Mark:
    """What a line of a graph is: part of a site or a miss.

    Attributes:
        kind: the class of the line on the page.
        badge: the number of its row.
        note: the reason of a miss.
    """

    kind: str
    badge: str
    note: str = ""


@dataclass(frozen=True)
class Fold:
    """Lines that a reader opens: from ``start`` up to ``stop``, under ``title``."""

    start: int
    stop: int
    title: str


def parts(line: str) -> tuple[str, str, list[str]]:
    """A line's node, operator and the names among its arguments."""
    found = _NODE.match(line)
    if found is None:
        return line.split(":")[0].split(" ")[0], "", []
    name, target, arguments = found.groups()
    return name, target, re.findall(r"[A-Za-z_]\w*", _TEXT.sub("", arguments))


def html_of(prefix: str, text: str, marks: Mapping[str, Mark]) -> str:
    """The lines of a graph's ``text``, an element each, with ``prefix`` in front of each id."""
    lines = text.splitlines()
    rows = [_row(prefix, line, marks) for line in lines]
    made, position = [], 0
    for fold in folds(lines):
        inside = "".join(rows[fold.start : fold.stop])
        made += rows[position : fold.start]
        made.append(
            f"<li><details><summary>{escape(fold.title)}</summary><ol>{inside}</ol></details></li>"
        )
        position = fold.stop
    return f"<ol>{''.join(made + rows[position:])}</ol>"


def code(text: str) -> str:
    """``text`` with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _row(prefix: str, line: str, marks: Mapping[str, Mark]) -> str:
    name = parts(line)[0]
    mark = marks.get(name, Mark("", ""))
    note = f'<span class="note">{code(mark.note)}</span>' if mark.note else ""
    return (
        f'<li id="{escape(f"{prefix}-{name}")}" class="{mark.kind}">'
        f'<span class="badge">{mark.badge}</span><code>{escape(line)}</code>{note}</li>'
    )


# --- what is folded -----------------------------------------------------------------------------


def folds(lines: Sequence[str]) -> list[Fold]:
    """The lines that say nothing new: many inputs in a row, layers after the first alike."""
    is_input = [" = " not in line and not line.startswith("return") for line in lines]
    found = [
        Fold(start, stop, f"{stop - start} inputs")
        for start, stop in _stretches(is_input)
        if stop - start > _INPUTS
    ]
    found += _repeats(lines, list(map(_sign, lines)), 0, len(lines))
    return sorted(found, key=lambda fold: fold.start)


def _sign(line: str) -> str:
    """What a line computes, whatever its node and its inputs are called."""
    _, is_node, computed = line.partition(": ") if ": " in line else line.partition(" = ")
    operator, opening, arguments = computed.partition("(")
    return f"{operator}{opening}{_NAME.sub('_', arguments)}" if is_node else line


def _stretches(flags: Sequence[bool]) -> list[tuple[int, int]]:
    edges = [i for i in range(len(flags) + 1) if _at(flags, i) != _at(flags, i - 1)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at(flags: Sequence[bool], index: int) -> bool:
    return 0 <= index < len(flags) and flags[index]


def _repeats(lines: Sequence[str], signs: Sequence[str], start: int, stop: int) -> list[Fold]:
    """Layers alike between ``start`` and ``stop``: the longest run, then what is beside it."""
    best = (0, 0, 0)  # lines saved, where the first layer starts, its length
    for period in _periods(lines, signs, start, stop):
        same = [signs[i] == signs[i + period] for i in range(start, stop - period)]
        for first, last in _stretches(same):
            count = (last - first + period) // period
            best = max(best, (period * (count - 1), start + first, period))
    saved, first, period = best
    if saved < _LEAST:
        return []
    count, end = saved // period, first + period + saved
    times = "once more" if count == 1 else f"{count} times more"
    fold = Fold(first + period, end, f"the same {period} nodes {times}")
    return [
        *_repeats(lines, signs, start, first),
        fold,
        *_repeats(lines, signs, end, stop),
    ]


def _periods(lines: Sequence[str], signs: Sequence[str], start: int, stop: int) -> Iterable[int]:
    """Distances between products alike: a layer's length is among them."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for i in range(start, stop):
        if _PRODUCT.search(lines[i]):
            places[signs[i]].append(i)
    steps = range(1, 9)  # products alike within one layer
    return sorted(
        {b - a for found in places.values() for s in steps
         for a, b in zip(found, found[s:], strict=False) }
    )  # fmt: skip
