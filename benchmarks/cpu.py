"""Models on the CPU: compiled by fusepass over compiled by Inductor, which must not be the faster.

    python benchmarks/cpu.py [--dtype bfloat16] [--threads 1 --clock thread] [--out results.json]

One process, inference, random weights; the two take turns, each round starting with the other. Told
are the median of the rounds' ratios, Inductor's time over fusepass's, and their middle half. Where
other programs run, `--threads 1 --clock thread` counts the thread's own time on the processor.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusepass.report import collect

BATCH, WIDTH = 256, 1024
_CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time}


class Demo(nn.Module):
    """The demo, which is KernelBench 2/53: Gemm, scaling, Hardtanh, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.gemm = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.hardtanh(self.gemm(x) * 0.5, -2, 2))


class MultiplyLeakyRelu(Demo):
    """KernelBench 2/12: Gemm, multiply, LeakyReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.gemm(x) * 2.0, 0.1)


class DivideSumScale(nn.Module):
    """KernelBench 2/14: Gemm, divide, sum, scaling."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.matmul(x, self.weight.T) / 2).sum(1, keepdim=True) * 1.5


class ScaleResidual(Demo):
    """KernelBench 2/40: Matmul, scaling, residual add."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.gemm(x)
        return x * 0.5 + x.clone().detach()


class ScaleAndBoth(Demo):
    """A scaled Linear whose own result is wanted, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z = self.gemm(x)
        return z * 0.5, z


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended, self.up, self.down = (
            nn.Linear(*sizes) for sizes in ((width, width), (width, 4 * width), (4 * width, width))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        heads = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(*(h.transpose(1, 2) for h in heads))
        x = self.norms[0](x + self.attended(mixed.transpose(1, 2).flatten(2)))
        return self.norms[1](x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]


class Encoder(nn.Sequential):
    """Two layers like BERT's, post-norm, 128 tokens."""

    def __init__(self) -> None:
        super().__init__(*(_Layer(768, 12) for _ in range(2)))


MODELS = (Demo, MultiplyLeakyRelu, DivideSumScale, ScaleResidual, ScaleAndBoth, Encoder)


def measure(
    kind: type[nn.Module], dtype: torch.dtype, clock: str, seconds: float
) -> dict[str, Any]:
    """One row: both compiled, then timed in turns for ``seconds``."""
    model = kind().to(dtype).eval()
    x = torch.randn((1, 128, 768) if kind is Encoder else (BATCH, WIDTH), dtype=dtype)
    calls: dict[str, Callable[[Tensor], Any]] = {}
    with torch.no_grad(), collect() as gathered:
        torch._dynamo.reset()
        for backend in ("inductor", "fusepass"):
            calls[backend] = torch.compile(copy.deepcopy(model), backend=backend)
        for _ in range(3):
            for compiled in calls.values():
                compiled(x)
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
        times = _in_turns(calls, x, clock, seconds)
    ratios = [a / b for a, b in zip(times["inductor"], times["fusepass"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "model": kind.__name__,
        "dtype": str(dtype).removeprefix("torch."),
        "sites": len(gathered.report().sites),
        "inductor_ms": statistics.median(times["inductor"]) * 1e3,
        "fusepass_ms": statistics.median(times["fusepass"]) * 1e3,
        "ratio": middle,
        "middle_half": [low, high],
        "rounds": len(ratios),
        "threads": torch.get_num_threads(),
        "clock": clock,
    }


def _in_turns(
    calls: dict[str, Callable[[Tensor], Any]], x: Tensor, clock: str, seconds: float
) -> dict[str, list[float]]:
    now, names = _CLOCKS[clock], list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[names[0]]) < 20:
        names.reverse()
        for name in names:
            start = now()
            for _ in range(2):
                calls[name](x)
            times[name].append((now() - start) / 2)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=_CLOCKS)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows.uncached()
    told = []
    for kind in MODELS:
        dtype = getattr(torch, arguments.dtype)
        told.append(measure(kind, dtype, arguments.clock, arguments.seconds))
        row, (low, high) = told[-1], told[-1]["middle_half"]
        times = f"{row['inductor_ms']:9.3f} {row['fusepass_ms']:9.3f}"
        print(
            f"{row['model']:18} {row['sites']} sites {times} ms  {row['ratio']:.3f}x"
            f"  [{low:.3f}, {high:.3f}]  {row['rounds']} rounds",
            flush=True,
        )
        rows.write(arguments.out, "cpu", told, None)


if __name__ == "__main__":
    main()
