"""Linear, scale, clamp, GELU on a GPU: fusepass, its peers and the bare GEMM, side by side.

    python benchmarks/linear.py --dtype bfloat16 --out results.json --picture results.svg
    python benchmarks/linear.py --grid    # a broad grid of shapes, bare GEMM and fusepass only

Every peer is a function of (x, w, b), so inputs and weights rotate through sets that together are
several times the L2 cache. Its repetitions are captured in a CUDA graph, because the host is slower
than a short kernel; what is timed is a replay, between device events, with the queue kept full. In
every round each peer is replayed once, each round starting with another, and only ratios of medians
within one run mean anything. Data is random normal, w scaled by 1/sqrt(K). Every peer's result is
held against eager's before it is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import linear_quack
import torch
from linear_cases import (
    GRID,
    PEAKS,
    TARGETS_16,
    TARGETS_32,
    Shape,
    derive,
    floor_seconds,
    parse_shape,
)
from linear_peers import EPILOGUES, capture, check, make_inputs, make_peer, time_graphs
from picture import BARE, ORDER, OURS, QUACK, draw, shape_text, table

PROTOCOL = (
    "one process; every peer takes (x, w, b), which rotate through sets, at least 200 MB together "
    "or 64 sets; repetitions captured in a CUDA graph per peer, one replay of each in every "
    "round, each round starting with another; device events, queue kept full; medians of the "
    "rounds; spread is the middle half over the median; x and b normal, w normal / sqrt(K)"
)
# How far a right result may be from eager's, relative Frobenius, and gemm.h's number of the kind.
TOLERANCE = {"bfloat16": 2e-2, "float16": 4e-3, "float32 high": 4e-3, "float32 highest": 1e-5}
PLAN_DTYPE = {"float32 highest": 0, "float16": 1, "bfloat16": 2, "float32 high": 4}

_REPLAY_SECONDS = 2e-3  # a replay is at least about so long
_MAX_REPETITIONS = 400


def measure(shape: Shape, options: argparse.Namespace, stream: Any) -> dict[str, Any]:
    """Times every peer at one shape; a peer that fails is named in row["failed"]."""
    m, k, n = shape
    torch._dynamo.reset()
    gc.collect()
    inputs = make_inputs(shape, getattr(torch, options.dtype), "cuda")
    wanted = _REPLAY_SECONDS / (1.4 * floor_seconds(shape, options.kind))
    repeats = math.ceil(min(wanted, _MAX_REPETITIONS) / len(inputs)) * len(inputs)
    exact = EPILOGUES[options.epilogue][0](*inputs[0]).float()
    graphs, distances, failed = {}, {}, {}
    first_call = {}
    for name in options.peers:
        try:
            call = make_peer(name, options.epilogue, options.grid)
            start = time.perf_counter()
            out = call(*inputs[0])
            torch.cuda.synchronize()
            first_call[name] = round(time.perf_counter() - start, 2)
            if name != BARE:
                distances[name] = check(out, exact, TOLERANCE[options.kind])
            graphs[name] = capture(call, inputs, repeats, stream)
        except Exception as error:  # a peer that fails is a cell of the table, whatever it raised
            failed[name] = first_line(error)
    del exact
    times = time_graphs(graphs, options.seconds) if graphs else {}
    row = {
        **{"m": m, "k": k, "n": n, "plan": plan(shape, options)},
        **{"sets": len(inputs), "repetitions": repeats},
        "ms": {p: round(t.median / repeats, 6) for p, t in times.items()},
        "spread": {p: round(t.spread, 4) for p, t in times.items()},
        "rounds": max((len(t.rounds) for t in times.values()), default=0),
        **{"distance_from_eager": distances, "failed": failed, "first_call_seconds": first_call},
    }
    return derive(row, options.kind)


def plan(shape: Shape, options: argparse.Namespace, with_preact: bool = False) -> str:
    """The configuration that fusepass runs, built; "hybrid" where there is no kernel for it."""
    from fusepass.kernels import plan_kernel

    m, k, n = shape
    epilogue = EPILOGUES[options.epilogue][1]
    dtype = PLAN_DTYPE[options.kind]
    return plan_kernel(epilogue, dtype, m, n, k, False, with_preact, 0).split("|")[0]


def first_line(error: Exception) -> str:
    """What fits into a table."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def prebuild(shapes: Sequence[Shape], options: argparse.Namespace) -> None:
    """Builds every kernel the shapes want, at once; what cannot be built runs as the hybrid."""
    import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

    start = time.perf_counter()
    tiny = torch.zeros(8, 8, device="cuda", dtype=getattr(torch, options.dtype))
    both = {False, "fusepass-preact" in options.peers}
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(plan, s, options, preact) for s in shapes for preact in both]
        torch.ops.fusepass.linear(tiny, tiny, None, "gelu", [], numerics="bitwise")
        for job in jobs:
            job.result()
    print(f"kernels built or found in {time.perf_counter() - start:.1f} s", flush=True)


def sweep(
    shapes: Sequence[Shape],
    measure_one: Callable[[Shape], dict[str, Any]],
    result: dict[str, Any],
    deadline: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Fills result["rows"]; survives a failing shape and stops at the deadline.

    Args:
        shapes: in order.
        measure_one: the row of a shape.
        result: gets "rows", and "stopped" if time ran out.
        deadline: of ``time.perf_counter``; no shape starts after it.
        keep: called with ``result`` after every shape.
    """
    rows = result.setdefault("rows", [])
    for done, shape in enumerate(shapes):
        if time.perf_counter() > deadline:
            result["stopped"] = f"time limit, {done} of {len(shapes)} shapes measured"
            break
        try:
            row = measure_one(shape)
        except Exception as error:  # one shape that fails must not cost the others
            row = {**dict(zip("mkn", shape, strict=True)), "error": first_line(error)}
        rows.append(row)
        ratio = row.get("ratio_to_bare", {}).get(OURS)
        print(f"{done + 1}/{len(shapes)} {shape_text(row)} {ratio or ''}", flush=True)
        keep(result)
    keep(result)


def commit() -> str | None:
    """The commit that is measured, where git knows it."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """The head of the results file."""
    import fusepass

    return {
        "machine": torch.cuda.get_device_name(),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "fusepass": fusepass.__version__,
        **({"quack": linear_quack.version()} if QUACK in options.peers else {}),
        "commit": options.commit or commit(),
        "kind": options.kind,
        "epilogue": EPILOGUES[options.epilogue][1],
        "peak_flops": PEAKS[options.kind],
        "protocol": PROTOCOL,
        "fusepass_is": "the op itself" if options.grid else 'torch.compile(backend="fusepass")',
    }


def driver() -> str | None:
    """The driver's version, where nvidia-smi tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with ``kind``, ``peers`` and ``shapes`` worked out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--precision", choices=("highest", "high"), default="highest", help="of float32")
    add("--shapes", nargs="+", default=["targets"], help="targets, grid, or MxKxN ...")
    add("--grid", action="store_true", help="the broad grid; only the bare GEMM and fusepass's op")
    add("--epilogue", choices=EPILOGUES, default="chain")
    add("--peers", nargs="+", choices=(BARE, *ORDER), help="instead of the usual ones")
    add("--autotune", action="store_true", help="also Inductor's max-autotune: compiles for long")
    add("--quack", action="store_true", help="also QuACK, where it is installed: tunes for long")
    add("--training", action="store_true", help="also training's forward, with pre-activation")
    add("--seconds", type=float, help="timing per shape: 0.6, or 0.2 in the grid")
    add("--limit", type=float, default=540, help="seconds after which no other shape starts")
    add("--commit", help="for the results file, where git does not know")
    add("--out", type=Path, help="results as JSON, kept up to date shape by shape")
    add("--picture", type=Path, help="bars of the ratios; its ending chooses the format")
    options = parser.parse_args(argv)
    options.grid = options.grid or options.shapes == ["grid"]
    options.kind = options.dtype
    if options.dtype == "float32":
        options.kind += f" {options.precision}"
    targets = TARGETS_32 if options.dtype == "float32" else TARGETS_16
    named = {"grid": GRID, "targets": GRID if options.grid else targets}
    texts = options.shapes
    options.shapes = named.get(texts[0]) or [parse_shape(text) for text in texts]
    options.seconds = options.seconds or (0.2 if options.grid else 0.6)
    options.peers = options.peers or _usual_peers(options)
    return options


def _usual_peers(options: argparse.Namespace) -> list[str]:
    if options.grid:
        return [BARE, *[QUACK] * options.quack, OURS]
    wanted = {
        "max-autotune": options.autotune,
        "cublaslt": options.epilogue == "gelu_tanh",  # the only formula it has
        QUACK: options.quack,
        "inductor-train": options.training,
        "fusepass-preact": options.training,
    }
    return [BARE, *(peer for peer in ORDER if wanted.get(peer, True))]


def main(argv: Sequence[str] | None = None) -> None:
    deadline = time.perf_counter()
    options = parse(argv)
    deadline += options.limit
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/linear.py times CUDA kernels, and there is no CUDA device")
    torch.set_float32_matmul_precision(options.precision)
    torch.manual_seed(0)

    def keep(result: dict[str, Any]) -> None:
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n")

    with torch.no_grad():
        prebuild(options.shapes, options)
        stream = torch.cuda.Stream()
        result = describe(options)
        sweep(options.shapes, lambda s: measure(s, options, stream), result, deadline, keep)
    if options.picture:
        try:
            draw(result, options.picture)
        except ValueError as error:
            print(f"no picture: {error}")
    print(table(result))


if __name__ == "__main__":
    main()
