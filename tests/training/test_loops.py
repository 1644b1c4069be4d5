"""Whole training loops: fusepass's loss curves against eager's own error."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from small_models import QUICK, Transformer, block, compiled, fused
from torch import Tensor, nn
from torch.nn import functional as F

from fusepass.kernels import has_fused_gemm

STEPS = 50
Batch = tuple[Tensor, Tensor]
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.01),
}
PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def _block_task(device: str) -> tuple[nn.Module, list[Batch]]:
    """The seed's model learns another instance of itself."""
    teacher = block().to(device)
    inputs = [2 * torch.randn(64, 32, device=device) for _ in range(STEPS)]
    with torch.no_grad():
        return block().to(device), [(x, teacher(x)) for x in inputs]


def _transformer_task(device: str) -> tuple[nn.Module, list[Batch]]:
    """Each token's class is a fixed function of the token."""
    tokens = [torch.randint(0, 17, (16, 12), device=device) for _ in range(STEPS)]
    return Transformer(layers=1).to(device), [(t, (3 * t + 1) % 17) for t in tokens]


TASKS = {"block": _block_task, "transformer": _transformer_task}


def _sites(task: str, precision: str, device: str) -> int:
    if task == "block":
        return 1
    if device == "cpu":
        return 4  # an activation, its derivative, two residuals
    # On a GPU what reads a matrix is a site where one kernel is faster than two. Of products of 192
    # rows by 16 columns that is the derivative, in 16 bits: residuals are float32 under autocast,
    # for which no narrow tile has room, and of a K of 16 float32 splits nothing.
    dtype = PRECISIONS[precision]
    return 1 + (dtype is not None and has_fused_gemm(torch.device(device), dtype))


def _loss(out: Tensor, target: Tensor) -> Tensor:
    if target.dtype.is_floating_point:
        return F.mse_loss(out.float(), target)
    return F.cross_entropy(out.float().flatten(0, -2), target.flatten())


def curve(
    run: Callable[[Tensor], Tensor],
    model: nn.Module,
    batches: list[Batch],
    optimizer: str,
    dtype: torch.dtype | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """The losses of one pass over ``batches``, [steps]; ``order`` permutes each batch's rows."""
    device = next(model.parameters()).device.type
    steps = OPTIMIZERS[optimizer](model.parameters())
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    losses = []
    for x, target in batches:
        if order is not None:
            x, target = x[order], target[order]
        cast: Any = contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype)
        with cast:
            loss = _loss(run(x), target)
        scaler.scale(loss).backward()
        scaler.step(steps)
        scaler.update()
        steps.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).double().cpu()


def eager_error(
    model: nn.Module, batches: list[Batch], optimizer: str, dtype: torch.dtype | None
) -> tuple[Tensor, float]:
    """Eager's curve, and how far off it is by itself.

    That is how far it moves when only the order of its sums changes, and, in 16 bits, how far it
    is from the curve in float32.
    """

    def run(dtype: torch.dtype | None, order: Tensor | None = None) -> Tensor:
        copied = copy.deepcopy(model)
        return curve(copied, copied, batches, optimizer, dtype, order)

    base, (x, _) = run(dtype), batches[0]
    others = [run(dtype, torch.randperm(len(x), device=x.device)) for _ in range(4)]
    others += [] if dtype is None else [run(None)]
    return base, max(float((other - base).abs().max()) for other in others)


def check_loops(task: str, precision: str, device: str) -> None:
    torch.manual_seed(0)
    dtype = PRECISIONS[precision]
    model, batches = TASKS[task](device)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    # Other kernels are a C++ compiler's minutes: here those of one task, the GPU tests have all.
    generated = device == "cuda" or (task != "transformer" and precision == "float32")
    fast = compiled(model, options={} if generated else QUICK)
    for optimizer in OPTIMIZERS:
        model.load_state_dict(start)
        base, error = eager_error(model, batches, optimizer, dtype)
        ours = curve(fast, model, batches, optimizer, dtype)
        assert float((ours - base).abs().max()) <= 2 * error
        assert base[-1] < 0.6 * base[0], "the task is not being learnt"
    # One compile served both optimizers.
    assert fused() == _sites(task, precision, device)


@pytest.mark.sampled(4)  # of different tasks; test_two_hundred_steps.py has more
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", TASKS)
def test_loss_curves_are_eagers(task: str, precision: str) -> None:
    check_loops(task, precision, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", TASKS)
def test_loss_curves_are_eagers_on_the_gpu(task: str, precision: str) -> None:
    check_loops(task, precision, "cuda")
