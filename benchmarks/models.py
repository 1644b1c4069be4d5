"""Whole unmodified models, random weights, bf16: backend="fusepass" against backend="inductor".

    python benchmarks/models.py [--models vit_b vit_l gpt2] [--train] [--out results.json]

Both are compiled in one process and timed in turn, round by round, with device events; the ratio
of the medians is what counts. Weights, activations and gradients are bf16, without autocast. A
training step is forward, loss (the mean of the squared output), backward and a fused AdamW step,
with a learning rate of 0: both peers train the same parameters, which must not drift apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rows import uncached, write
from torch._dynamo.utils import counters

from fusepass.timing import interleaved


def _vit(name: str, batch: int) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    import timm

    return timm.create_model(name, pretrained=False), (torch.randn(batch, 3, 224, 224),), {}


def _gpt2(batch: int, length: int) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers

    config = transformers.GPT2Config(
        n_embd=1024, n_layer=24, n_head=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = transformers.GPT2Model(config)
    return model, (torch.randint(0, config.vocab_size, (batch, length)),), {"use_cache": False}


# name -> (how it is made, its batches in inference and in training, how it is described)
MODELS: dict[str, tuple[Callable[[int], Any], tuple[int, int], str]] = {
    "vit_b": (lambda b: _vit("vit_base_patch16_224", b), (256, 128), "ViT-B/16, batch {}"),
    "vit_l": (lambda b: _vit("vit_large_patch16_224", b), (256, 128), "ViT-L/16, batch {}"),
    "gpt2": (lambda b: _gpt2(b, 1024), (16, 16), "GPT-2 medium, {}x1024"),
}


def _output(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else value[0]


@dataclass(frozen=True)
class Peers:
    """One model, compiled by each backend.

    Attributes:
        calls: backend -> one inference or one training step.
        row: what is known of them so far.
    """

    calls: dict[str, Callable[[], Any]]
    row: dict[str, Any]


def prepare(name: str, train: bool, device: str = "cuda") -> Peers:
    """Compiles one model with each backend and compares what their first calls return."""
    make, batches, text = MODELS[name]
    batch = batches[train]
    torch.manual_seed(0)
    model, args, kwargs = make(batch)
    model = model.to(device, torch.bfloat16).train(train)
    args = tuple(v.to(device, torch.bfloat16 if v.is_floating_point() else v.dtype) for v in args)
    row: dict[str, Any] = {
        "model": text.format(batch),
        "pass": "training step" if train else "inference",
    }
    calls, outputs = {}, {}
    torch._dynamo.reset()
    counters.clear()
    for backend in ("inductor", "fusepass"):
        compiled = torch.compile(model, backend=backend)
        calls[backend] = (_step if train else _infer)(compiled, model, args, kwargs)
        start = time.perf_counter()
        outputs[backend] = calls[backend]().double().cpu()
        row[f"{backend}_compile_s"] = round(time.perf_counter() - start, 1)
    row["fused"] = counters["fusepass"]["fused"]
    difference = outputs["fusepass"] - outputs["inductor"]
    row["difference"] = float(difference.norm() / outputs["inductor"].norm())
    return Peers(calls, row)


def measure(peers: Peers, seconds: float, device: str = "cuda") -> dict[str, Any]:
    """Times what was prepared; returns a row of the results file."""
    row = dict(peers.row)
    times = interleaved(peers.calls, device, seconds)
    for backend, timing in times.items():
        row[f"{backend}_ms"] = round(timing.median, 4)
        row[f"{backend}_spread"] = round(timing.spread, 4)
    row["speedup"] = round(times["inductor"].median / times["fusepass"].median, 4)
    return row


def _infer(
    compiled: Any, model: torch.nn.Module, args: Any, kwargs: Any
) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.no_grad():
            return _output(compiled(*args, **kwargs))

    return call


def _step(
    compiled: Any, model: torch.nn.Module, args: Any, kwargs: Any
) -> Callable[[], torch.Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def call() -> torch.Tensor:
        optimizer.zero_grad()
        out = _output(compiled(*args, **kwargs))
        out.float().square().mean().backward()
        optimizer.step()
        return out.detach()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="timing per model")
    parser.add_argument("--out", type=Path, help="results as JSON, kept up to date model by model")
    parser.add_argument("--commit", help="for that file, where git does not know")
    options = parser.parse_args()
    uncached()
    rows = []
    for name in options.models:
        rows.append(measure(prepare(name, options.train), options.seconds))
        print(json.dumps(rows[-1]), flush=True)
        write(options.out, "cuda", rows, options.commit)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
