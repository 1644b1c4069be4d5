"""CUDA graphs: torch.compile's own, and captures by hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import Mlp, block, compiled, fused
from torch import Tensor
from torch._dynamo.utils import counters
from torch.testing import assert_close

from fusepass.kernels import fuses, has_fused_gemm

DTYPES = (torch.bfloat16, torch.float32)
ROWS, WIDTH, HIDDEN = 1024, 512, 2048


@pytest.fixture(autouse=True)
def _one_kernel() -> None:
    """The sizes are those that Hopper's own kernels take, float32's with its workspace, too."""
    device = torch.device("cuda")
    for dtype in DTYPES:
        if has_fused_gemm(device, dtype):
            assert fuses(device, dtype, ROWS, HIDDEN, WIDTH, False)


def _close(ours: Tensor, theirs: Tensor) -> None:
    tolerance = 2e-2 if theirs.dtype is torch.bfloat16 else 1e-5
    assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Any call that waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reduce_overhead(dtype: torch.dtype) -> None:
    model = Mlp(WIDTH, HIDDEN).to("cuda", dtype)
    fast = torch.compile(model, backend="fusepass", mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(6):  # warm-up, capture, replays
            x = torch.randn(ROWS, WIDTH, device="cuda", dtype=dtype)
            torch.compiler.cudagraph_mark_step_begin()
            _close(fast(x).clone(), model(x))
    assert fused() == 1


def test_reduce_overhead_training() -> None:
    model = Mlp(WIDTH, HIDDEN).to("cuda")
    fast = torch.compile(model, backend="fusepass", mode="reduce-overhead")
    for _ in range(6):
        x = torch.randn(ROWS, WIDTH, device="cuda")
        gradients = []
        for run in (fast, model):
            model.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            run(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for ours, theirs in zip(*gradients, strict=True):
            assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())
    # The derivative reads z beside its product, which needs a kernel of ours.
    assert fused() == 1 + has_fused_gemm(torch.device("cuda"), torch.float32)


class Decoder(torch.nn.Module):
    """Products of one token a sequence, whose keys go into a cache as transformers' static one."""

    def __init__(self, batch: int, length: int, place: int) -> None:
        super().__init__()
        self.first, self.up, self.gate = (torch.nn.Linear(WIDTH, HIDDEN) for _ in range(3))
        self.down = torch.nn.Linear(HIDDEN, WIDTH)
        self.keys = SimpleNamespace(of=torch.zeros(batch, length, HIDDEN), at=torch.tensor(place))

    def forward(self, x: Tensor) -> Tensor:
        self.keys.at.add_(1)
        self.keys.of.index_copy_(1, self.keys.at.view(1), self.first(x))
        seen = torch.arange(self.keys.of.shape[1], device=x.device) <= self.keys.at
        kept = torch.where(seen[:, None], self.keys.of, 0).mean(1, keepdim=True)[..., :WIDTH]
        x = x + kept
        x = x + self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))
        self.keys.at.sub_(1)
        return x


@pytest.mark.parametrize("batch", [1, 4])
def test_a_decoding_step_is_captured(batch: int) -> None:
    """The cache that it writes is no reason to skip the graph, and each replay reads the newest."""
    torch._dynamo.reset()
    counters.clear()
    model = Decoder(batch, 64, 40).to("cuda", torch.bfloat16)
    keys = model.keys
    keys.of, keys.at = keys.of.to("cuda", torch.bfloat16).normal_(), keys.at.cuda()
    torch._dynamo.mark_static_address(keys.of)
    torch._dynamo.mark_static_address(keys.at)
    fast = torch.compile(model, backend="fusepass", mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(6):
            x = torch.randn(batch, 1, WIDTH, device="cuda", dtype=torch.bfloat16)
            torch.compiler.cudagraph_mark_step_begin()
            ours = fast(x).clone()
            written = keys.of.clone()
            _close(ours, model(x))
            _close(written, keys.of)
            assert int(keys.at) == 40
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert fused() >= 3


def _capture(run: Any, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)
    return graph, out


def _warm(run: Any, x: Tensor) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(x)
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_manual_capture_and_replay_with_new_inputs(dtype: torch.dtype) -> None:
    model = block(WIDTH, HIDDEN).to("cuda", dtype)
    fast = compiled(model)
    x = torch.randn(ROWS, WIDTH, device="cuda", dtype=dtype)
    with torch.no_grad():
        _warm(fast, x)
        graph, out = _capture(fast, x)
        for _ in range(4):
            x.copy_(torch.randn_like(x))
            out.fill_(float("nan"))
            graph.replay()
            _close(out, model(x))
    assert fused() == 1


def test_what_a_replay_writes_lies_in_its_own_memory() -> None:
    """Workspace of a captured call must not be handed to anyone else while the graph lives."""
    model = block(WIDTH, HIDDEN).to("cuda")  # float32: the kind that needs most workspace
    fast = compiled(model)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    with torch.no_grad():
        _warm(fast, x)
        graph, out = _capture(fast, x)
        expected = model(x)
        torch.cuda.empty_cache()
        others = [torch.full((1 << 20,), 7.0, device="cuda") for _ in range(64)]
        # Eager calls of the op use workspace of their own between replays.
        for _ in range(3):
            graph.replay()
            fast(x + 1)
        graph.replay()
        _close(out, expected)
    assert all(bool((other == 7.0).all()) for other in others)


def test_two_graphs_on_two_streams() -> None:
    model = block(WIDTH, HIDDEN).to("cuda")
    fast = compiled(model)
    inputs = [torch.randn(ROWS, WIDTH, device="cuda") for _ in range(2)]
    with torch.no_grad():
        _warm(fast, inputs[0])
        captured = [_capture(fast, x) for x in inputs]
        streams = [torch.cuda.Stream() for _ in inputs]
        torch.cuda.synchronize()
        for _ in range(20):
            for stream, (graph, _) in zip(streams, captured, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
        torch.cuda.synchronize()
        for x, (_, out) in zip(inputs, captured, strict=True):
            _close(out, model(x))


@pytest.mark.usefixtures("no_sync")
def test_a_warm_call_never_waits_for_the_device() -> None:
    torch.cuda.set_sync_debug_mode("default")  # making the model and compiling it may
    scale = torch.nn.Parameter(torch.tensor(0.5, device="cuda"))
    model = Mlp(WIDTH, HIDDEN, scale).to("cuda")
    fast = compiled(model)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    with torch.no_grad():
        _warm(fast, x)
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            fast(x)
    assert fused() == 1


def test_nothing_is_planned_or_built_inside_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    import fusepass.kernels.library as library
    import fusepass.op.linear  # noqa: F401

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("called inside a capture")

    op = torch.ops.fusepass.linear.default
    weight = torch.randn(408, 312, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(200, 312, device="cuda", dtype=torch.bfloat16)
    known = torch.randn(8, 312, device="cuda", dtype=torch.bfloat16)
    op(known, weight, None, "mul(0.5) gelu", [])  # the binding is loaded; x's shape is new
    torch.nn.functional.linear(x, weight)  # and so is cuBLAS
    torch.cuda.synchronize()
    with monkeypatch.context() as patched:
        patched.setattr(library, "plan_for", forbidden)
        graph, out = _capture(lambda v: op(v, weight, None, "mul(0.5) gelu", []), x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    _close(out, torch.nn.functional.gelu(torch.nn.functional.linear(x, weight) * 0.5))
    # Outside of a capture the same shape gets its kernel after all, and agrees.
    _close(op(x, weight, None, "mul(0.5) gelu", []), out)
