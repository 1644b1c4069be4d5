"""KernelBench's level 2, its problems with a Linear, whole: fusepass over Inductor.

    python benchmarks/kernelbench.py [--problems 9 12] [--dtypes bfloat16 float32] [--part 0/4]
                                     [--out results.json]

Unmodified, at the published sizes, in evaluation; inputs uniform, as they are published. Each is
compiled by each peer and timed in turn, as in models.py, whose ``--cached`` and ``--seconds`` are
here, too. "sites" are the epilogues that ``fusepass.explain`` tells.
"""

from __future__ import annotations

import argparse
import itertools
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from kernelbench_problems import PROBLEMS
from models import Peers, measure
from rows import add_arguments, tell

import fusepass

PEERS = ("inductor", "fusepass", "eager")
DTYPES = ("bfloat16", "float32")
_SMALL = (64, 96, 128)


def prepare(number: int, dtype: str, peers: Sequence[str], device: str, small: bool) -> Peers:
    """Compiles a problem for each peer, and compares what the first calls return."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    problem = PROBLEMS[number]
    with torch.device(device):
        model, x = problem.make(_SMALL if small else None)
    model, x = model.to(getattr(torch, dtype)), x.to(getattr(torch, dtype))
    rows, k, n = _SMALL if small else problem.sizes
    row: dict[str, Any] = {"problem": number, "text": problem.text, "dtype": dtype}
    row |= {"m": rows, "k": k, "n": n}
    calls, outputs = {}, {}
    with torch.no_grad():
        row["sites"] = [site.epilogue for site in fusepass.explain(model, x).sites]
    for peer in peers:
        compiled = model if peer == "eager" else torch.compile(model, backend=peer)
        calls[peer] = _called(compiled, x)
        start = time.perf_counter()
        outputs[peer] = calls[peer]().double()
        row[f"{peer}_compile_s"] = round(time.perf_counter() - start, 1)
    if {"fusepass", "inductor"} <= set(peers):
        apart = outputs["fusepass"] - outputs["inductor"]
        # Problem 9's results are all 0 at its own size.
        row["difference"] = float(apart.norm() / outputs["inductor"].norm().clamp(min=1e-30))
    return Peers(calls, row)


def _called(compiled: Any, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.no_grad():
            return compiled(x)

    return call


def run(number: int, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row; a problem that fails is a row that says so, and the others go on."""
    try:
        peers = prepare(number, dtype, options.peers, options.device, options.small)
        return measure(peers, options.seconds, options.device) if options.seconds else peers.row
    except Exception as error:
        traceback.print_exc()
        return {"problem": number, "dtype": dtype, "failed": repr(error)[:400]}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--problems", nargs="+", type=int, choices=PROBLEMS, default=list(PROBLEMS))
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    add("--peers", nargs="+", choices=PEERS, default=["inductor", "fusepass"])
    add("--part", default="0/1", help="i/n: every n-th problem from the i-th on")
    add("--small", action="store_true", help="small sizes, for a machine without a GPU")
    add_arguments(parser)
    options = parser.parse_args(argv)
    first, step = map(int, options.part.split("/"))
    some = itertools.product(options.problems[first::step], options.dtypes)
    tell((run(number, dtype, options) for number, dtype in some), options)


if __name__ == "__main__":
    main()
