"""mode="max-autotune-no-cudagraphs" times candidates, keeps the winner and stays right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fusepass.kernels.plan import winners
from fusepass.kernels.plan.problem import BFLOAT16, Problem


@pytest.mark.hopper
@pytest.mark.parametrize("train", [False, True])
def test_winner_is_kept_and_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: bool
) -> None:
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(tmp_path / "cache"))
    winners._on_disk.cache_clear()
    winners._won.clear()
    model = nn.Sequential(nn.Linear(1024, 2048), nn.Hardtanh(-2, 2), nn.GELU())
    model = model.to("cuda", torch.bfloat16)
    x = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16)
    with torch.set_grad_enabled(train):
        compiled = torch.compile(model, backend="fusepass", mode="max-autotune-no-cudagraphs")
        got = compiled(x)
    problem = Problem("clamp(-2.0, 2.0) gelu", BFLOAT16, 4096, 2048, 1024, False, train)
    assert winners.recall(problem)[0]
    assert list((tmp_path / "cache").glob("tuned-*"))
    exact = model.double()(x.double())
    eager = model.to(torch.bfloat16)(x)
    worst = (eager.double() - exact).norm()
    assert (got.double() - exact).norm() <= worst
