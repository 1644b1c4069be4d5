"""Whole decoding steps of unmodified language models, random weights, in CUDA graphs.

    python benchmarks/decoding.py [--models llama gpt2] [--batches 1 16] [--peers inductor fusepass]
                                  [--profile] [--out results.json]

One token for each sequence of a batch, near the end of a transformers.StaticCache of 1,024 that is
filled with random keys and values, through the layers and the head; bfloat16. The step takes back
the place by which the model moves the cache on, so that all steps are the same one. Peers are
``mode="reduce-overhead"``, compiled in one process, timed in turn; the ratio of the medians is what
counts. ``graph_skips`` are graphs that torch did not capture: with any, the times are the host's.

``floor_ms`` is what reading the weights and the filled cache once takes at a copy's bandwidth; what
attention copies and multiplies besides is the same for all peers. A step begins on an idle device:
``host_ms``, until the call returns, is torch's way to the graph's launch, and part of the step.
``--cached``, ``--seconds`` and ``--profile`` are those of models.py. ``--small`` has models of two
narrow layers, for a machine without a GPU: ``--small --device cpu``.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from kinds import by_kind
from models import Peers, measure
from rows import add_arguments, tell
from torch import Tensor, nn
from torch._dynamo.utils import counters
from zoo import GPT2, LLAMA

PEERS = ("inductor", "fusepass")
_DTYPE = torch.bfloat16
_LENGTH, _PLACE = 1024, 1000  # of the cache, and where the step writes
_BANDWIDTH = 4.3e12  # bytes a second of a copy on an H200, read and written
_SMALL_CACHE = 32, 24

_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
_LLAMA = {**LLAMA, "num_hidden_layers": 16, "head_dim": 64, "vocab_size": 128256,
          "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_parameters": _ROPE,
          "tie_word_embeddings": True}  # fmt: skip
_SMALL_LLAMA = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
                "vocab_size": 512}  # fmt: skip
_SMALL_GPT2 = {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 512}


@dataclass(frozen=True)
class Decoder:
    """A model of transformers: its name, its configuration's class, settings, and small ones."""

    text: str
    config: str
    settings: Mapping[str, Any]
    small: Mapping[str, Any] = field(default_factory=dict)

    def make(self, batch: int, device: str, small: bool) -> tuple[nn.Module, Tensor, int]:
        """A step, the tokens it takes, [batch, 1], and the bytes that it has to read."""
        import transformers

        settings = {**self.settings, **(self.small if small else {})}
        config = getattr(transformers, self.config)(**settings)
        length, place = _SMALL_CACHE if small else (_LENGTH, _PLACE)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=_DTYPE).eval()
            tokens = torch.randint(0, config.vocab_size, (batch, 1))
        cache = transformers.StaticCache(config=config, max_cache_len=length)
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        heads = getattr(config, "num_key_value_heads", None) or heads
        cache.early_initialization(batch, heads, width, _DTYPE, torch.device(device))
        read = sum(p.nbytes for p in model.parameters())
        for layer in cache.layers:
            layer.keys.normal_()
            layer.values.normal_()
            layer.cumulative_length.fill_(place)
            read += (layer.keys.nbytes + layer.values.nbytes) * place // length
        return Step(model, cache), tokens, read


MODELS = {
    "llama": Decoder("Llama-3.2-1B", "LlamaConfig", _LLAMA, _SMALL_LLAMA),
    "gpt2": Decoder("GPT-2 medium", "GPT2Config", GPT2, _SMALL_GPT2),
}


class Step(nn.Module):
    """The next token's logits, [batch, 1, vocabulary], at the same place of the cache each time."""

    def __init__(self, model: nn.Module, cache: Any) -> None:
        super().__init__()
        self.model, self.cache = model, cache
        names = inspect.signature(model.forward).parameters
        self.name = "cache" if "cache" in names else "past_key_values"  # newer, and older

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.model(tokens, use_cache=True, **{self.name: self.cache}).logits
        for layer in self.cache.layers:
            layer.cumulative_length.sub_(tokens.shape[1])
        return logits


def _called(compiled: Any, tokens: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            torch.compiler.cudagraph_mark_step_begin()  # what the last one returned may go
            return compiled(tokens)

    return call


def prepare(
    decoder: Decoder, batch: int, peers: Sequence[str], device: str, small: bool = False
) -> Peers:
    """Compiles a step for each peer and compares the logits of the graphs' replays."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    step, tokens, read = decoder.make(batch, device, small)
    row: dict[str, Any] = {"model": decoder.text, "batch": batch, "dtype": "bfloat16"}
    row |= {"read_mb": round(read / 2**20, 1), "floor_ms": round(read / _BANDWIDTH * 1e3, 4)}
    calls, logits = {}, {}
    for peer in peers:
        compiled = torch.compile(step, backend=peer, mode="reduce-overhead", dynamic=False)
        calls[peer] = _called(compiled, tokens)
        start = time.perf_counter()
        calls[peer]()
        row[f"{peer}_compile_s"] = round(time.perf_counter() - start, 1)
        calls[peer]()  # captures
        logits[peer] = calls[peer]().double().cpu()
    row["graph_skips"] = counters["inductor"]["cudagraph_skips"]
    row |= {kind: counters["fusepass"][kind] for kind in ("fused", "gemms") if counters["fusepass"]}
    row["finite"] = all(bool(v.isfinite().all()) for v in logits.values())
    if set(PEERS) <= set(peers):
        difference = logits["fusepass"] - logits["inductor"]
        row["difference"] = float(difference.norm() / logits["inductor"].norm())
    return Peers(calls, row)


def host_ms(call: Callable[[], Any]) -> float:
    """Milliseconds from an idle device until a call returns, the median of thirty."""
    took = []
    for _ in range(30):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return round(statistics.median(took) * 1e3, 4)


def run(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """One model's row; a model that fails is a row that says so, and the others go on."""
    start = time.perf_counter()
    try:
        peers = prepare(MODELS[name], batch, options.peers, options.device, options.small)
        row = measure(peers, options.seconds, options.device) if options.seconds else peers.row
        if options.seconds and options.device == "cuda":
            row |= {f"{peer}_host_ms": host_ms(call) for peer, call in peers.calls.items()}
        if options.profile:
            row["profile"] = {peer: by_kind(call) for peer, call in peers.calls.items()}
    except Exception as error:
        traceback.print_exc()
        row = {"model": MODELS[name].text, "batch": batch, "failed": repr(error)[:400]}
    row["took_s"] = round(time.perf_counter() - start, 1)
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--small", action="store_true", help="two narrow layers")
    add_arguments(parser)
    options = parser.parse_args(argv)
    steps = itertools.product(options.models, options.batches)
    tell((run(name, batch, options) for name, batch in steps), options)


if __name__ == "__main__":
    main()
