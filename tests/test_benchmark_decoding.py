"""benchmarks/decoding.py on a model of its own: no library of models is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusepass.explaining.explain import without_caches

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import decoding
import rows

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, LENGTH, PLACE = 16, 8, 5


class Layer:
    """A static cache of one layer, as transformers has it."""

    def __init__(self, batch: int) -> None:
        self.keys = torch.randn(batch, LENGTH, WIDTH, dtype=torch.bfloat16)
        self.cumulative_length = torch.tensor(PLACE)

    def update(self, keys: Tensor) -> Tensor:
        place = torch.arange(keys.shape[1]) + self.cumulative_length
        self.cumulative_length.add_(keys.shape[1])
        self.keys.index_copy_(1, place, keys)
        return self.keys


class Newer(nn.Module):
    """A decoder of one layer that takes its cache by the name that newer versions have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, WIDTH, dtype=torch.bfloat16)
        self.up = nn.Linear(WIDTH, 32, dtype=torch.bfloat16)

    def forward(self, tokens: Tensor, use_cache: bool, cache: Any) -> Any:
        keys = cache.layers[0].update(self.embed(tokens))
        return SimpleNamespace(logits=self.up(keys.mean(1, keepdim=True)))


class Older(Newer):
    """And by the one that older versions have."""

    def forward(self, tokens: Tensor, use_cache: bool, past_key_values: Any) -> Any:  # type: ignore[override]
        return super().forward(tokens, use_cache, past_key_values)


def _made(kind: type[Newer], batch: int) -> tuple[decoding.Step, Tensor]:
    cache = SimpleNamespace(layers=[Layer(batch)])
    return decoding.Step(kind(), cache), torch.randint(0, 32, (batch, 1))


@pytest.mark.parametrize("kind", [Newer, Older])
def test_a_step_stays_at_its_place(kind: type[Newer]) -> None:
    step, tokens = _made(kind, 3)
    (layer,) = step.cache.layers
    before = layer.keys.clone()
    with torch.no_grad():
        first, again = step(tokens), step(tokens)
    assert torch.equal(first, again) and first.shape == (3, 1, 32)
    assert int(layer.cumulative_length) == PLACE
    written = (layer.keys != before).any(dim=-1).any(dim=0)
    assert written.nonzero().flatten().tolist() == [PLACE]


class Own(decoding.Decoder):
    """Quick to compile, and out of memory at a batch of 2."""

    def make(self, batch: int, device: str, small: bool) -> tuple[nn.Module, Tensor, int]:
        if batch == 2:
            raise RuntimeError("no memory is left")
        return nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU()), torch.randn(batch, WIDTH), 4300


def test_a_model_that_fails_is_a_row_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(decoding.MODELS, "gpt2", Own("own", "", {}))
    monkeypatch.setattr(rows, "uncached", lambda: None)  # which is for the whole process
    out = tmp_path / "decoding.json"
    options = ["--models", "gpt2", "--batches", "2", "3", "--device", "cpu", "--seconds", "0.01"]
    with without_caches():
        decoding.main([*options, "--out", str(out)])
    failed, row = json.loads(out.read_text())["rows"]
    assert (failed["model"], failed["batch"]) == ("own", 2) and "no memory" in failed["failed"]
    assert row["batch"] == 3 and row["fused"] == 1 and row["finite"]
    assert row["difference"] <= 1e-6 and row["floor_ms"] == 0.0
    ratio = row["inductor_ms"] / row["fusepass_ms"]
    assert row["speedup"] == pytest.approx(ratio, rel=0.05)
    assert row["inductor_spread"] >= 0 and "failed" not in row
    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["batch"] for line in printed] == [2, 3]
