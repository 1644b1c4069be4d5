"""Tables: matrices of one head's columns, as the op reads them beside all heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from ..match.epilogues import Match
from ..match.facts import Graph, shape_of
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
