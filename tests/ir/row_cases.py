"""For each row of the table a program of it alone, its exact values, and numbers to try it on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from fusepass.ir import Builder, Epilogue, Input, Z
from fusepass.ir.table import ROWS
from fusepass.ir.types import Arg

MAT0, MAT1 = Input("mat", 0), Input("mat", 1)
# Arguments beside the element: numbers where eager takes numbers only.
ARGUMENTS: dict[str, tuple[Arg | float, ...]] = {
    "clamp": (-1.5, 2.25),
    "softplus": (1.0, 20.0),
    "elu": (0.75,),
    "celu": (1.5,),
    "leaky_relu": (0.01,),
    "softcap": (30.0,),
    "pow": (1.5,),
}


def program(name: str) -> Epilogue:
    """The row applied to z, and to matrices where it takes more than one tensor."""
    builder, row = Builder(), ROWS[name]
    rest = ARGUMENTS.get(name, (MAT0, MAT1)[: row.arity - 1])
    if row.parameters == "bvv":
        return builder.finish(builder.apply(name, builder.apply("gt", Z, 0.0), MAT0, MAT1))
    if "b" in row.parameters:
        conditions = [builder.apply("gt", value, 0.0) for value in (Z, MAT0)[: row.arity]]
        return builder.finish(builder.apply(name, *conditions))
    return builder.finish(builder.apply(name, Z, *rest))


def inputs(name: str, z: torch.Tensor) -> list[torch.Tensor]:
    """z, and as many other orders of its values as ``program(name)`` has matrices."""
    generator = torch.Generator().manual_seed(len(name))
    count = program(name).count("mat")
    return [z, *(z[torch.randperm(len(z), generator=generator)] for _ in range(count))]


def gradient(name: str, values: list[torch.Tensor]) -> np.ndarray | float:
    """What a row's absolute error is a share of: the gradient that it multiplies, if it does."""
    return values[1].double().abs().numpy() if name.endswith("_gradient") else 1.0


def every(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 values of a 16-bit dtype."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


_erfc = np.vectorize(math.erfc, otypes=[float])
_erf = np.vectorize(math.erf, otypes=[float])


def _sigmoid(v: np.ndarray) -> np.ndarray:
    return np.where(v < 0, np.exp(v) / (1 + np.exp(v)), 1 / (1 + np.exp(-v)))


def _gelu(v: np.ndarray) -> np.ndarray:
    return v / 2 * _erfc(-v / math.sqrt(2))


def _gelu_derivative(v: np.ndarray) -> np.ndarray:
    return _erfc(-v / math.sqrt(2)) / 2 + v * np.exp(-v * v / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh(v: np.ndarray) -> np.ndarray:
    return v / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def _gelu_tanh_derivative(v: np.ndarray) -> np.ndarray:
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    up = np.exp(2 * root * (v + cubic * v**3))
    return (1 + 2 * v / (1 + up) * root * (1 + 3 * cubic * v * v)) / (1 + 1 / up)


def _mish(v: np.ndarray) -> np.ndarray:
    x = np.exp(np.minimum(v, 300))
    return np.where(v > 300, v, v * (x * (x + 2) / (x * (x + 2) + 2)))


def _elu(v: np.ndarray, alpha: float, inner: float = 1.0) -> np.ndarray:
    return np.where(v > 0, v, alpha * np.expm1(v / inner))


# Without cancellation, so that tails keep their digits; all others are torch's own in float64.
_STABLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": _sigmoid,
    "erf": _erf,
    "erfc": _erfc,
    "gelu": _gelu,
    "gelu_of_product": _gelu,
    "gelu_within_2": _gelu,
    "gelu_half": lambda v: _gelu(2 * v),
    "gelu_half_within_1": lambda v: _gelu(2 * v),
    "gelu_derivative": _gelu_derivative,
    "gelu_tanh": _gelu_tanh,
    "gelu_tanh_derivative": _gelu_tanh_derivative,
    "silu": lambda v: v * _sigmoid(v),
    "quick_gelu": lambda v: v * _sigmoid(1.702 * v),
    "mish": _mish,
    "softplus": lambda v: np.logaddexp(v, 0),
    "softplus_1": lambda v: np.logaddexp(v, 0),
    "logsigmoid": lambda v: -np.logaddexp(-v, 0),
    "elu": lambda v: _elu(v, 0.75),
    "celu": lambda v: _elu(v, 1.5, 1.5),
    "selu": lambda v: 1.0507009873554805 * _elu(v, 1.6732632423543772),
}


def exact(name: str, values: list[torch.Tensor]) -> np.ndarray:
    """The row's values in float64."""
    stable = _STABLE.get(name)
    with np.errstate(all="ignore"):
        if stable is not None:
            return stable(values[0].double().numpy())
        z, *mats = (v.double() for v in values)
        return program(name).reference(z, *mats).numpy()
