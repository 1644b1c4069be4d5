"""Random epilogues, what eager makes of them, and how far a result is from float64."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from fusepass import Epilogue
from fusepass.ir import Builder, Input, Number, Ref, Z

GELUS = ("gelu", "gelu_tanh")

# docs/numerics.md: what chance may add to a result's error where eager rounds as often. Float64's
# exact values are float64's own, and known no better.
CHANCE = {
    torch.bfloat16: 2.0**-16,
    torch.float16: 2.0**-16,
    torch.float32: 2.0**-26,
    torch.float64: 2.0**-50,
}

Scalar = float | Input


def random_epilogue(seed: int, gelu: str = "gelu", operands: bool = False) -> Epilogue:
    """One to five operations in a chain; infinite bounds and lo > hi among their numbers."""
    rng = random.Random(seed)
    count = 0

    def scalar(value: float) -> Scalar:
        nonlocal count
        if operands and rng.random() < 0.5:
            count += 1
            return Input("$", count - 1)
        return value

    def scalars(name: str) -> tuple[Scalar, ...]:
        if name in ("mul", "div"):
            return (scalar(rng.choice([0.5, 2.0, -1.0, rng.uniform(-3, 3)])),)
        if name == "clamp":
            lo = rng.choice([float("-inf"), -2.0, 0.0, rng.uniform(-3, 1)])
            hi = rng.choice([float("inf"), 2.0, 6.0, rng.uniform(-1, 3)])
            return (scalar(lo), scalar(hi))
        return ()

    names = rng.choices(["mul", "div", "clamp", gelu], k=rng.randint(1, 5))
    return chain([(name, scalars(name)) for name in names])


def chain(steps: list[tuple[str, tuple[Scalar, ...]]]) -> Epilogue:
    """The epilogue of these operations, each of the one before it and scalars."""
    builder, value = Builder(), Z
    for name, scalars in steps:
        value = builder.apply(name, value, *scalars)
    return builder.finish(value)


def steps(epilogue: Epilogue) -> list[tuple[str, tuple[Scalar, ...]]]:
    """The operations of a chain, in order, with their scalars."""
    for i, node in enumerate(epilogue.nodes):
        assert node.args[0] == (Ref(i - 1) if i else Z), f"{epilogue} is no chain"
    rest = [(node.op, node.args[1:]) for node in epilogue.nodes]
    return [(o, tuple(a.value if isinstance(a, Number) else a for a in args)) for o, args in rest]


def random_operands(epilogue: Epilogue, seed: int, **kwargs: object) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(max(epilogue.num_operands, 1), generator=generator) * 4 - 2
    return [torch.tensor(float(v), **kwargs) for v in values[: epilogue.num_operands]]


def eager(z: Tensor, epilogue: Epilogue, operands: list[Tensor]) -> Tensor:
    """The epilogue, a chain of the origin's operations, as a model would write it."""
    for name, scalars in steps(epilogue):
        s = [operands[v.index] if isinstance(v, Input) else v for v in scalars]
        if name == "mul":
            z = z * s[0]
        elif name == "div":
            z = z / s[0]
        elif name == "clamp" and any(isinstance(v, Tensor) for v in s):
            lo, hi = (torch.as_tensor(v, dtype=z.dtype, device=z.device) for v in s)
            z = torch.clamp(z, lo, hi)
        elif name == "clamp":
            z = torch.clamp(z, s[0], s[1])
        else:
            kind = {"gelu": "none", "gelu_tanh": "tanh"}[name]
            z = torch.nn.functional.gelu(z, approximate=kind)
    return z


def without_cancellation(epilogue: Epilogue, z: Tensor) -> Tensor:
    """The epilogue in float64; 1 + erf and 1 + tanh lose the negative tail even there."""
    for step in steps(epilogue):
        if step[0] == "gelu":
            z = z / 2 * torch.erfc(-z / math.sqrt(2))
        elif step[0] == "gelu_tanh":
            z = z * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
        else:
            z = chain([step]).reference(z)
    return z


def error(value: Tensor, exact: Tensor) -> float:
    """Relative error in the Frobenius norm, of the finite elements."""
    finite = exact.isfinite()
    value, exact = value.double()[finite], exact[finite]
    return float((value - exact).norm() / exact.norm().clamp_min(1e-300))
