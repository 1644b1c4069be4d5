"""Host time of one call: fusepass's op beside F.linear, and what both are made of.

    python benchmarks/host.py [--out results.json]

One process, inference, bfloat16, a problem that the device finishes sooner than the host issues it.
A sample is a batch of calls by the host's clock, the device idle at its start, and short of what
the launch queue holds: the host never waits. Peers take turns, each round starting with another;
medians of the rounds, microseconds a call; spread is the middle half over the median.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from linear import commit
from torch import Tensor
from torch.nn import functional as F

from fusepass.cli.timing import Timing

CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"
Peers = dict[str, Callable[[], Any]]

_BATCH = 200  # launches; a queue holds 1024


def chain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.gelu(F.hardtanh(F.linear(x, w, b) * 0.5, -2.0, 2.0))


def make_peers(x: Tensor, w: Tensor, b: Tensor) -> Peers:
    """The calls to time; the first three are what the others are made of."""
    import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

    linear = torch.ops.fusepass.linear.default
    constant = torch.ops.fusepass.linear.constant
    with_preact = torch.ops.fusepass.linear_with_preact.default
    gemm, gemm_constant = torch.ops.fusepass.gemm.default, torch.ops.fusepass.gemm.constant
    out, residual = F.linear(x, w, b), torch.randn_like(F.linear(x, w, b))
    inductor = torch.compile(chain, backend="inductor", dynamic=False)
    fused = torch.compile(chain, backend="fusepass", dynamic=False)
    return {
        "an empty Python function": lambda: None,
        "torch.empty_like": lambda: torch.empty_like(out),
        "one launch: fill_": lambda: out.fill_(0.0),
        "F.linear": lambda: F.linear(x, w, b),
        "eager chain": lambda: chain(x, w, b),
        "fusepass.linear": lambda: linear(x, w, b, CHAIN, []),
        "fusepass.linear.constant, as compiled": lambda: constant(x, w, b, CHAIN),
        "fusepass.linear_with_preact": lambda: with_preact(x, w, b, CHAIN, []),
        "fusepass.linear, bitwise: two kernels": lambda: linear(
            x, w, b, CHAIN, [], numerics="bitwise"
        ),
        "fusepass.gemm": lambda: gemm(x, [w], [b], CHAIN, []),
        "fusepass.gemm.constant, as compiled": lambda: gemm_constant(x, [w], [b], CHAIN),
        "eager residual": lambda: F.linear(x, w, b) + residual,
        "fusepass.gemm, a residual": lambda: gemm(x, [w], [b], "add(mat0)", [residual]),
        "compiled chain, Inductor": lambda: inductor(x, w, b),
        "compiled chain, fusepass": lambda: fused(x, w, b),
    }


def measure(peers: Peers, seconds: float) -> dict[str, Timing]:
    """Microseconds of a call of each peer, one sample a round; at least five rounds."""
    names, samples = list(peers), {name: [] for name in peers}
    for call in peers.values():
        for _ in range(10):
            call()
    start, rounds = time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - start < seconds:
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            call = peers[name]
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(_BATCH):
                call()
            samples[name].append((time.perf_counter() - begin) / _BATCH * 1e6)
        rounds += 1
    return {name: Timing(tuple(times)) for name, times in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(256, 256, 256), metavar=("M", "K", "N")
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--commit", help="for that file, where git does not know")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/host.py times CUDA launches, and there is no CUDA device")
    m, k, n = options.shape
    x, w, b = (torch.randn(s, device="cuda", dtype=torch.bfloat16) for s in ((m, k), (n, k), (n,)))
    result: dict[str, Any] = {
        "machine": f"{torch.cuda.get_device_name()}, {platform.processor() or platform.machine()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": options.commit or commit(),
        "shape": f"{m}x{k}->{n} bfloat16",
        "microseconds": {},
    }
    for mode, context in (("no_grad", torch.no_grad), ("inference_mode", torch.inference_mode)):
        with context():
            times = measure(make_peers(x, w, b), options.seconds / 2)
        rows = {name: [round(t.median, 2), round(t.spread, 3)] for name, t in times.items()}
        result["microseconds"][mode] = rows
        print(f"{mode}: microseconds of a call on the host")
        for name, (median, spread) in rows.items():
            print(f"  {name:<40}{median:8.2f}  spread {spread:.3f}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
