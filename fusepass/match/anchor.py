"""Anchors: the GEMM nodes a site grows from, read as ``z = x @ weight.T + bias``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import Argument

from .facts import Graph, dtype_name, packet, shape_of, tensor

aten = torch.ops.aten

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RESHAPES = (aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze)


View = tuple[Node, tuple[Argument, ...]]  # a reshape, and its arguments behind the first


@dataclass(frozen=True)
class Anchor:
    """One GEMM.

    Attributes:
        gemm: the ``mm`` or ``addmm`` node.
        z: the pre-activation: ``gemm`` itself, or the ``add`` of a bias that follows an ``mm``.
        x: ``[M, K]``.
        kn: the GEMM's second matrix, ``[K, N]``.
        bias: ``[N]``, with any number of ones before it, or None.
        views: the reshapes between ``gemm`` and ``z``.
        blocked: why nothing can be fused here, or None.
        columns: from which to which ``z`` is of the GEMM's, where it is a part of them.
    """

    gemm: Node
    z: Node
    x: Node
    kn: Node
    bias: Node | None
    views: tuple[Node, ...] = ()
    blocked: str | None = None
    columns: tuple[int, int] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of ``z``."""
        dtype: torch.dtype = self.z.meta["val"].dtype
        return dtype

    @property
    def width(self) -> Any:
        """How many columns ``z`` has."""
        if self.columns is not None:
            return self.columns[1] - self.columns[0]
        return self.gemm.meta["val"].shape[1]

    @property
    def reshapes(self) -> list[View]:
        """``views`` as a matrix of ``z``'s columns goes through them."""
        if self.columns is None:
            return [(view, view.args[1:]) for view in self.views]
        rows = [view.args[1][:-1] for view in self.views]  # type: ignore[index]
        return [(v, ([*r, self.width],)) for v, r in zip(self.views, rows, strict=True)]  # type: ignore[misc]


def find_gemms(facts: Graph) -> list[Node]:
    """Every ``mm`` and ``addmm``, of the forward and of the backward, in order."""
    kinds = (aten.mm.default, aten.addmm.default)
    return [n for n in facts.graph.nodes if n.target in kinds]


def read_anchor(facts: Graph, gemm: Node, numerics: str) -> Anchor:
    """One of ``find_gemms``, as the graph is now."""
    if gemm.target is aten.addmm.default:
        return _addmm(gemm)
    return _mm(facts, gemm, numerics)


def _addmm(node: Node) -> Anchor:
    bias, x, kn = (a for a in node.args[:3] if isinstance(a, Node))
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    blocked = _unsupported(x, kn, bias)
    if (alpha, beta) != (1, 1):
        blocked = f"addmm weighs its terms (beta={beta}, alpha={alpha}); only 1 and 1 are fused"
    elif not _is_vector(bias, node):
        blocked = "addmm adds a matrix or a broadcast value; only a bias vector [N] is fused"
    return Anchor(node, node, x, kn, bias, blocked=blocked)


def _mm(facts: Graph, node: Node, numerics: str) -> Anchor:
    x, kn = (a for a in node.args[:2] if isinstance(a, Node))
    views, last = _reshapes(node)
    bias = _bias_of(facts, node, last)
    if bias is None:
        return Anchor(node, node, x, kn, None, blocked=_unsupported(x, kn, None))
    z = next(iter(last.users))
    blocked = _unsupported(x, kn, bias)
    if numerics == "bitwise" and blocked is None:
        blocked = "bitwise: eager rounds the product before it adds the bias; one GEMM does not"
    return Anchor(node, z, x, kn, bias, views, blocked)


def _reshapes(node: Node) -> tuple[tuple[Node, ...], Node]:
    """The reshapes that are ``node``'s only use and keep its columns, and the last of them."""
    views: list[Node] = []
    last = node
    while len(last.users) == 1:
        user = next(iter(last.users))
        if packet(user) not in _RESHAPES or shape_of(user)[-1:] != shape_of(node)[-1:]:
            break
        views.append(user)
        last = user
    return tuple(views), last


def _bias_of(facts: Graph, gemm: Node, last: Node) -> Node | None:
    """The vector [N] that the only user of ``last`` adds to it, if that is what it does."""
    user = next(iter(last.users)) if len(last.users) == 1 else None
    if user is None or packet(user) is not aten.add or user.kwargs.get("alpha", 1) != 1:
        return None
    others = [a for a in user.args if a is not last]
    bias = others[0] if len(others) == 1 else None
    if not isinstance(bias, Node) or user not in facts.users_in_phase(last):
        return None
    return bias if _is_vector(bias, gemm) and shape_of(user) == shape_of(last) else None


def _is_vector(bias: Node, gemm: Node) -> bool:
    """Whether ``bias`` has one element for each of the product's columns, in one row."""
    return shape_of(bias) == (1,) * (len(shape_of(bias)) - 1) + shape_of(gemm)[-1:]


def _unsupported(x: Node, kn: Node, bias: Node | None) -> str | None:
    values = [tensor(n) for n in (x, kn, bias) if n is not None]
    dtypes = {v.dtype for v in values if v is not None}
    devices = {v.device for v in values if v is not None}
    dtype, device = next(iter(dtypes)), next(iter(devices))
    if len(dtypes) > 1 or len(devices) > 1:
        return "input, weight and bias differ in dtype or device"
    if dtype not in DTYPES:
        return f"{dtype_name(dtype)} is not fused; float16, bfloat16, float32 and float64 are"
    if device.type not in ("cpu", "cuda"):
        return f"device {device.type} is not supported; cpu and cuda are"
    return None
