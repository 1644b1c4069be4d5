"""The op composed of ATen calls: what the CPU runs, and what any device without a kernel runs.

``bitwise`` is eager's own sequence of operators over whole tensors. ``accurate`` runs the epilogue
over blocks small enough that temporaries stay in cache, in a type in which the result is rounded
once: float32 for 16-bit types, or the type itself where only its last operation rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .ir import Epilogue, Node, Number, Ref, Z
from .ir.reference import Functions, evaluate

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
# Bytes a thread works on at a time: an operation's input and output stay in L2. Smaller blocks lose
# more to starting the threads than they gain.
_BLOCK = 1 << 19


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which ``accurate`` computes the epilogue of ``dtype``."""
    return _WIDE.get(dtype, dtype)


def differentiable(
    z: Tensor, epilogue: Epilogue, scalars: Sequence[Tensor], numerics: str
) -> Tensor:
    """The epilogue of ``z`` in whole-tensor torch operators: any transform of torch goes through.

    Args:
        scalars: the operands, of shapes that broadcast with ``z``.
    """
    if numerics == "bitwise" or _is_marked(epilogue):
        return evaluate(epilogue, z, scalars)[0]
    return _accurate(z, epilogue, scalars, compute_dtype(z.dtype)).to(z.dtype)


def pre_activation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """z, [..., N] contiguous; no autograd."""
    return torch.nn.functional.linear(x, weight, bias).contiguous()


def apply(z: Tensor, epilogue: Epilogue, operands: Sequence[Tensor], numerics: str) -> Tensor:
    """The epilogue of ``z``, which is contiguous and stays as it is; no autograd."""
    if not epilogue.nodes:
        return z.clone()
    scalars = [v.reshape(()) for v in operands]
    if numerics == "bitwise" or _is_marked(epilogue):
        return evaluate(epilogue, z, scalars)[0].contiguous()
    return _apply_blocks(z, torch.empty_like(z), epilogue, scalars)


def apply_(z: Tensor, epilogue: Epilogue, operands: Sequence[Tensor], numerics: str) -> Tensor:
    """As ``apply``, but ``z`` is overwritten where it can be."""
    if not epilogue.nodes:
        return z
    if numerics == "bitwise" or _is_marked(epilogue):
        return apply(z, epilogue, operands, numerics)
    return _apply_blocks(z, z, epilogue, [v.reshape(()) for v in operands])


def _is_marked(epilogue: Epilogue) -> bool:
    """Whether the program says itself what is rounded."""
    return any(node.rounded is not None for node in epilogue.nodes)


def _apply_blocks(z: Tensor, out: Tensor, epilogue: Epilogue, scalars: Sequence[Tensor]) -> Tensor:
    """Writes the epilogue of ``z`` to ``out`` (which may be ``z``), both contiguous; ``out``."""
    wide = z.dtype if _rounds_once(epilogue, z.dtype) else compute_dtype(z.dtype)
    # 1 << 62: one block. No kernel is saved by cutting up a tensor elsewhere.
    cpu = z.device.type == "cpu"
    block = _BLOCK // z.element_size() * torch.get_num_threads() if cpu else 1 << 62
    for source, target in zip(z.view(-1).split(block), out.view(-1).split(block), strict=True):
        target.copy_(_accurate(source, epilogue, scalars, wide))
    return out


def _accurate(
    z: Tensor, epilogue: Epilogue, scalars: Sequence[Tensor], wide: torch.dtype
) -> Tensor:
    """The epilogue of ``z``, computed in ``wide`` and not rounded."""
    return evaluate(epilogue, z.to(wide), scalars, functions=_FUNCTIONS[z.dtype])[0]


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
    chain = all(n.args[0] == b for n, b in zip(nodes, before, strict=True))
    constant = all(isinstance(a, Number) for n in nodes for a in n.args[1:])
    exact = all(n.op == "clamp" and _has(n, dtype) for n in nodes[:-1])
    # A product, a quotient or a bound of 16 bits is computed in float32, and rounded.
    return chain and constant and exact and nodes[-1].op in ("mul", "div", "clamp")


def _has(node: Node, dtype: torch.dtype) -> bool:
    """Whether the numbers of ``node`` are numbers of ``dtype``."""
    known = [a.value for a in node.args if isinstance(a, Number)]
    return all(float(torch.tensor(v, dtype=dtype)) == v for v in known)
