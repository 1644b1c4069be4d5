"""The peers of benchmarks/linear.py, their inputs, and how they are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import linear_quack
import torch
from linear_cases import Shape
from picture import BARE, OURS, QUACK
from torch import Tensor
from torch.nn import functional as F

from fusepass.cli.timing import Timing

Call = Callable[[Tensor, Tensor, Tensor], Any]
Inputs = list[tuple[Tensor, Tensor, Tensor]]

_SETS_BYTES = 200e6  # of x and w together: four times the L2 cache
_MAX_SETS = 64
_SLEEP_CYCLES = 500_000  # the device waits while the host fills the queue


def _chain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.gelu(F.hardtanh(F.linear(x, w, b) * 0.5, -2.0, 2.0))


def _gelu(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.gelu(F.linear(x, w, b))


def _gelu_tanh(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.gelu(F.linear(x, w, b), approximate="tanh")


EPILOGUES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "none": (F.linear, ""),
    "chain": (_chain, "mul(0.5) clamp(-2.0, 2.0) gelu"),
    "gelu": (_gelu, "gelu"),
    "gelu_tanh": (_gelu_tanh, "gelu_tanh"),
}


def make_peer(name: str, epilogue: str, grid: bool) -> Call:
    """The peer as a function of (x, w, b); compiled ones compile in their first call."""
    import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

    model, text = EPILOGUES[epilogue]
    ops = torch.ops.fusepass
    if name == "inductor-train":
        return _training(torch.compile(model, backend="inductor", dynamic=False))
    if name == "max-autotune":
        return torch.compile(model, mode="max-autotune-no-cudagraphs", dynamic=False)
    if name == QUACK:
        return linear_quack.make(epilogue)
    if name == OURS and not grid:
        return _fused(torch.compile(model, backend="fusepass", dynamic=False))
    calls: dict[str, Call] = {
        BARE: F.linear,
        "eager": model,
        "inductor": torch.compile(model, backend="inductor", dynamic=False),
        "cublaslt": lambda x, w, b: torch._addmm_activation(b, x, w.t(), use_gelu=True),
        "hybrid": lambda x, w, b: ops.linear(x, w, b, text, [], numerics="bitwise"),
        OURS: lambda x, w, b: ops.linear(x, w, b, text, []),
        "fusepass-preact": lambda x, w, b: ops.linear_with_preact(x, w, b, text, []),
    }
    return calls[name]


def _training(compiled: Call) -> Call:
    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with torch.enable_grad():
            out = compiled(x, w.detach().requires_grad_(), b.detach().requires_grad_())
        return out.detach()

    return forward


def _fused(compiled: Call) -> Call:
    """``compiled``, whose first call fails if nothing was fused: it would time Inductor."""
    from torch._dynamo.utils import counters

    from fusepass.explaining.explain import without_caches

    first = True

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        nonlocal first
        if not first:
            return compiled(x, w, b)
        counters["fusepass"].clear()
        with without_caches():
            out = compiled(x, w, b)
        if not counters["fusepass"]["fused"] + counters["fusepass"]["gemms"]:
            raise RuntimeError("the backend took nothing")
        first = False
        return out

    return call


def make_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Sets of (x, w, b) to rotate through."""
    m, k, n = shape
    size = (m * k + n * k) * dtype.itemsize
    count = max(2, min(_MAX_SETS, math.ceil(_SETS_BYTES / size)))

    def draw_one() -> tuple[Tensor, Tensor, Tensor]:
        x, w, b = (torch.randn(s, device=device, dtype=dtype) for s in ((m, k), (n, k), (n,)))
        return x, w.mul_(k**-0.5), b

    return [draw_one() for _ in range(count)]


def capture(call: Call, inputs: Inputs, repetitions: int, stream: Any) -> Any:
    """A CUDA graph of so many calls, after a warm-up on the stream that captures them."""
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(2):
            call(*inputs[i % len(inputs)])
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for i in range(repetitions):
                call(*inputs[i % len(inputs)])
        finally:
            graph.capture_end()
    return graph


def time_graphs(graphs: dict[str, Any], seconds: float) -> dict[str, Timing]:
    """Milliseconds of a replay of each graph, in interleaved rounds; at least five."""
    names, samples = list(graphs), {name: [] for name in graphs}
    for graph in graphs.values():
        graph.replay()
    torch.cuda.synchronize()
    start, rounds = time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - start < seconds:
        torch.cuda._sleep(_SLEEP_CYCLES)
        events = []
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graphs[name].replay()
            end.record()
            events.append((name, begin, end))
        torch.cuda.synchronize()
        for name, begin, end in events:
            samples[name].append(begin.elapsed_time(end))
        rounds += 1
    return {name: Timing(tuple(times)) for name, times in samples.items()}


def check(out: Any, exact: Tensor, tolerance: float) -> float:
    """The relative Frobenius distance of a peer's output from eager's.

    Raises:
        RuntimeError: if it is more than rounding explains: a wrong result's time means nothing.
    """
    out = out[0] if isinstance(out, tuple) else out
    distance = float((out.float() - exact).norm() / exact.norm())
    if not distance <= tolerance:
        raise RuntimeError(f"differs from eager by {distance:.1e}")
    return distance
