"""Dynamic shapes: one compile for every size, and scalars that change between calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from graphs import fuse
from small_models import QUICK, EncoderLayer, Mlp, block, compiled, fused
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import fusepass

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_recompile() -> Iterator[None]:
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.mark.usefixtures("no_recompile")
def test_one_compile_for_a_hundred_batch_sizes() -> None:
    model = Mlp(16, 24)
    fast = compiled(model, dynamic=True)
    with torch.no_grad():
        for batch in range(2, 102):
            x = torch.randn(batch, 16)
            assert_close(fast(x), model(x))
    assert fused() == 1


@pytest.mark.usefixtures("no_recompile")
def test_training_with_a_changing_batch_size() -> None:
    model = Mlp(16, 24)
    fast = compiled(model, options=QUICK, dynamic=True)
    for batch in (7, 2, 64, 13):
        x = torch.randn(batch, 16)
        gradients = []
        for run in (fast, model):
            model.zero_grad()
            run(x).square().mean().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert_close(gradients[0], gradients[1])
    assert fused() == 2  # and the gradient of its activation, in the backward


class Residuals(nn.Module):
    """A stream to which Linears add: how it lies is asked of sizes that may be symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(256, 256) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return x + self.second(F.layer_norm(x, (256,)))


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_a_residual_stream_of_symbolic_sizes_on_an_h200(train: bool) -> None:
    model = Residuals().to(torch.bfloat16)
    x = torch.randn(2, 64, 256).to(torch.bfloat16).requires_grad_(train)
    fast = fuse(model, hopper=True, dynamic=True)
    with torch.set_grad_enabled(train):
        assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)
    assert set(fast.epilogues) == {"add(mat0)"}


@pytest.mark.usefixtures("no_recompile")
def test_marked_batch_and_sequence() -> None:
    model = EncoderLayer(16, 2)
    fast = compiled(model, options=QUICK)
    with torch.no_grad():
        for batch, length in ((4, 6), (3, 11), (9, 2), (16, 32)):
            x = torch.randn(batch, length, 16)
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(x, 1)
            assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert fused() == 3  # the activation and two residuals


def test_sizes_torch_itself_treats_apart() -> None:
    model = block()
    fast = compiled(model, options=QUICK, dynamic=True)
    with torch.no_grad():
        for batch in (5, 1, 0, 6):
            x = torch.randn(batch, 32)
            assert_close(fast(x), model(x))


def test_the_second_size_makes_the_graph_dynamic() -> None:
    model = block()
    fast = compiled(model, options=QUICK)
    with torch.no_grad():
        for batch in range(2, 12):
            x = torch.randn(batch, 32)
            assert_close(fast(x), model(x))
    assert fused() == 2  # one static graph, one for every other size


def test_a_report_keeps_the_symbols() -> None:
    x = torch.randn(6, 32)
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        (site,) = fusepass.explain(block(), x).sites
    assert (site.n, site.k) == ("48", "32")
    assert not site.m.isdigit(), "the batch size was baked in"


class _Scaled(nn.Module):
    """Python floats that the user changes between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale, self.bound = nn.Linear(16, 24), 0.5, 1.5

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu((self.linear(x) * self.scale).clamp(-self.bound, self.bound))


@pytest.mark.usefixtures("no_recompile")
def test_a_float_attribute_that_changes_is_an_operand() -> None:
    class Scale(_Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(F.hardtanh(self.linear(x) * self.scale, -2, 2))

    model, x = Scale(), torch.randn(6, 16)
    fast = compiled(model, dynamic=True)
    with torch.no_grad():
        for scale in (0.5, 0.3, -1.7, 1e-3, 4.0):
            model.scale = scale
            assert_close(fast(x), model(x))
    assert fused() == 1


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_floats_that_change_are_never_stale(dynamic: Any) -> None:
    model, x = _Scaled(), torch.randn(6, 16)
    fast = compiled(model, options=QUICK, dynamic=dynamic)
    with torch.no_grad():
        for scale, bound in ((0.5, 1.5), (0.3, 1.5), (0.3, 0.2), (2.0, 0.7)):
            model.scale, model.bound = scale, bound
            assert_close(fast(x), model(x))
    assert fused() > 0


def test_a_learnable_scale_read_at_run_time() -> None:
    scale = nn.Parameter(torch.tensor(0.5))
    model = Mlp(16, 24, scale)
    fast, x = compiled(model, options=QUICK), torch.randn(6, 16)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for value in (0.5, -2.0, 3.0):
            scale.fill_(value)
            assert_close(fast(x), model(x))
    assert fused() == 1


@pytest.mark.gpu
def test_plans_are_made_for_the_true_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    import fusepass.kernels as kernels

    seen: list[tuple[Any, ...]] = []
    plan = kernels.plan_kernel

    def spy(*problem: Any) -> str:
        seen.append(problem)
        return plan(*problem)

    monkeypatch.setattr(kernels, "plan_kernel", spy)
    model = block(328, 456).to("cuda", torch.bfloat16)  # a shape no other test has
    fast = compiled(model, dynamic=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):  # the second time every plan is known
            for batch in (37, 517, 4099):
                x = torch.randn(batch, 328, device="cuda", dtype=torch.bfloat16)
                assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)
    ours = [problem[2] for problem in seen if problem[3] == 456]
    assert ours == [37, 517, 4099]
    assert fused() == 1
