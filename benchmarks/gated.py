"""Gated MLPs on a GPU: act(x Wg^T) * (x Wu^T) in one kernel, beside the GEMM over both weights.

    python benchmarks/gated.py --out results/gated.json

Protocol and inputs are those of linear.py; the two weights are the halves of one of [2N, K], which
the bare GEMM multiplies by at once. "with z" keeps both products, as training does.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from beside_bare import head
from linear_cases import Shape, floor_seconds, parse_shape
from linear_peers import capture, check, make_inputs, time_graphs
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

F = torch.nn.functional
# M, K and the columns of each weight.
SHAPES: list[Shape] = [
    (8192, 896, 4864), (8192, 4096, 14336), (16384, 768, 2048), (4096, 2048, 8192),
    (2048, 4096, 11008), (1024, 2048, 5632), (512, 1536, 8960),
]  # fmt: skip
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "swiglu": (F.silu, "silu mul(z1)"),
    "geglu": (F.gelu, "gelu mul(z1)"),
    "geglu-tanh": (lambda z: F.gelu(z, approximate="tanh"), "gelu_tanh mul(z1)"),
}
BARE = "F.linear"
_REPLAY_SECONDS = 2e-3  # a replay is at least about so long


def peers(name: str, n: int) -> dict[str, Callable[..., Any]]:
    """Functions of (x, w, b) by their names, w [2N, K]; the bias is not added."""
    activation, text = ACTIVATIONS[name]
    gemm = torch.ops.fusepass.gemm

    def joined(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return activation(F.linear(x, w[:n])) * F.linear(x, w[n:])

    def op(text: str) -> Callable[..., Any]:
        return lambda x, w, b: tuple(gemm(x, [w[:n], w[n:]], [None, None], text, []))

    return {
        BARE: lambda x, w, b: F.linear(x, w),
        "inductor": torch.compile(joined, backend="inductor", dynamic=False),
        "fusepass": op(text),
        "fusepass with z": op(f"{text}, z, z1"),
    }


def measure(name: str, shape: Shape, options: argparse.Namespace, stream: Any) -> dict[str, Any]:
    """Times every peer at one shape."""
    m, k, n = shape
    torch._dynamo.reset()
    kind = options.dtype
    inputs = make_inputs((m, k, 2 * n), getattr(torch, options.dtype), "cuda")
    wanted = _REPLAY_SECONDS / (1.4 * floor_seconds((m, k, 2 * n), kind))
    repeats = math.ceil(wanted / len(inputs)) * len(inputs)
    calls = peers(name, n)
    x, w, b = inputs[0]
    exact = ACTIVATIONS[name][0](F.linear(x, w[:n])).float() * F.linear(x, w[n:]).float()
    for peer, call in calls.items():
        if peer != BARE:
            check(call(x, w, b), exact, 2e-2)
    graphs = {peer: capture(call, inputs, repeats, stream) for peer, call in calls.items()}
    times = time_graphs(graphs, options.seconds)
    ms = {peer: round(t.median / repeats, 6) for peer, t in times.items()}
    ratios = {peer: round(t / ms[BARE], 4) for peer, t in ms.items()}
    return {
        "m": m,
        "k": k,
        "n": n,
        "activation": name,
        "ms": ms,
        "ratio": ratios,
        "plan": plan(name, shape, options),
    }


def plan(name: str, shape: Shape, options: argparse.Namespace) -> str:
    """The configuration that the plan chooses; "" where several kernels run."""
    from fusepass.kernels.plan.gated import choose

    m, k, n = shape
    return str(choose(m, n, k, num_sms=torch.cuda.get_device_properties(0).multi_processor_count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--activations", nargs="+", default=list(ACTIVATIONS))
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=SHAPES)
    parser.add_argument("--seconds", type=float, default=1.0, help="of rounds, a shape")
    parser.add_argument("--commit", help="what is measured, where git does not know")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begin = {**head(options.commit), "dtype": options.dtype}
    stream, rows = torch.cuda.Stream(), []
    for name in options.activations:
        for shape in options.shapes:
            row = measure(name, shape, options, stream)
            rows.append(row)
            ratios = ", ".join(f"{p} {r:.3f}" for p, r in row["ratio"].items() if p != BARE)
            where = f"{name} {shape[0]}x{shape[1]}->2*{shape[2]}"
            print(f"{where}: {row['ms'][BARE]:.4f} ms; {ratios}; {row['plan']}", flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps({**begin, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
