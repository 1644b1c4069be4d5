"""GPU time of one call of a model by kind of kernel, for models.py --profile."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Names of kernels -> what they do, the first that fits.
KINDS = (
    ("fusepass: splits", re.compile(r"fusepass_split")),
    ("fusepass: products", re.compile(r"fusepass")),
    ("attention", re.compile(r"attention|flash|fmha|sdpa", re.IGNORECASE)),
    ("torch's products", re.compile(r"gem[mv]|nvjet|xmma|cutlass|splitK|_mm_|dot_kernel")),
    ("reductions", re.compile(r"triton_(red|per)|reduce|softmax|layer_norm", re.IGNORECASE)),
    ("pointwise", re.compile(r"triton_poi|elementwise|vectorized|Memcpy|Memset|copy|cat")),
    ("optimizer", re.compile(r"multi_tensor|adam", re.IGNORECASE)),
)
LARGEST = 12  # kernels that are told by name


def by_kind(call: Callable[[], Any]) -> dict[str, Any]:
    """Milliseconds of one warmed-up call: ``kinds`` -> of each kind; ``largest`` kernels by name.

    Kernels that begin before their predecessor ends count the waiting, so that the sum may be more
    than the call takes.
    """
    calls = 3
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    kinds: dict[str, float] = {}
    kernels: dict[str, float] = {}
    for event in profiled.events() or ():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            took = event.device_time_total / 1000 / calls
            kind = next((k for k, pattern in KINDS if pattern.search(event.name)), "other")
            kinds[kind] = kinds.get(kind, 0.0) + took
            kernels[event.name] = kernels.get(event.name, 0.0) + took
    largest = sorted(kernels.items(), key=lambda item: -item[1])[:LARGEST]
    return {
        "kinds": {k: round(v, 3) for k, v in sorted(kinds.items(), key=lambda i: -i[1])},
        "largest": {name[:100]: round(took, 3) for name, took in largest},
    }
