"""Easy and hostile float32 data for a product: what accuracy.py and the tests draw.

A case is drawn on torch's default device, of m rows of x, n of w and k columns of both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Problem = tuple[Tensor, Tensor, Tensor]  # float32 x [m, k], w [n, k], b [n]
Case = Callable[[int, int, int], Problem]


def _uniform(m: int, n: int, k: int) -> Problem:
    return torch.rand(m, k), torch.rand(n, k), torch.rand(n)


def _normal(m: int, n: int, k: int) -> Problem:
    return torch.randn(m, k), torch.randn(n, k), torch.randn(n)


def _large_mean(m: int, n: int, k: int) -> Problem:
    return torch.rand(m, k) + 1000, torch.rand(n, k) + 1000, torch.rand(n)


def _log_normal(m: int, n: int, k: int) -> Problem:
    def draw(rows: int) -> Tensor:  # ±3 standard deviations span 40 binades
        signs = torch.randint(0, 2, (rows, k)) * 2.0 - 1
        return signs * torch.exp2(torch.randn(rows, k) * (40 / 6))

    return draw(m), draw(n), torch.randn(n)


def _row_outlier(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    x[torch.arange(m), torch.randint(0, k, (m,))] = 1e6
    return x, w, b


def _aligned(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    x[:, k // 3] *= 1e6
    w[:, k // 3] *= 1e6
    return x, w, b


def _anti_aligned(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    x[:, k // 3] *= 1e6
    w[:, k // 3] *= 1e-6
    w[:, k // 2] *= 1e6
    x[:, k // 2] *= 1e-6
    return x, w, b


def _cancellation(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    half = k // 2
    x[:, half : 2 * half] = -x[:, :half]
    w[:, half : 2 * half] = w[:, :half] * (1 + 2.0**-12 * torch.rand(n, half))
    return x, w, b * 1e-3


def _pairs(m: int, n: int, k: int) -> Problem:
    """Neighbours that cancel to 1e-6: what is left of |x| |w|^T is less than its rounding."""
    x, w, b = _normal(m, n, k)
    half = k // 2 * 2
    x[:, 1:half:2] = -x[:, :half:2] * (1 + 1e-6)
    w[:, 1:half:2] = w[:, :half:2]
    return x, w, b * 1e-6


def _one_hot(m: int, n: int, k: int) -> Problem:
    _, w, b = _normal(m, n, k)
    return torch.nn.functional.one_hot(torch.arange(m) % k, k).float(), w, b


def _scaled(power: float) -> Case:
    def case(m: int, n: int, k: int) -> Problem:
        x, w, b = _normal(m, n, k)
        return x * power, w, b * power

    return case


def _subnormal(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    return x * 1e-40, w, b * 1e-40


def _integers(m: int, n: int, k: int) -> Problem:
    def draw(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape).float()

    return draw(m, k), draw(n, k), draw(n)


CASES: dict[str, Case] = {
    "uniform(0, 1)": _uniform,
    "normal": _normal,
    "uniform, mean 1000": _large_mean,
    "log-normal, 40 binades": _log_normal,
    "one 1e6 in each row": _row_outlier,
    "outlier columns, aligned": _aligned,
    "outlier columns, anti-aligned": _anti_aligned,
    "cancellation": _cancellation,
    "cancellation in pairs": _pairs,
    "one-hot rows": _one_hot,
    "near 1e-30": _scaled(1e-30),
    "subnormal": _subnormal,
    "near 1e30": _scaled(1e30),
    "small integers": _integers,
}


def _not_finite(*where: int) -> Case:
    def case(m: int, n: int, k: int) -> Problem:
        tensors = _normal(m, n, k)
        tensors[1][5] = 0  # inf * 0 is NaN
        for i in where:
            flat = tensors[i].flatten()
            at = torch.randint(0, flat.numel(), (6,))
            flat[at] = torch.tensor([float("nan"), float("inf"), -float("inf")] * 2)
        return tensors

    return case


NOT_FINITE: dict[str, Case] = {
    "NaN and inf in x": _not_finite(0),
    "NaN and inf in W": _not_finite(1),
    "NaN and inf in b": _not_finite(2),
    "NaN and inf in all": _not_finite(0, 1, 2),
}
