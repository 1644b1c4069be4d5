"""Random epilogues, what eager makes of them, and how far a result is from float64."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from fusepass.epilogue import Epilogue, Operand, Scalar, StageCall

GELUS = ("gelu", "gelu_tanh")

# docs/numerics.md: what chance may add to a result's error where eager rounds as often. Float64's
# exact values are float64's own, and known no better.
CHANCE = {
    torch.bfloat16: 2.0**-16,
    torch.float16: 2.0**-16,
    torch.float32: 2.0**-26,
    torch.float64: 2.0**-50,
}


def random_epilogue(seed: int, gelu: str = "gelu", operands: bool = False) -> Epilogue:
    """One to five stages; numbers of both signs, infinite bounds and lo > hi among them."""
    rng = random.Random(seed)
    count = 0

    def scalar(value: float) -> Scalar:
        nonlocal count
        if operands and rng.random() < 0.5:
            count += 1
            return Operand(count - 1)
        return value

    def stage(name: str) -> StageCall:
        if name in ("mul", "div"):
            return StageCall(name, (scalar(rng.choice([0.5, 2.0, -1.0, rng.uniform(-3, 3)])),))
        if name == "clamp":
            lo = rng.choice([float("-inf"), -2.0, 0.0, rng.uniform(-3, 1)])
            hi = rng.choice([float("inf"), 2.0, 6.0, rng.uniform(-1, 3)])
            return StageCall(name, (scalar(lo), scalar(hi)))
        return StageCall(name)

    names = rng.choices(["mul", "div", "clamp", gelu], k=rng.randint(1, 5))
    return Epilogue(tuple(map(stage, names)))


def random_operands(epilogue: Epilogue, seed: int, **kwargs: object) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(max(epilogue.num_operands, 1), generator=generator) * 4 - 2
    return [torch.tensor(float(v), **kwargs) for v in values[: epilogue.num_operands]]


def eager(z: Tensor, epilogue: Epilogue, operands: list[Tensor]) -> Tensor:
    """The epilogue as a model would write it."""
    for stage in epilogue.stages:
        s = [operands[v.index] if isinstance(v, Operand) else v for v in stage.scalars]
        if stage.name == "mul":
            z = z * s[0]
        elif stage.name == "div":
            z = z / s[0]
        elif stage.name == "clamp" and any(isinstance(v, Tensor) for v in s):
            lo, hi = (torch.as_tensor(v, dtype=z.dtype, device=z.device) for v in s)
            z = torch.clamp(z, lo, hi)
        elif stage.name == "clamp":
            z = torch.clamp(z, s[0], s[1])
        else:
            kind = "tanh" if stage.name == "gelu_tanh" else "none"
            z = torch.nn.functional.gelu(z, approximate=kind)
    return z


def without_cancellation(epilogue: Epilogue, z: Tensor) -> Tensor:
    """The epilogue in float64; 1 + erf and 1 + tanh lose the negative tail even there."""
    for stage in epilogue.stages:
        if stage.name == "gelu":
            z = z / 2 * torch.erfc(-z / math.sqrt(2))
        elif stage.name == "gelu_tanh":
            z = z * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
        else:
            z = Epilogue((stage,)).reference(z)
    return z


def error(value: Tensor, exact: Tensor) -> float:
    """Relative error in the Frobenius norm, of the finite elements."""
    finite = exact.isfinite()
    value, exact = value.double()[finite], exact[finite]
    return float((value - exact).norm() / exact.norm().clamp_min(1e-300))
