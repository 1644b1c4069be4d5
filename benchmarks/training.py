"""Training steps, bf16, random weights: backend="fusepass" against backend="inductor".

    python benchmarks/training.py [--cases block bert] [--planning] [--out results.json]

Forward, loss and backward without an optimizer. Both peers are compiled in one process and timed
in turn, round by round, with device events; the ratio of the medians is what counts. A round is as
many steps as take 5 ms, ten at most: as in a training loop, the host prepares one step while the
device runs the one before, and no peer runs for so long that a chip at its power limit would set a
clock of its own for it. Then the same steps, captured in a CUDA graph, are replayed: what the
device takes when it never waits for the host. Last, each peer's graph is replayed by itself for a
while ("alone"), beside the clock and the power that nvidia-smi tells: what is left of the lead
where the power limit, not time, is what a peer has to spend. The peaks are those of the allocator
over one step, parameters not counted.
``--planning`` measures what a call of the op costs the host when every call has another batch size,
all of them seen before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from power import Meter
from rows import uncached, write
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from fusepass.cli.timing import interleaved
from fusepass.examples.gemm_scaling_hardtanh_gelu import Model

ROUND_MS, MOST_STEPS = 5.0, 10  # of a round


class BertLayer(nn.Module):
    """BERT's encoder layer: post-norm, erf GELU; [batch, length, width] to the same."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.proj(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


@dataclass(frozen=True)
class Case:
    """One model, the shape of its input, the forward's sites, and whether x wants a gradient."""

    text: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: int
    inner: bool = False


def _bert(layers: int) -> nn.Module:
    return nn.Sequential(*(BertLayer(1024, 16, 4096) for _ in range(layers)))


CASES: dict[str, Case] = {
    "block": Case(
        "Linear-scale-clamp-GELU, 16384x1024->4096",
        lambda: Model(1024, 4096, 0.5, -2, 2),
        (16384, 1024),
        1,
    ),
    "block-inner": Case(
        "Linear-scale-clamp-GELU, 16384x1024->4096, with the input's gradient",
        lambda: Model(1024, 4096, 0.5, -2, 2),
        (16384, 1024),
        1,
        inner=True,
    ),
    "mlp": Case(
        "Linear-GELU-Linear, 16384x1024->4096->1024",
        lambda: nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)),
        (16384, 1024),
        1,
    ),
    "bert": Case("BERT-large, 6 layers, 32x512", lambda: _bert(6), (32, 512, 1024), 6),
    "bert-short": Case("BERT-large, 6 layers, 64x128", lambda: _bert(6), (64, 128, 1024), 6),
    "tiny": Case(
        "BERT layer of width 64, for a dry run", lambda: BertLayer(64, 2, 256), (2, 8, 64), 1
    ),
}


def _step(run: Any, model: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        model.zero_grad(set_to_none=True)
        x.grad = None
        out: Tensor = run(x)
        out.backward(grad)
        return out.detach()

    return call


def _loop(step: Callable[[], Any], steps: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(steps):
            step()

    return call


def _replayed(step: Callable[[], Any], steps: int) -> Callable[[], None]:
    """A loop's steps as one CUDA graph."""
    loop, graph, stream = _loop(step, steps), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # autograd accumulates on the stream on which it first did
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        loop()
    return graph.replay


def _time(
    row: dict[str, Any],
    what: str,
    peers: dict[str, Callable[[], Any]],
    device: str,
    seconds: float,
) -> None:
    """Adds to ``row`` each peer's time of a step, of ``row["steps"]`` in a round, and the lead."""
    timings = interleaved(peers, device, seconds)
    for backend, timing in timings.items():
        row[f"{backend}_{what}ms"] = round(timing.median / row["steps"], 4)
        row[f"{backend}_{what}spread"] = round(timing.spread, 4)
    lead = timings["inductor"].median / timings["fusepass"].median
    row[f"{what}speedup"] = round(lead, 4)


def _alone(row: dict[str, Any], replays: dict[str, Callable[[], Any]], seconds: float) -> None:
    """Adds to ``row`` each peer's time when it runs by itself, with its clock and power."""
    for backend, replay in replays.items():
        with Meter() as meter:
            timing = interleaved({backend: replay}, "cuda", seconds)[backend]
        row[f"{backend}_alone_ms"] = round(timing.median / row["steps"], 4)
        row[f"{backend}_alone_mhz"], row[f"{backend}_alone_watts"] = meter.means()
    lead = row["inductor_alone_ms"] / row["fusepass_alone_ms"]
    row["alone_speedup"] = round(lead, 4)


def _peak(call: Callable[[], Tensor], device: str) -> float | None:
    """MiB above what was there before, in one step."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def measure(case: Case, device: str, seconds: float) -> dict[str, Any]:
    """Times one case; returns a row of the results file."""
    torch.manual_seed(0)
    model = case.make().to(device, torch.bfloat16)
    x = torch.randn(case.shape, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        grad = torch.randn_like(model(x))
    x.requires_grad_(case.inner)
    row: dict[str, Any] = {"case": case.text}
    peers: dict[str, Callable[[], Tensor]] = {}
    forwards: dict[str, Callable[[], Any]] = {}
    gradients = {}
    torch._dynamo.reset()
    counters.clear()
    for backend in ("inductor", "fusepass"):
        run = torch.compile(model, backend=backend)
        call = peers[backend] = _step(run, model, x, grad)
        forwards[backend] = partial(run, x)
        start = time.perf_counter()
        call()
        row[f"{backend}_compile_s"] = round(time.perf_counter() - start, 1)
        gradients[backend] = _gradients(model)
        model.zero_grad(set_to_none=True)
        row[f"{backend}_peak_mib"] = _peak(call, device)
    row["fused"] = counters["fusepass"]["fused"]
    if row["fused"] < case.sites:
        raise SystemExit(f"{case.text}: {row['fused']} sites fused, {case.sites} at least expected")
    difference = gradients["fusepass"] - gradients["inductor"]
    row["gradient_difference"] = float(difference.norm() / gradients["inductor"].norm())
    step_ms = interleaved({"": peers["inductor"]}, device, 0.0)[""].median
    row["steps"] = steps = max(1, min(MOST_STEPS, round(ROUND_MS / step_ms)))
    _time(row, "", {k: _loop(v, steps) for k, v in peers.items()}, device, seconds)
    # With all that the backward needs.
    _time(row, "forward_", {k: _loop(v, steps) for k, v in forwards.items()}, device, seconds / 2)
    if device == "cuda":
        try:
            graphs = {k: _replayed(v, steps) for k, v in peers.items()}
            _time(row, "replay_", graphs, device, seconds / 2)
            _alone(row, graphs, seconds / 2)
        except RuntimeError as error:  # what was measured before stays
            row["replay_failed"] = str(error).splitlines()[0]
    return row


def planning(device: str) -> dict[str, Any]:
    """Host microseconds a call: one batch size, and a hundred in turn that were all seen before."""
    import fusepass.op.linear  # noqa: F401

    op = torch.ops.fusepass.linear.default
    weight = torch.randn(64, 64, device=device, dtype=torch.bfloat16)
    inputs = [torch.randn(n, 64, device=device, dtype=torch.bfloat16) for n in range(8, 108)]

    def pass_over(batches: list[Tensor]) -> float:
        start = time.perf_counter()
        for x in batches:
            op(x, weight, None, "mul(0.5) gelu", [])
        elapsed = time.perf_counter() - start
        if device == "cuda":
            torch.cuda.synchronize()  # an empty queue for the next pass: only the host is timed
        return elapsed / len(batches) * 1e6

    with torch.no_grad():
        pass_over(inputs)
        same, changing = [], []
        for _ in range(50):
            same.append(pass_over([inputs[0]] * len(inputs)))
            changing.append(pass_over(inputs))
    one, many = statistics.median(same), statistics.median(changing)
    return {
        "case": "host time of a call",
        "one_size_us": round(one, 2),
        "hundred_sizes_us": round(many, 2),
        "planning_us": round(many - one, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = ["block", "block-inner", "bert"]
    parser.add_argument("--cases", nargs="*", choices=CASES, default=default)
    parser.add_argument("--planning", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=3.0, help="timing per case")
    parser.add_argument("--out", type=Path, help="results as JSON, kept up to date case by case")
    parser.add_argument("--commit", help="for that file, where git does not know")
    options = parser.parse_args()
    uncached()
    rows = []
    for name in options.cases:
        rows.append(measure(CASES[name], options.device, options.seconds))
        print(json.dumps(rows[-1]), flush=True)
        write(options.out, options.device, rows, options.commit)
    if options.planning:
        rows.append(planning(options.device))
        print(json.dumps(rows[-1]), flush=True)
        write(options.out, options.device, rows, options.commit)


if __name__ == "__main__":
    main()
