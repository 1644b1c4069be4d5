"""How often training in float32 would leave the fast path: groups that are summed in float64.

    python benchmarks/float32_paths.py [--steps 200] [--every 20] [--device cuda] [--json FILE]

Trains a small language model, a ViT and a physics-informed MLP (whose loss has a second derivative)
in eager float32, and asks of every `every`-th step's products, forward and backward, what the split
kernel would find in them: its rules (gemm_sm90_f32_exact.cuh) in float64, on whatever device. Sums
of fewer than 32 elements, as of ten classes, are cuBLAS's in models of any size, and not counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
TOP, LOW, LEAST = 14, 11, 8  # gemm_sm90_f32_args.h
GROUP = 64  # rows; and as many columns, a narrow tile's
LEAST_K = 32


@dataclass
class Facts:
    """A matrix as the pre-pass describes it; rows are rows of the GEMM."""

    scaled: Tensor
    exponent: Tensor
    norm: Tensor
    loss: Tensor
    few: Tensor
    dominated: Tensor

    @staticmethod
    def of(rows: Tensor) -> Facts:
        wide = rows.double()
        largest = wide.abs().amax(1)
        exponent = (torch.frexp(largest)[1] - 1).where(largest > 0, 0).clamp(min=TOP - 127)
        scaled = torch.ldexp(wide, TOP - exponent[:, None])
        high = scaled.half().double()
        low = torch.ldexp(scaled - high, torch.tensor(LOW)).half().double()
        rest = (scaled - high - torch.ldexp(low, torch.tensor(-LOW))).abs()
        lost = rest.where(rest > scaled.abs() * 2.0**-22, 0.0)
        norm = scaled.square().sum(1).sqrt()
        count = (scaled.abs() >= 2.0 ** (TOP - 24)).sum(1)
        top = torch.ldexp(largest, TOP - exponent)
        return Facts(
            scaled=scaled,
            exponent=exponent,
            norm=norm,
            loss=lost.square().sum(1).sqrt(),
            few=(largest > 0) & (count < LEAST),
            dominated=(largest > 0) & (4 * top.square() >= norm.square()),
        )


def unsafe(x: Tensor, w: Tensor) -> Tensor:
    """Which elements of x [M, K] times w [N, K] transposed the kernel sums in float64: [M, N]."""
    a, b = Facts.of(x), Facts.of(w)
    total = (a.scaled @ b.scaled.T).abs()
    bound = a.loss[:, None] * b.norm + a.norm[:, None] * b.loss
    found = (a.few[:, None] | b.few) | (a.dominated[:, None] & b.dominated)
    found |= total < 2.0**24 * bound
    size = torch.log2(a.norm[:, None] * b.norm) + 2 + a.exponent[:, None] + b.exponent - 2 * TOP
    return found | (size >= 126)


class Watch(TorchDispatchMode):
    """Counts groups, and those that hold an unsafe element, by kind of product."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, int] = defaultdict(int)
        self.unsafe: dict[str, int] = defaultdict(int)
        self.backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.mm.default, aten.addmm.default):
            self._see(*args[-2:])
        return func(*args, **(kwargs or {}))

    def _see(self, x: Tensor, kn: Tensor) -> None:
        if x.shape[1] < LEAST_K:
            return
        stored = x.stride(-1) != 1 and x.shape[1] != 1  # [K, M]: a weight gradient
        kind = "forward" if not self.backward else "w gradient" if stored else "x gradient"
        found = unsafe(x, kn.T)
        m, n = found.shape
        pad = F.pad(found, (0, -n % GROUP, 0, -m % GROUP))
        tiles = pad.unflatten(0, (-1, GROUP)).unflatten(2, (-1, GROUP)).any(3).any(1)
        self.groups[kind] += tiles.numel()
        self.unsafe[kind] += int(tiles.sum())


class Block(nn.Module):
    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.after(x))))


def language_model(device: str) -> Iterator[Tensor]:
    """Three layers on sequences that count in steps of their own, a quarter of each padding."""
    words, width, length = 512, 128, 64
    embed, head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
    place = nn.Parameter(torch.randn(length, width) * 0.02)
    model = nn.ModuleList([embed, head, *(Block(width, True) for _ in range(3))]).to(device)
    place.data = place.data.to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), place], lr=1e-3)
    while True:
        start, step = torch.randint(words, (16, 1)), torch.randint(1, 9, (16, 1))
        tokens = ((start + step * torch.arange(length + 1)) % words).to(device)
        hidden = embed(tokens[:, :-1]) + place
        for block in model[2:]:
            hidden = block(hidden)
        target = tokens[:, 1:].clone()
        target[:, -length // 4 :] = -100
        yield F.cross_entropy(head(hidden).flatten(0, 1), target.flatten(), ignore_index=-100)
        optimizer.step()
        optimizer.zero_grad()


def vision_transformer(device: str) -> Iterator[Tensor]:
    """Two layers that tell which of ten waves an image of 32 x 32 shows."""
    width = 96
    patch, head = nn.Linear(48, width), nn.Linear(width, 10)
    model = nn.Sequential(patch, Block(width, False), Block(width, False), nn.LayerNorm(width))
    model.append(head)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    grid = torch.arange(32.0)
    while True:
        kind = torch.randint(10, (32,))
        wave = torch.sin(grid[:, None] * (kind[:, None, None] + 1) / 10 + grid)
        image = wave[:, None] + torch.randn(32, 3, 32, 32)
        patches = image.unflatten(2, (8, 4)).unflatten(4, (8, 4)).permute(0, 2, 4, 1, 3, 5)
        out = model(patches.reshape(32, 64, 48).to(device)).mean(1)
        yield F.cross_entropy(out, kind.to(device))
        optimizer.step()
        optimizer.zero_grad()


def physics_informed(device: str) -> Iterator[Tensor]:
    """u'' = -sin(x) from random points: the loss has the second derivative by x."""
    sizes = [64, *[128] * 4, 1]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).to(device)
    frequencies = (torch.randn(32) * 2).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        x = (torch.rand(1024, 1, device=device) * 6).requires_grad_()
        u = model(torch.cat([(x * frequencies).sin(), (x * frequencies).cos()], 1))
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        yield (bend + x.sin()).square().mean() + u[:8].square().mean()
        optimizer.step()
        optimizer.zero_grad()


MODELS: dict[str, Callable[[str], Iterator[Tensor]]] = {
    "language model": language_model,
    "ViT": vision_transformer,
    "physics-informed MLP": physics_informed,
}


def observe(model: Callable[[str], Iterator[Tensor]], args: argparse.Namespace) -> Watch:
    """Trains for ``args.steps`` steps and watches every ``args.every``-th."""
    watch, steps = Watch(), model(args.device)
    for number in range(args.steps):
        if number % args.every:
            next(steps).backward()
            continue
        with watch:
            watch.backward = False
            loss = next(steps)
            watch.backward = True
            loss.backward()
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, dict[str, list[int]]] = {}
    print("| model | product | groups of 64 x 64 | summed in float64 |\n|---|---|---|---|")
    for name in args.models:
        torch.manual_seed(0)
        watch = observe(MODELS[name], args)
        found[name] = {kind: [watch.unsafe[kind], watch.groups[kind]] for kind in watch.groups}
        for kind, (some, all_) in found[name].items():
            print(f"| {name} | {kind} | {all_} | {some} ({100 * some / all_:.2f}%) |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
