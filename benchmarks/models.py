"""Whole unmodified models, random weights, bf16: backend="fusepass" against backend="inductor".

    python benchmarks/models.py [--models vit_b vit_l gpt2] [--train] [--out results.json]

Both are compiled in one process and timed in turn, round by round, with device events; the ratio
of the medians is what counts. Training is one forward, loss and backward, without an optimizer.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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


# name -> (how it is made, how it is described); training uses a quarter of the batch.
MODELS: dict[str, tuple[Callable[[int], Any], int, str]] = {
    "vit_b": (lambda b: _vit("vit_base_patch16_224", b), 256, "ViT-B/16, batch {}"),
    "vit_l": (lambda b: _vit("vit_large_patch16_224", b), 256, "ViT-L/16, batch {}"),
    "gpt2": (lambda b: _gpt2(b, 1024), 16, "GPT-2 medium, {}x1024"),
}


def _output(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else value[0]


def measure(name: str, train: bool, seconds: float) -> dict[str, Any]:
    """Times one model; returns a row of the results file."""
    make, batch, text = MODELS[name]
    batch = batch // 4 if train else batch
    model, args, kwargs = make(batch)
    model = model.to("cuda", torch.bfloat16).train(train)
    args = tuple(_to_cuda(v) for v in args)
    peers: dict[str, Callable[[], Any]] = {}
    row: dict[str, Any] = {
        "model": text.format(batch),
        "pass": "training" if train else "inference",
    }
    outputs = {}
    for backend in ("inductor", "fusepass"):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend)
        call = _step(compiled, model, args, kwargs) if train else _infer(compiled, args, kwargs)
        start = time.perf_counter()
        outputs[backend] = call()
        torch.cuda.synchronize()
        row[f"{backend}_compile_s"] = round(time.perf_counter() - start, 1)
        peers[backend] = call
    row["fused"] = counters["fusepass"]["fused"]
    times = interleaved(peers, "cuda", seconds)
    for backend, timing in times.items():
        row[f"{backend}_ms"] = round(timing.median, 4)
        row[f"{backend}_spread"] = round(timing.spread, 4)
    row["speedup"] = round(times["inductor"].median / times["fusepass"].median, 4)
    ours, theirs = (_output(outputs[b]).double() for b in ("fusepass", "inductor"))
    row["difference"] = float((ours - theirs).norm() / theirs.norm())
    return row


def _to_cuda(value: torch.Tensor) -> torch.Tensor:
    return value.to("cuda", torch.bfloat16 if value.is_floating_point() else value.dtype)


def _infer(compiled: Any, args: Any, kwargs: Any) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return compiled(*args, **kwargs)

    return call


def _step(compiled: Any, model: torch.nn.Module, args: Any, kwargs: Any) -> Callable[[], Any]:
    def call() -> Any:
        model.zero_grad(set_to_none=True)
        out = _output(compiled(*args, **kwargs))
        out.float().square().mean().backward()
        return out.detach()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="timing per model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # Each model's own compile would otherwise recompile for the other's leftovers.
    torch._dynamo.config.cache_size_limit = 64
    rows = []
    for name in options.models:
        counters.clear()
        rows.append(measure(name, options.train, options.seconds))
        print(json.dumps(rows[-1]), flush=True)
        torch.cuda.empty_cache()
    if options.out:
        result = {
            "machine": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "protocol": "one process, interleaved rounds, device events, medians; random weights",
            "rows": rows,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
