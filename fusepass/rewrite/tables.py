"""Tables: matrices of one head's columns, as the op reads them beside all heads."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch.fx import Node

from ..kernels.calls import hint
from ..match.epilogues import Match
from ..match.facts import Graph, is_fusible, is_view, shape_of
from .added import by_rows, describe

aten = torch.ops.aten

_BOX = 64  # columns that the 16-bit kernel reads at a time: whole ones of a table


def table_columns(found: Match, node: Node) -> int:
    """How many columns the op is given of ``node``, a matrix of one head or of its first columns:
    as many as it has where these are repeated in a head; else those of heads, so many that a kernel
    reads whole boxes, if z has as many."""
    own, head = shape_of(node)[-1], found.epilogue.heads.columns
    if head % own == 0 and own % _BOX == 0:
        return int(own)
    if found.epilogue.heads.exchanged == 2 and not found.epilogue.heads.first:
        head = own  # neighbours of all columns: the table's are a head's
    least = own if head % own == 0 else head
    boxes = math.lcm(head, _BOX)
    on_gpu = found.anchor.z.meta["val"].device.type == "cuda"
    return int(boxes if on_gpu and found.anchor.width % boxes == 0 else least)


def is_made(found: Match, node: Node) -> bool:
    """Whether the op's table is another matrix than ``node``."""
    return table_columns(found, node) != shape_of(node)[-1]


def table_of(facts: Graph, found: Match, node: Node) -> Node:
    """``node`` as [..., D] beside the op's rows: of as many columns as ``table_columns`` says."""
    assert found.heads is not None, "it is seen by heads"
    table = by_rows(facts, node, found.heads.order)
    own, wanted, head = shape_of(node)[-1], table_columns(found, node), found.epilogue.heads.columns
    if wanted == own:
        return table
    if own < head and wanted % own:
        table = _call(facts, aten.constant_pad_nd.default, table, [0, head - own], 0.0)
        own = head
    return _call(facts, aten.cat.default, [table] * (wanted // own), -1) if wanted > own else table


def _call(facts: Graph, target: Any, of: Any, *args: Any) -> Node:
    node = facts.graph.call_function(target, (of, *args))
    value = torch.fx.node.map_arg(node.args, lambda n: n.meta["val"])
    describe(facts, node, of[0] if isinstance(of, list) else of, target(*value))
    return node


def is_read_by_heads(found: Match, node: Node, alignment: int) -> bool:
    """Whether the 16-bit kernel's copies, which start at multiples of ``alignment`` bytes, read a
    matrix of one head: boxes of 16 rows, all of which lie in one batch where that is the same for
    all, and of 64 columns."""
    assert found.heads is not None and found.shape is not None, "it is seen by heads"
    order, value = found.heads.order, node.meta["val"]
    missing, rank = len(order) - value.dim(), len(order)
    own = zip(map(hint, value.shape), map(hint, value.stride()), strict=True)
    seen = [*[(1, 0)] * missing, *own]
    *rows, _, (_, step) = [seen[order.index(i)] for i in range(rank)]
    wanted = [hint(size) for size in found.heads.whole.meta["val"].shape[:-1]]
    first = next((i for i, (size, _) in enumerate(rows) if size > 1), len(rows))
    repeated = any(size > 1 for size in wanted[:first])
    whole = [size for size, _ in rows[first:]] == wanted[first:]
    torn = table_columns(found, node) % 64 or (repeated and math.prod(wanted[first:]) % 16)
    if torn or not whole:
        return False
    if is_made(found, node) or is_fusible(node.all_input_nodes[0] if is_view(node) else node):
        return True  # Inductor computes it for the op, row after row
    pairs = itertools.pairwise(rows[first:])
    spaced = step == 1 and all(outer == n * inner for (_, outer), (n, inner) in pairs)
    unit = alignment // value.element_size()
    offsets = (hint(value.storage_offset()), *(stride for _, stride in rows[first:]))
    return spaced and not any(offset % unit for offset in offsets)
