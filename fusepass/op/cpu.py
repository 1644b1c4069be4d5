"""The ops composed of ATen calls: what the CPU runs, and what any device without a kernel runs.

``bitwise`` is eager's own sequence of operators over whole tensors. ``accurate`` runs the epilogue
over blocks small enough that temporaries stay in cache, in a type in which the result is rounded
once: float32 for 16-bit types, or the type itself where only its last operation rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..ir import Z1, DType, Epilogue, Node, Number, Output, Ref, Z
from ..ir import outputs as of
from ..ir.lower import rounded_as_eager
from ..ir.reference import Functions, values

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
# Bytes a thread works on at a time: an operation's input and output stay in L2. Smaller blocks lose
# more to starting the threads than they gain.
_BLOCK = 1 << 19

_Index = tuple["int | slice", ...]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which ``accurate`` computes the epilogue of ``dtype``."""
    return _WIDE.get(dtype, dtype)


def pre_activation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """z, [..., N] contiguous; no autograd."""
    return torch.nn.functional.linear(x, weight, bias).contiguous()


def run(
    epilogue: Epilogue,
    z: Tensor,
    operands: Sequence[Tensor],
    numerics: str,
    z1: Tensor | None = None,
) -> list[Tensor]:
    """The outputs of the epilogue, contiguous, no two in the same memory; no autograd.

    Args:
        epilogue: the program.
        z, z1: what the GEMMs made, [..., N] contiguous. They are handed over: each may become an
            output or be overwritten.
        operands: as ``fusepass::gemm`` takes them.
        numerics: ``accurate`` or ``bitwise``.
    """
    owners = of.taken(epilogue)
    results = {i: z if owner == Z else z1 for i, owner in enumerate(owners) if owner is not None}
    rest = of.computed(epilogue)
    if rest is not None:
        scalars = [v.reshape(()) for v in operands[: rest.count("$")]]
        given = [*scalars, *operands[len(scalars) :]]
        second = z1 if Z1 in rest.inputs else None
        if rest.heads.columns:  # blocks of elements would not be of whole heads
            made = [t.contiguous() for t in differentiable(z, rest, given, numerics)]
        elif numerics == "bitwise" or _is_marked(rest):
            made = _whole(rest, z, given, second, numerics)
        else:
            made = _apply_blocks(rest, z, given, second, overwrite=not results)
        places = (i for i, owner in enumerate(owners) if owner is None)
        results.update(zip(places, made, strict=True))
    return [results[i] for i in range(len(owners))]  # type: ignore[misc]


def differentiable(
    z: Tensor,
    epilogue: Epilogue,
    operands: Sequence[Tensor],
    numerics: str,
    z1: Tensor | None = None,
    batched: int = 0,
) -> list[Tensor]:
    """The outputs in whole-tensor torch operators: any transform of torch goes through.

    Args:
        epilogue: the program.
        z, z1: [..., N].
        operands: of shapes that broadcast with ``z``.
        numerics: ``accurate`` or ``bitwise``.
        batched: how many of the first dimensions are no rows of the GEMM: sums leave them.
    """
    if numerics == "bitwise" or _is_marked(epilogue):
        found = values(_told(epilogue, z, numerics), z, operands, z1)
    else:
        found = _accurate(z, epilogue, operands, compute_dtype(z.dtype), z1)
    pairs = zip(epilogue.outputs, found, strict=True)
    return [_finished(output, value, z, batched) for output, value in pairs]


def _finished(output: Output, value: Tensor, z: Tensor, batched: int = 0) -> Tensor:
    """What an output is made of its value."""
    dtype, rows = _dtype(output, z), tuple(range(batched, z.dim() - 1))
    value = value.expand(z.shape)
    if output.is_sum and rows:
        value = value.to(z.dtype) if value.dtype == torch.bool else value
        value = value.sum(dim=rows, dtype=torch.promote_types(dtype, value.dtype))
    return value.to(dtype)


def _dtype(output: Output, z: Tensor) -> torch.dtype:
    return output.dtype.in_torch if output.dtype is not None else z.dtype


def _is_marked(epilogue: Epilogue) -> bool:
    """Whether the program says itself what is rounded."""
    return any(node.rounded is not None for node in epilogue.nodes)


# --- eager's own operators ------------------------------------------------------------------------


def _told(epilogue: Epilogue, z: Tensor, numerics: str) -> Epilogue:
    """The program with each operation's rounding, where torch's own promotion might be another."""
    site = DType.of(z.dtype)
    others = any(i.dtype not in (None, DType.BOOL, site) for i in epilogue.operands)
    mixed = others or _is_marked(epilogue)
    if numerics != "bitwise" or site is None or not mixed:
        return epilogue
    return rounded_as_eager(epilogue, site)


def _whole(
    epilogue: Epilogue, z: Tensor, operands: Sequence[Tensor], z1: Tensor | None, numerics: str
) -> list[Tensor]:
    found = values(_told(epilogue, z, numerics), z, operands, z1)
    results: list[Tensor] = []
    for output, value in zip(epilogue.outputs, found, strict=True):
        made = _finished(output, value, z).contiguous()
        # A value that eager has in one piece may be an operand or another output: no shared memory.
        inputs = (z, *operands, *results, *(() if z1 is None else (z1,)))
        shared = any(made.data_ptr() == t.data_ptr() for t in inputs if t.numel())
        results.append(made.clone() if shared else made)
    return results


# --- once rounded, in blocks ----------------------------------------------------------------------


def _apply_blocks(
    epilogue: Epilogue,
    z: Tensor,
    operands: Sequence[Tensor],
    z1: Tensor | None,
    overwrite: bool,
) -> list[Tensor]:
    """The outputs; the only one may be written over ``z``, if ``overwrite``."""
    alone = len(epilogue.outputs) == 1 and not epilogue.outputs[0].is_sum
    over = overwrite and alone and _dtype(epilogue.outputs[0], z) == z.dtype
    out = [_room(output, z) if not over else z for output in epilogue.outputs]
    wide = z.dtype if alone and _rounds_once(epilogue, z.dtype) else compute_dtype(z.dtype)
    # 1 << 62: one block. No kernel is saved by cutting up a tensor elsewhere.
    cpu = z.device.type == "cpu"
    limit = _BLOCK // z.element_size() * torch.get_num_threads() if cpu else 1 << 62
    flat = len(operands) == epilogue.count("$") and not any(o.is_sum for o in epilogue.outputs)
    shape = (-1,) if flat else z.shape if z.dim() > 1 else (1, *z.shape)
    seen, other = z.view(shape), None if z1 is None else z1.view(shape)
    targets = [t if o.is_sum else t.view(shape) for o, t in zip(epilogue.outputs, out, strict=True)]
    # A col of one dimension and a scalar are the same in every block, as all is where z is one row.
    whole = [t.expand(*z.shape[:-1], t.shape[-1]) if t.dim() > 1 else t for t in operands]
    rows = tuple(range(seen.dim() - 1))
    for index in _blocks(seen.shape, limit):
        some, second = seen[index], None if other is None else other[index]
        beside = [t[index] if t.dim() > 1 else t for t in whole]
        found = _accurate(some, epilogue, beside, wide, second)
        for output, value, target in zip(epilogue.outputs, found, targets, strict=True):
            if output.is_sum:
                target += value.expand(some.shape).to(wide).sum(rows)
            else:
                target[index] = value
    return [t.to(_dtype(o, z)) for o, t in zip(epilogue.outputs, out, strict=True)]


def _room(output: Output, z: Tensor) -> Tensor:
    """Memory for an output; a sum is taken in float64."""
    if output.is_sum:
        return z.new_zeros(z.shape[-1], dtype=torch.float64)
    return torch.empty_like(z, dtype=_dtype(output, z))


def _blocks(shape: Sequence[int], limit: int) -> Iterator[_Index]:
    """Indices of parts of a tensor of ``shape``, cut along its rows: at most ``limit`` elements."""
    if not shape or math.prod(shape) <= limit:
        yield (slice(None),) if shape else ()
    elif len(shape) > 2 and math.prod(shape[1:]) > limit:
        for i in range(shape[0]):
            yield from ((slice(i, i + 1), *rest) for rest in _blocks(shape[1:], limit))
    else:
        each = max(1, limit // math.prod(shape[1:]))
        yield from ((slice(i, i + each),) for i in range(0, shape[0], each))


def _accurate(
    z: Tensor, epilogue: Epilogue, operands: Sequence[Tensor], wide: torch.dtype, z1: Tensor | None
) -> list[Tensor]:
    """The outputs' values, computed in ``wide``, neither rounded nor summed."""
    given = [v.to(wide) if v.dim() and v.is_floating_point() else v for v in operands]
    second = None if z1 is None else z1.to(wide)
    return values(epilogue, z.to(wide), given, second, _FUNCTIONS[z.dtype])


# --- functions better than the references --------------------------------------------------------


def _gelu(z: Tensor) -> Tensor:
    """z Phi(z) by erfc: no cancellation where z < 0, and infinite where z is, unlike oneDNN's."""
    return torch.erfc(z * -math.sqrt(0.5)) * 0.5 * z


def gelu_tanh(z: Tensor) -> Tensor:
    """z (1 + tanh(u)) / 2 as z sigmoid(2u): no cancellation where z < 0."""
    twice = 2 * math.sqrt(2 / math.pi)
    exponent = (z * z * (twice * 0.044715) + twice) * z
    return torch.sigmoid(exponent) * z


# By the dtype of the result. sigmoid keeps the digits of the negative tail, where 16 bits would
# show their loss, and is a little less exact for z > 0, which float32 would show.
_SINGLE: Functions = {"gelu": _gelu}
_SHORT: Functions = {**_SINGLE, "gelu_tanh": gelu_tanh}
_FUNCTIONS: dict[torch.dtype, Functions] = {
    torch.float16: _SHORT,
    torch.bfloat16: _SHORT,
    torch.float32: _SINGLE,
    torch.float64: {},
}


@lru_cache(maxsize=1024)
def _rounds_once(epilogue: Epilogue, dtype: torch.dtype) -> bool:
    """Whether torch's operators of ``dtype`` round nothing but the last one's result, once."""
    nodes = epilogue.nodes
    before = [Ref(i - 1) if i else Z for i in range(len(nodes))]
    chain = bool(nodes) and all(n.args[0] == b for n, b in zip(nodes, before, strict=True))
    constant = all(isinstance(a, Number) for n in nodes for a in n.args[1:])
    exact = all(n.op == "clamp" and _has(n, dtype) for n in nodes[:-1])
    # A product, a quotient or a bound of 16 bits is computed in float32, and rounded.
    return chain and constant and exact and nodes[-1].op in ("mul", "div", "clamp")


def _has(node: Node, dtype: torch.dtype) -> bool:
    """Whether the numbers of ``node`` are numbers of ``dtype``."""
    known = [a.value for a in node.args if isinstance(a, Number)]
    return all(float(torch.tensor(v, dtype=dtype)) == v for v in known)
