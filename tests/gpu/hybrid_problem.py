"""Inputs that no GEMM of ours takes: the framework's GEMM and the pointwise kernel run them."""

from __future__ import annotations

import torch
from torch import Tensor


def problem(dtype: torch.dtype, m: int = 133, k: int = 65, n: int = 147) -> list[Tensor]:
    """x, weight and bias; rows of 65 elements are what TMA cannot address."""
    return [torch.randn(*s, device="cuda").to(dtype) for s in ((m, k), (n, k), (n,))]
