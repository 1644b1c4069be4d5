"""An epilogue whose statements stand apart computes the same bits as one that is packed closely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forced_gemm import CHAIN, NAN, poison

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import kernels
from fusepass.kernels.plan import sm90

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

OP = torch.ops.fusepass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("text", "k"), [(CHAIN, 768), ("clamp(-1.0, 1.5) gelu", 1032), ("gelu_tanh", 1024)]
)
def test_same_bits(monkeypatch: pytest.MonkeyPatch, text: str, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    m, n = 8200, 3080
    x = torch.randn(m, k, device="cuda").to(dtype)
    w = (torch.randn(n, k, device="cuda") * k**-0.5).to(dtype)
    b = torch.randn(n, device="cuda").to(dtype)
    x[5, 7], x[4000, 1], w[9, 3] = NAN, float("inf"), float("-inf")
    assert kernels.load_binding()
    stand_apart, asked = sm90.stand_apart, list[bool]()

    def told(*args: Any) -> bool:
        asked.append(stand_apart(*args))
        return asked[-1]

    monkeypatch.setattr(sm90, "stand_apart", told)
    OP._forget_plans()
    poison(m, n, dtype)
    apart = OP.linear(x, w, b, text, [])
    assert asked and asked[0]
    monkeypatch.setattr(sm90, "stand_apart", lambda *_: False)
    OP._forget_plans()
    poison(m, n, dtype)
    packed = OP.linear(x, w, b, text, [])
    OP._forget_plans()
    assert torch.equal(apart.view(torch.int16), packed.view(torch.int16))
    assert apart[:5].isfinite().any() and apart[5].isnan().all()
