"""A training step in which Linears of one input run in one launch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import functorch.compile
import graphs
import pytest
import torch
from graphs import Fused, fuse
from sister_models import BF16, WIDTH, Attention, joined, linears
from test_partitioner import _plan
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from fusepass.rewrite import sisters


class Stack(nn.Module):
    def __init__(self, checkpointed: bool, context: Any = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.checkpointed = checkpointed
        self.kwargs = {} if context is None else {"context_fn": context}

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = checkpoint(layer, x, use_reentrant=False, **self.kwargs) \
                if self.checkpointed else layer(x)  # fmt: skip
            x = x + y.transpose(-3, -2).flatten(-2)
        return x


def _step(model: nn.Module, one: bool) -> tuple[Counter[Any], int, Fused, list[Tensor]]:
    """A training step: what is saved, the products of the backward, the graphs, the gradients."""
    torch._dynamo.reset()
    x = torch.randn(2, 128, WIDTH, generator=torch.Generator().manual_seed(0)).to(BF16)
    x.requires_grad_()
    parts: list[Any] = []

    def partition(*args: Any, **kwargs: Any) -> Any:
        parts.extend(functorch.compile.min_cut_rematerialization_partition(*args, **kwargs))
        return tuple(parts)

    with pytest.MonkeyPatch.context() as patch:
        if not one:
            patch.setattr(sisters, "linears_together", lambda *question: None)
        patch.setattr(graphs, "min_cut_rematerialization_partition", partition)
        fused = fuse(model, hopper=True, dynamic=False)
        out = fused(x)
        gradients = torch.autograd.grad(out.float().square().sum(), [x, *model.parameters()])
    forward, backward = parts
    (outputs,) = forward.graph.output_node().args
    kept, _ = _plan(outputs[1:], backward.graph)
    return kept, sum(map(_products, backward.graph.nodes)), fused, list(gradients)


def _products(node: torch.fx.Node) -> int:
    if node.target is linears:
        return len(node.args[1])
    return str(node.target).startswith(("aten.mm", "aten.addmm", "fusepass."))


def _elements(kept: Counter[Any]) -> int:
    return sum(count * math.prod(map(int, shape)) for (_, *shape), count in kept.items())


@pytest.mark.parametrize(("checkpointed", "budget"), [(False, 1.0), (True, 1.0), (False, 0.5)])
def test_a_step_saves_no_more_and_computes_nothing_again(checkpointed: bool, budget: float) -> None:
    model = Stack(checkpointed).to(BF16)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        kept, run, apart, wanted = _step(model, False)
        kept_by_ours, run_by_ours, fused, found = _step(model, True)
    assert joined(fused) == [(128, 128, 128)] * 2 and joined(apart) == []
    if budget == 1:
        assert kept_by_ours == kept and run_by_ours == run
    else:  # three that are one are saved or computed again together, within the budget
        assert _elements(kept_by_ours) <= _elements(kept)
    torch.testing.assert_close(found, wanted)


def test_products_of_the_backward_are_as_they_were() -> None:
    model = Stack(False).to(BF16)
    _, _, fused, _ = _step(model, True)
    told = [(s.backward, "one launch" in str(s.kernel)) for s in fused.report.sites]
    assert all(backward != one for backward, one in told)
    assert sum(one for _, one in told) == 6


def test_what_is_computed_again_is_not_joined_with_what_is_saved() -> None:
    seen = {True: 0, False: 0}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            return CheckpointPolicy.PREFER_RECOMPUTE
        seen[context.is_recompute] += 1
        first = seen[context.is_recompute] % 3 == 1
        return CheckpointPolicy.MUST_SAVE if first else CheckpointPolicy.MUST_RECOMPUTE

    model = Stack(True, lambda: create_selective_checkpoint_contexts(policy)).to(BF16)
    _, _, fused, found = _step(model, True)
    assert joined(fused) == [(128, 128)] * 2
    _, _, _, wanted = _step(model, False)
    torch.testing.assert_close(found, wanted)
