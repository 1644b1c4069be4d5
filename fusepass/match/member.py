"""Member: what a region knows of one of its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from .facts import dtype_of

if TYPE_CHECKING:
    from .parts import Part


@dataclass
class Member:
    """A node of a region.

    Attributes:
        inputs: the region's nodes it reads.
        view: the views above.
        in_rows: whether its last dimension and the order of its elements are z's.
        part: which columns of each head it has, if not all.
        moved: whether it lies in memory in another order than z, as a tensor that it is computed
            of; then only Inductor's code reads it, and it may as well lie as z does.
    """

    inputs: tuple[Node, ...]
    view: tuple[Any, ...]
    in_rows: bool
    moved: bool = False
    part: Part | None = None


def becomes_bool(node: Node) -> bool:
    """Whether a cast keeps nothing of a number but whether it is zero."""
    source = dtype_of(node.args[0])  # type: ignore[arg-type]
    return dtype_of(node) is torch.bool and source is not torch.bool
