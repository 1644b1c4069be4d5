"""Frozen graphs on the CPU: a Linear whose weight Inductor packs is Inductor's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from small_models import compiled, fused
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F

from fusepass.report import collect

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not (torch._C._has_mkldnn and torch._C.has_mkl), reason="needs torch with oneDNN and MKL"
    ),
]

_PACKED = r"mkldnn\._linear_pointwise|mkl\._mkl_linear|mkldnn__linear_pointwise|mkl_linear"


class _Frozen(nn.Module):
    """A Linear whose weight is computed from parameters."""

    def __init__(self, tail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.mask = nn.Linear(64, 48), nn.Parameter(torch.ones(48, 1))
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.linear(x, self.linear.weight * self.mask, self.linear.bias))


def _code(model: Callable[..., Any], *inputs: Tensor, **options: Any) -> tuple[Any, str, list[str]]:
    """What the compiled model gives, its code and the reasons of its misses."""
    with torch.no_grad(), inductor_config.patch(freezing=True), collect() as gathered:
        out, (code,) = run_and_get_code(compiled(model, options=options), *inputs)
    return out, code, [miss.reason for miss in gathered.report().misses]


def _supports(dtype: torch.dtype) -> bool:
    onednn = torch.ops.mkldnn
    return {
        torch.float32: True,
        torch.bfloat16: onednn._is_mkldnn_bf16_supported(),
        torch.float16: onednn._is_mkldnn_fp16_supported(),
    }[dtype]


_TAILS = [F.relu, F.gelu, F.hardtanh, lambda z: F.gelu(F.hardtanh(z * 0.5))]


@pytest.mark.sampled(3)  # each is compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tail", _TAILS)
def test_a_packed_linear_is_left(tail: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    model, x = _Frozen(tail).to(dtype).eval(), torch.randn(6, 64).to(dtype)
    out, code, reasons = _code(model, x)
    packed = re.search(_PACKED, code) is not None
    assert packed == _supports(dtype) == (fused() == 0)
    if packed:
        assert ["freezing packs its weight" in reason for reason in reasons] == [True]
    torch.testing.assert_close(out, model(x))


@pytest.mark.parametrize("why", ["float64", "weight is an input", "bitwise", "gradients", "off"])
def test_what_is_not_packed_fuses(why: str) -> None:
    dtype = torch.float64 if why == "float64" else torch.float32
    model, x = _Frozen(F.gelu).to(dtype).eval(), torch.randn(6, 64, dtype=dtype)
    if why == "gradients":
        with inductor_config.patch(freezing=True):
            compiled(model)(x)
    elif why == "weight is an input":
        _code(lambda x, w: F.gelu(F.linear(x, w) * 0.5), x, model.linear.weight.detach())
    elif why == "off":
        _code(model, x, **{"cpp.weight_prepack": False})
    else:
        _code(model, x, **({"fusepass.numerics": "bitwise"} if why == "bitwise" else {}))
    missed = 1 if why == "gradients" else 0  # the weight's gradient is a product, too
    assert (counters["fusepass"]["fused"], counters["fusepass"]["missed"]) == (1, missed)
