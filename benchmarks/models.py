"""Whole unmodified models, random weights: backend="fusepass" against Inductor and eager.

    python benchmarks/models.py [--models vit_b vit_l gpt2] [--dtype bfloat16|float32] [--train]
                                [--peers inductor fusepass eager] [--out results.json]
    python benchmarks/models.py --modes reduce-overhead max-autotune-no-cudagraphs

All peers are compiled in one process and timed in turn, round by round, with device events; the
ratio of the medians is what counts: fusepass against the best of the others. bfloat16: weights,
activations and gradients are bf16, without autocast. float32: at torch's default precision,
"highest". A training step is forward, loss (the mean of the squared output), backward and a fused
AdamW step, with a learning rate of 0: all peers train the same parameters, which must not drift
apart. The peak is the allocator's over one call, beyond what parameters and optimizer hold.

Every compile is a whole one, whose time is told. With ``--cached`` torch's caches are used: a run
with ``--seconds 0`` fills them, several such runs at once, and a later one measures without
compiling; what was not compiled anew counts no sites.

``--modes``: "reduce-overhead" is of both, and has them in CUDA graphs; of the other, which has
Inductor time every product by each of its kernels, fusepass remains as it is.
"""

from __future__ import annotations

import argparse
import itertools
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from kinds import by_kind
from rows import add_arguments, tell
from torch._dynamo.utils import counters
from zoo import MODELS

from fusepass.cli.timing import interleaved

PEERS = ("inductor", "fusepass", "eager")
# torch.compile's, and whose they are.
MODES = {"reduce-overhead": ("inductor", "fusepass"), "max-autotune-no-cudagraphs": ("inductor",)}


def _output(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else value[0]


@dataclass(frozen=True)
class Peers:
    """One model, compiled by each peer.

    Attributes:
        calls: peer -> one inference or one training step.
        row: what is known of them so far.
    """

    calls: dict[str, Callable[[], Any]]
    row: dict[str, Any]


def compile_for(model: torch.nn.Module, peer: str, mode: str | None = None) -> Any:
    """``model`` as ``peer`` runs it, in ``mode`` if that is the peer's."""
    if peer == "eager":
        return model
    mine = mode is not None and peer in MODES[mode]
    return torch.compile(model, backend=peer, mode=mode if mine else None)


def prepare(
    name: str,
    dtype: str,
    train: bool,
    names: Sequence[str],
    device: str,
    mode: str | None = None,
    batch: int | None = None,
) -> Peers:
    """Compiles one model for each peer and compares what their first calls return."""
    entry = MODELS[name]
    batch = batch or entry.batches[dtype, train]
    torch.manual_seed(0)
    with torch.device(device):  # where a billion random numbers take no time
        model, args, kwargs = entry.make(batch)
    model = model.to(device, getattr(torch, dtype)).train(train)
    args = tuple(
        v.to(device, getattr(torch, dtype) if v.is_floating_point() else v.dtype) for v in args
    )
    row: dict[str, Any] = {
        "model": entry.text.format(batch),
        "dtype": dtype,
        "pass": "training step" if train else "inference",
    }
    row |= {"mode": mode} if mode else {}
    calls, outputs = {}, {}
    torch._dynamo.reset()
    counters.clear()
    for peer in names:
        compiled = compile_for(model, peer, mode)
        calls[peer] = (_step if train else _infer)(compiled, model, args, kwargs)
        start = time.perf_counter()
        outputs[peer] = calls[peer]().double().cpu()
        row[f"{peer}_compile_s"] = round(time.perf_counter() - start, 1)
        row[f"{peer}_peak_mb"] = _peak(calls[peer], device)
    row |= {kind: counters["fusepass"][kind] for kind in ("fused", "gemms") if counters["fusepass"]}
    if {"fusepass", "inductor"} <= set(names):
        difference = outputs["fusepass"] - outputs["inductor"]
        row["difference"] = float(difference.norm() / outputs["inductor"].norm())
    return Peers(calls, row)


def _peak(call: Callable[[], Any], device: str) -> float | None:
    """MiB that one call takes beyond what is there before it."""
    if device != "cuda":
        return None
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def measure(peers: Peers, seconds: float, device: str = "cuda") -> dict[str, Any]:
    """Times what was prepared; returns a row of the results file."""
    row = dict(peers.row)
    times = interleaved(peers.calls, device, seconds)
    for peer, timing in times.items():
        row[f"{peer}_ms"] = round(timing.median, 4)
        row[f"{peer}_spread"] = round(timing.spread, 4)
    others = [t.median for peer, t in times.items() if peer != "fusepass"]
    if others and "fusepass" in times:
        row["speedup"] = round(min(others) / times["fusepass"].median, 4)
    return row


def _infer(
    compiled: Any, model: torch.nn.Module, args: Any, kwargs: Any
) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.no_grad():
            torch.compiler.cudagraph_mark_step_begin()  # what the last one returned may go
            return _output(compiled(*args, **kwargs))

    return call


def _step(
    compiled: Any, model: torch.nn.Module, args: Any, kwargs: Any
) -> Callable[[], torch.Tensor]:
    fused = next(model.parameters()).device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=fused)

    def call() -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        out = _output(compiled(*args, **kwargs))
        out.float().square().mean().backward()
        optimizer.step()
        return out.detach()

    return call


def run(name: str, mode: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """One model's row; a model that fails is a row that says so, and the others go on."""
    start = time.perf_counter()
    try:
        what = (name, options.dtype, options.train, options.peers)
        peers = prepare(*what, options.device, mode, options.batch)
        row = measure(peers, options.seconds, options.device) if options.seconds else peers.row
        if options.profile:
            row["profile"] = {peer: by_kind(call) for peer, call in peers.calls.items()}
    except Exception as error:
        traceback.print_exc()
        row = {"model": MODELS[name].text, "dtype": options.dtype, "failed": repr(error)[:400]}
    row["took_s"] = round(time.perf_counter() - start, 1)
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["inductor", "fusepass"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[None])
    parser.add_argument("--batch", type=int, help="instead of each model's own")
    add_arguments(parser)
    options = parser.parse_args(argv)
    names = [n for n in options.models if (options.dtype, options.train) in MODELS[n].batches]
    tell((run(*what, options) for what in itertools.product(names, options.modes)), options)


if __name__ == "__main__":
    main()
