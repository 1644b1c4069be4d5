"""The table of operations: everything an epilogue can compute, by name."""

from __future__ import annotations

from .macros import MACROS
from .primitives import PRIMITIVES

ROWS = {row.name: row for row in (*PRIMITIVES, *MACROS)}
