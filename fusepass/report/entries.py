"""The entries of a report: each matrix product of a graph, a site or a miss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True)
class Site:
    """A GEMM of the model that runs as one op of fusepass.

    Attributes:
        epilogue: the stages as text, ``mul(0.5) clamp(-2.0, 2.0) gelu``; empty without any.
        dtype: of input, weight and output, ``bfloat16``.
        m, n, k: the GEMM's sizes as text; a dynamic size is a name such as ``s0``.
        kernel: what runs it.
        source: the user's own line, or None where torch recorded none.
        module: the path of the Linear in the model, or None outside a module.
        node: the GEMM's name in the graph.
        nodes: the names of the graph's nodes that it replaces or, in training, recomputes.
        why: why it is that kernel, where somebody asked.
        graph: the index of the site's graph in ``Report.graphs``.
        follows: what takes its result and is not part of it, and why, or None.
        kind: ``linear``, ``matmul`` where both matrices are computed, or ``gradient``.
        flops: 2·M·N·K at the sizes it was traced with, or None where they are unknown.
        backward: whether it is of the backward.
        batch: how many products a batch is of, as text; empty of one.
        next: the name of the graph's node that takes its result and is not part of it, or None.
        apart: why it is not in one launch with other products of the same input, if there are any.
        together: how many products its launch computes.
    """

    epilogue: str
    dtype: str
    m: str
    n: str
    k: str
    kernel: str | None
    source: str | None
    module: str | None
    node: str
    nodes: tuple[str, ...] = ()
    why: str | None = None
    graph: int = 0
    follows: str | None = None
    kind: str = "linear"
    flops: int | None = None
    backward: bool = False
    batch: str = ""
    next: str | None = None
    apart: str | None = None
    together: int = 1

    @property
    def shape(self) -> str:
        """``bfloat16 [M, K] x [K, N]``, or ``float32 [B, M, K] x [B, K, N]``."""
        b = f"{self.batch}, " if self.batch else ""
        return f"{self.dtype} [{b}{self.m}, {self.k}] x [{b}{self.k}, {self.n}]"

    @property
    def title(self) -> str:
        """What runs, ``linear gelu``."""
        return f"{self.kind} {self.epilogue}".rstrip()

    @property
    def details(self) -> tuple[str, ...]:
        """What else there is to say, a line each: the kernel, what follows, others of its input,
        the source."""
        kernel = self.kernel and self.kernel + (f", because {self.why}" if self.why else "")
        rope = "with RoPE (rotary embedding)" if "rot" in self.epilogue else None
        follows = self.follows and f"not taken: {self.follows}"
        return tuple(filter(None, (kernel, rope, follows, self.apart, self.source)))

    def __str__(self) -> str:
        return _text_of(self)


@dataclass(frozen=True)
class Miss:
    """A GEMM of the model that was left to Inductor.

    Attributes:
        reason: why, in a sentence.
        node: the name of the graph's node that stood in the way.
        source: the user's own line, or None where torch recorded none.
        module: the path of the Linear in the model, or None outside a module.
        graph: the index of the miss's graph in ``Report.graphs``.
        gemm: the GEMM's own name in the graph.
        shape: ``bfloat16 [M, K] x [K, N]``, or None for what is no plain product.
        flops: 2·M·N·K at the sizes it was traced with, or None where they are unknown.
        backward: whether it is of the backward.
        kind: as a site's; experts' products of groups of rows are ``linear``, too.
        apart: as a site's.
    """

    reason: str
    node: str
    source: str | None
    module: str | None = None
    graph: int = 0
    gemm: str | None = None
    shape: str | None = None
    flops: int | None = None
    backward: bool = False
    kind: str = "linear"
    apart: str | None = None

    @property
    def title(self) -> str:
        """The reason."""
        return f"gradient: {self.reason}" if self.backward else self.reason

    @property
    def details(self) -> tuple[str, ...]:
        """What else there is to say, a line each: others of the same input, the source."""
        return tuple(filter(None, (self.apart, self.source)))

    def __str__(self) -> str:
        return _text_of(self)


Entry = Union[Site, Miss]


def _text_of(entry: Entry) -> str:
    lines = (entry.shape, *entry.details)
    head = f"{entry.module or entry.node}: {entry.title}"
    return "\n    ".join((head, *filter(None, lines)))
