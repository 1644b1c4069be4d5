"""Activation checkpointing: what is recomputed stays what it was without fusepass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import QUICK, Mlp, Recorder, compiled, fused
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.testing import assert_close
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

pytestmark = pytest.mark.usefixtures("one_thread")
aten = torch.ops.aten
GEMMS = (aten.mm.default, aten.addmm.default)


def _policy(chosen: CheckpointPolicy, other: CheckpointPolicy) -> Callable[..., Any]:
    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return chosen if op in GEMMS else other

    return functools.partial(create_selective_checkpoint_contexts, policy)


def _every_second_gemm() -> Any:
    """Saves the first of each block's two products and recomputes the other."""
    seen = {True: 0, False: 0}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op not in GEMMS:
            return CheckpointPolicy.PREFER_RECOMPUTE
        seen[context.is_recompute] += 1
        even = seen[context.is_recompute] % 2 == 1
        return CheckpointPolicy.MUST_SAVE if even else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


CONTEXTS: dict[str, Any] = {
    "everything": None,
    "listed": functools.partial(create_selective_checkpoint_contexts, list(GEMMS)),
    "must save": _policy(CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE),
    "must recompute": _policy(CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_SAVE),
    "save the rest": _policy(CheckpointPolicy.PREFER_RECOMPUTE, CheckpointPolicy.MUST_SAVE),
    "every second": _every_second_gemm,
}


REFUSED = "save the rest"


class _Stack(nn.Module):
    """Mlp blocks, each checkpointed as ``context`` says."""

    def __init__(self, context: Any, blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mlp(16, 24, 0.5) for _ in range(blocks))
        self.kwargs = {} if context is None else {"context_fn": context}

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False, **self.kwargs)
        return x


def _train(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    run(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _saved(recorder: Recorder, run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    sizes: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        run(x).sum().backward()
    assert len(recorder.graphs) == 2, "one forward and one backward graph"
    return sum(sizes.values())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("context", CONTEXTS)
def test_recompute_set_and_memory_stay_what_they_were(context: str) -> None:
    model = _Stack(CONTEXTS[context]).double()
    x = torch.randn(32, 16, dtype=torch.float64)
    expected = _train(model, model, x)
    gemms, saved = {}, {}
    for backend in ("inductor", "fusepass"):
        torch._dynamo.reset()
        recorder = Recorder()
        options = {**QUICK, "post_grad_custom_pre_pass": recorder}
        run = compiled(model, backend=backend, options=options)
        saved[backend] = _saved(recorder, run, x)
        gemms[backend] = recorder.gemms()
        for ours, theirs in zip(_train(run, model, x), expected, strict=True):
            assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    # A site whose inside is saved and whose GEMM is not would change what is recomputed.
    # Of the four of the forward and the seven of the backward, those with nothing behind them are
    # misses: weight gradients, and the last block's for its input.
    # Where the GEMM is computed again, the residual behind the checkpoint's end stays outside.
    sites = {"listed": 7, "must save": 7, REFUSED: 3}.get(context, 5)
    assert (fused(), counters["fusepass"]["missed"]) == (sites, 11 - sites)
    # Two products a block forward, four backward, and what is computed again.
    assert gemms["inductor"][0] == 4
    assert gemms["fusepass"] == gemms["inductor"]
    assert saved["fusepass"] <= saved["inductor"]


def test_the_policies_differ() -> None:
    """The counts above tell the policies apart, or the test before would prove nothing."""
    again = {}
    for context in ("everything", "must save", "every second"):
        torch._dynamo.reset()
        recorder = Recorder()
        options = {**QUICK, "post_grad_custom_pre_pass": recorder}
        run = compiled(_Stack(CONTEXTS[context]), options=options)
        run(torch.randn(32, 16)).sum().backward()
        again[context] = recorder.gemms()[1] - 8 + 1  # x needs no gradient: one product less
    assert again["everything"] > again["must save"] == 0


def test_a_compiled_block_inside_an_eager_checkpoint() -> None:
    model = Mlp(16, 24).double()
    fast = compiled(model, options=QUICK)
    x = torch.randn(32, 16, dtype=torch.float64)
    expected = _train(model, model, x)
    found = _train(lambda v: checkpoint(fast, v, use_reentrant=False), model, x)
    assert fused() == 2, "GELU, and its derivative"
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
