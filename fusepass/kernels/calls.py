"""The fused calls of a graph as the kernels will see them; explain and build ask about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ir import Epilogue
from ..ir.operands import places, rows_of_group
from ..ir.outputs import reads_only_z, without_gemms

MAX_WEIGHTS = 4  # of one x, that one kernel multiplies by; gemm.h

_OPS = ("fusepass::linear", "fusepass::linear_with_preact", "fusepass::gemm")


@dataclass(frozen=True)
class Call:
    """One call of the op, or one that might be.

    Sizes known only at run time are the ones the graph was traced with.

    A size that depends on data had no number even then: it is taken for Inductor's own guess, and
    the plan for the true one is made by the call.

    Attributes:
        node: its name in the graph.
        epilogue: the text form.
        dtype: of x, weight, bias and the output.
        m, n, k: the GEMM's sizes.
        w_is_kn: whether the weight is stored [K, N].
        with_preact: whether the pre-activation is an output too.
        numerics: ``accurate`` or ``bitwise``.
        device: where it runs.
        x_is_km: whether x is stored [K, M].
        guessed: whether a size is a guess.
        has_bias: whether a bias is added.
        group: rows of the smallest group that has a col operand's numbers of its own, or 0.
    """

    node: str
    epilogue: str
    dtype: torch.dtype
    m: int
    n: int
    k: int
    w_is_kn: bool
    with_preact: bool
    numerics: str
    device: torch.device
    x_is_km: bool = False
    guessed: bool = False
    has_bias: bool = True
    group: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the epilogue is of z and scalars, and one result, like z, is stored."""
        return reads_only_z(Epilogue.parse(self.epilogue))

    @property
    def result(self) -> str:
        """The epilogue without z and z1, which may be stored besides."""
        return str(without_gemms(Epilogue.parse(self.epilogue)))

    @property
    def is_biased(self) -> bool:
        """Whether it is a product alone, to which a bias is added."""
        return self.has_bias and not self.epilogue

    @property
    def sizes(self) -> tuple[torch.device, torch.dtype, int, int, int, bool, bool]:
        """What ``kernels.fuses_program`` asks before the program."""
        return (self.device, self.dtype, self.m, self.n, self.k, self.w_is_kn, self.x_is_km)

    @property
    def problem(
        self,
    ) -> tuple[torch.device, torch.dtype, int, int, int, bool, bool, bool, bool]:
        """What ``kernels.fuses`` asks."""
        return (*self.sizes, not self.epilogue, self.is_biased)

    @staticmethod
    def of(
        node: str,
        x: torch.Tensor,
        shape: Sequence[Any],
        strides: Sequence[Any],
        epilogue: str,
        with_preact: bool,
        numerics: str,
        has_bias: bool,
        group: int = 0,
    ) -> Call:
        """The call with a (fake) tensor x [..., K] and a weight of ``shape`` [N, K]."""
        sizes = (*x.shape, *shape)
        return Call(
            node=node,
            epilogue=epilogue,
            dtype=x.dtype,
            m=math.prod(map(hint, x.shape[:-1])),
            n=hint(shape[0]),
            k=hint(shape[1]),
            w_is_kn=hint(strides[1]) != 1 and hint(strides[0]) == 1,
            with_preact=with_preact,
            numerics=numerics,
            device=x.device,
            x_is_km=x.dim() > 1 and hint(x.stride(-1)) != 1 and hint(x.stride(-2)) == 1,
            guessed=not all(isinstance(s, int) or s.node.has_hint() for s in sizes),
            has_bias=has_bias,
            group=group,
        )


@dataclass(frozen=True)
class Linears:
    """One call of ``fusepass::linears``; sizes as of a ``Call``.

    Attributes:
        node: its name in the graph.
        dtype: of x, weights, biases and outputs.
        m, k: of x [m, k].
        widths: n of each weight [n, k].
        w_is_kn, x_is_km: whether the weights are stored [k, n], and x [k, m].
    """

    node: str
    dtype: torch.dtype
    m: int
    widths: tuple[int, ...]
    k: int
    w_is_kn: bool
    x_is_km: bool


def linears_in(graph: torch.fx.Graph) -> Iterator[Linears]:
    """The graph's calls of ``linears``, as ``calls_in`` has those of the other ops."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or schema.name != "fusepass::linears":
            continue
        x, weights = node.args[0].meta["val"], [w.meta["val"] for w in node.args[1]]
        what = (weights[0].shape, weights[0].stride(), "", False, "accurate", False)
        first = Call.of(node.name, x, *what)
        widths = tuple(hint(w.shape[0]) for w in weights)
        sizes = (first.m, widths, first.k, first.w_is_kn, first.x_is_km)
        yield Linears(node.name, x.dtype, *sizes)


def calls_in(graph: torch.fx.Graph) -> Iterator[Call]:
    """The graph's calls of the ops, in order; its nodes need fake tensors in ``meta["val"]``."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and schema.name in _OPS:
            yield _call(node, schema.name)


def _call(node: torch.fx.Node, name: str) -> Call:
    first, second, third, epilogue = node.args[:4]
    group = 0
    if name == "fusepass::gemm":  # lists of weights, alike, and of biases
        second, third = second[0], third[0]  # type: ignore[index]
        group = _group(node)
    x, weight = first.meta["val"], second.meta["val"]  # type: ignore[union-attr]
    numerics = str(node.kwargs.get("numerics", "accurate"))
    what = (str(epilogue), name.endswith("with_preact"), numerics, third is not None)
    return Call.of(node.name, x, weight.shape, weight.stride(), *what, group)


def _group(node: torch.fx.Node) -> int:
    """Rows of the smallest group of a call of ``gemm``, or 0."""
    x, _, _, epilogue, *given = node.args
    operands = given[0] if given else ()  # op/constant.py's overload has none
    rows = [hint(size) for size in x.meta["val"].shape[:-1]]  # type: ignore[union-attr]
    cols = [
        operand.meta["val"]
        for place, operand in zip(places(Epilogue.parse(epilogue)), operands, strict=True)  # type: ignore[arg-type]
        if place.kind == "col"
    ]
    groups = (rows_of_group([*map(hint, col.shape[:-1])], rows) for col in cols)
    return min(filter(None, groups), default=0)


def hint(size: Any) -> int:
    """A size, or for a symbolic one the number it had when the graph was traced, if it had one."""
    if isinstance(size, int):
        return size
    if size.node.has_hint():
        return int(size.node.hint)
    from torch._inductor import config

    return int(getattr(config, "unbacked_symint_fallback", 8192))
