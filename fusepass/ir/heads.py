"""Heads: what a program tells apart or exchanges among the columns of one head of z."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .types import Input


@dataclass(frozen=True)
class Heads:
    """As rotary embeddings have them.

    Attributes:
        columns: of one head; 0 if the program knows of none.
        exchanged: of how many columns, from a head's first on, the halves are exchanged; 2 where
            neighbours are, of all columns; 0 if none are.
        first: how many columns of a head are told apart from the others; 0 if none are.
    """

    columns: int = 0
    exchanged: int = 0
    first: int = 0

    @staticmethod
    def of(inputs: Iterable[Input]) -> Heads:
        """Those of a program of these inputs.

        Raises:
            ValueError: if there are heads of two sizes, or more than one value of a kind.
        """
        read = [i for i in inputs if i.kind in ("z1", "rot", "first")]
        rot = next((i for i in read if i.kind == "rot"), None)
        first = next((i for i in read if i.kind == "first"), None)
        firsts = sum(i.kind == "first" for i in read)
        if firsts > 1 or len(read) - firsts > 1:
            raise ValueError("epilogue: one value of z1 and rot at most, and one of first")
        if rot is None:
            return Heads() if first is None else Heads(first.head, 0, first.index)
        head = 0 if first is None else first.head
        if rot.head != head if rot.index > 2 else head % 2:
            raise ValueError("epilogue: heads of one size only")
        return Heads(head or rot.index, rot.index, 0 if first is None else first.index)

    @property
    def are_pairs(self) -> bool:
        """Whether a head is whole units of 8 columns, what is exchanged or told apart of it pairs,
        or whether neighbours alone are exchanged."""
        pairs = (self.exchanged == 2 or self.exchanged % 4 == 0) and self.first % 2 == 0
        return pairs and (self.columns % 8 == 0 or self.columns == 2)
