"""Two hundred steps of a small language model and of a small ViT, from three seeds, beside eager's.

A loss curve of eager's moves by itself when only the order of a batch's rows, so of its sums, is
another. Ours is no further from one of four such curves than these are from one another.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from small_models import QUICK, EncoderLayer, Transformer, compiled, fused
from test_loops import PRECISIONS, Batch, curve
from torch import Tensor, nn

STEPS, SEEDS = 200, 3


class Vit(nn.Module):
    """Images [B, 3, 16, 16] to logits of ten classes."""

    def __init__(self, width: int = 24, layers: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.place = nn.Parameter(torch.randn(16, width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(width, 2) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def _language_model() -> tuple[nn.Module, list[Batch]]:
    """The next token is a function of the one before, but for one in eight."""
    batches = []
    for _ in range(STEPS):
        tokens = torch.randint(0, 17, (16, 12))
        following = (3 * tokens + 1) % 17
        noise = torch.rand(tokens.shape) < 0.125
        batches.append((tokens, torch.where(noise, torch.randint(0, 17, (16, 12)), following)))
    return Transformer(layers=1), batches


def _vit() -> tuple[nn.Module, list[Batch]]:
    """Each class is a picture of its own, under noise."""
    pictures = torch.randn(10, 3, 16, 16)
    classes = [torch.randint(0, 10, (32,)) for _ in range(STEPS)]
    return Vit(), [(pictures[c] + torch.randn(32, 3, 16, 16), c) for c in classes]


MODELS = {"language model": _language_model, "ViT": _vit}


def _apart(
    model: nn.Module, batches: list[Batch], dtype: torch.dtype | None
) -> tuple[float, float]:
    """How far our curve is from the nearest of eager's, and how far these are apart."""

    def eager(order: Tensor | None = None) -> Tensor:
        copied = copy.deepcopy(model)
        return curve(copied, copied, batches, "adamw", dtype, order)

    orders = [torch.randperm(len(batches[0][0])) for _ in range(3)]
    eagers = [eager(), *map(eager, orders)]
    ours = curve(compiled(model, options=QUICK), model, batches, "adamw", dtype)
    assert all(e.isfinite().all() and e[-20:].mean() < 0.7 * e[:20].mean() for e in eagers)
    pairs = itertools.combinations(eagers, 2)
    return (
        min(float((ours - e).abs().max()) for e in eagers),
        max(float((one - other).abs().max()) for one, other in pairs),
    )


@pytest.mark.sampled(6)  # one of them, of one seed; with --every-case all of all, 40 s each
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_loss_curves_of_two_hundred_steps(
    name: str, precision: str, request: pytest.FixtureRequest
) -> None:
    for seed in range(SEEDS if request.config.getoption("--every-case") else 1):
        torch.manual_seed(seed)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        ours, eagers = _apart(*MODELS[name](), PRECISIONS[precision])
        assert fused() >= 2 and ours <= eagers, (seed, ours, eagers)
