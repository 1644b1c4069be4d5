"""Several Linears of one input on a GPU, as of queries, keys and values: one launch, or several.

    python benchmarks/linears.py --out results/linears.json

"torch" is cuBLAS's products one after the other, "apart" those of the plan, ours or cuBLAS's, and
"best" the faster of these, or the sum of the products, each alone at its fastest of the same run.
Bias and all; protocol and rotation are linear.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from beside_bare import sweep
from linear_cases import floor_seconds
from linear_peers import capture, check, time_graphs
from torch import Tensor
from torch.nn import functional as F

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import kernels

_SETS_BYTES = 250e6
_REPLAY_SECONDS = 1.5e-3
ONE, APART, TORCH = "fusepass", "apart", "torch"


@dataclass(frozen=True)
class Case:
    """x [m, k] times weights [n, k] of ``widths``."""

    model: str
    m: int
    k: int
    widths: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.model} {self.m}x{self.k}->{'+'.join(map(str, self.widths))}".strip()

    @property
    def taken(self) -> bool:
        """Whether the plan has one launch for it."""
        device = torch.device("cuda", torch.cuda.current_device())
        what = (self.m, self.widths, self.k, False)
        found = kernels.linears_together(device, torch.bfloat16, *what)
        return found is not None and found.one


CASES = (
    Case("BERT-large", 16384, 1024, (1024,) * 3),
    Case("ViT-B", 50432, 768, (768,) * 3),
    Case("Llama-3.2-1B", 8192, 2048, (2048, 512, 512)),
    Case("T5-base", 16384, 768, (768,) * 3),
    Case("SDXL, of the text", 616, 2048, (1280, 1280)),
    Case("BERT-base, 8x128", 1024, 768, (768,) * 3),
    Case("Llama-3.1-8B", 2048, 4096, (4096, 1024, 1024)),
    # Steps of decoding.
    *(Case("Llama-3.2-1B", m, 2048, (2048, 512, 512)) for m in (1, 16)),
    *(Case("Llama-3.1-8B", m, 4096, (4096, 1024, 1024)) for m in (1, 16)),
)


def _one(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    count = len(rest) // 2
    return tuple(torch.ops.fusepass.linears(x, rest[:count], rest[count:]))


def _apart(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    count, op = len(rest) // 2, torch.ops.fusepass.linear
    return tuple(op(x, w, b, "", []) for w, b in zip(rest[:count], rest[count:], strict=True))


def _torchs(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    count = len(rest) // 2
    return tuple(F.linear(x, w, b) for w, b in zip(rest[:count], rest[count:], strict=True))


def peers(widths: Sequence[int]) -> dict[str, Callable[..., Any]]:
    """Functions of (x, weights, biases) by their names; of each width, one product by itself."""
    calls: dict[str, Callable[..., Any]] = {ONE: _one, APART: _apart, TORCH: _torchs}
    count = len(widths)
    for n in set(widths):
        i = widths.index(n)

        def ours(x: Tensor, *rest: Tensor, i: int = i) -> Tensor:
            return torch.ops.fusepass.linear(x, rest[i], rest[count + i], "", [])

        def theirs(x: Tensor, *rest: Tensor, i: int = i) -> Tensor:
            return F.linear(x, rest[i], rest[count + i])

        calls |= {f"{APART} {n}": ours, f"{TORCH} {n}": theirs}
    return calls


def best(us: dict[str, float], widths: Sequence[int]) -> float:
    """The time of products by themselves, at best."""
    alone = sum(min(us[f"{APART} {n}"], us[f"{TORCH} {n}"]) for n in widths)
    return min(alone, us[APART], us[TORCH])


def inputs_of(case: Case, device: str = "cuda") -> list[tuple[Tensor, ...]]:
    """As many sets as do not fit into the cache together."""
    size = 2 * (case.m * case.k + (case.m + case.k) * sum(case.widths))
    more: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}

    def draw() -> tuple[Tensor, ...]:
        weights = [torch.randn(n, case.k, **more).mul_(case.k**-0.5) for n in case.widths]
        biases = [torch.randn(n, **more) for n in case.widths]
        return torch.randn(case.m, case.k, **more), *weights, *biases

    return [draw() for _ in range(max(2, min(64, math.ceil(_SETS_BYTES / size))))]


def measure(case: Case, seconds: float, stream: Any) -> dict[str, Any]:
    """The times of a case, microseconds, and how far the results are from eager's."""
    inputs, calls = inputs_of(case), peers(case.widths)
    found, eager = _one(*inputs[0]), _torchs(*inputs[0])
    distance = max(check(f, e.float(), 2e-2) for f, e in zip(found, eager, strict=True))
    floor = floor_seconds((case.m, case.k, sum(case.widths)), "bfloat16")
    repeats = len(inputs) * math.ceil(_REPLAY_SECONDS / (1.4 * floor * len(inputs)))
    graphs = {name: capture(call, inputs, repeats, stream) for name, call in calls.items()}
    times = time_graphs(graphs, seconds)
    us = {name: round(t.median / repeats * 1e3, 3) for name, t in times.items()}
    return {
        "case": str(case),
        "taken": case.taken,
        "us": us,
        "best": round(best(us, case.widths), 3),
        "ratio": round(us[ONE] / best(us, case.widths), 4),
        "ratio_to_torch": round(us[ONE] / us[TORCH], 4),
        "floor_us": round(floor * 1e6, 2),
        "spread": round(times[ONE].spread, 4),
        "distance_from_eager": distance,
    }


def told(row: dict[str, Any]) -> str:
    launches = "one launch" if row["taken"] else "one for each"
    times = f"{row['us'][ONE]:.2f} us, best {row['best']:.2f}, torch {row['us'][TORCH]:.2f}"
    ratios = f"{row['ratio']:.3f} of the best, {row['ratio_to_torch']:.3f} of torch's"
    return f"{row['case']}: {launches}, {times}; {ratios}"


def main(argv: Sequence[str] | None = None) -> None:
    sweep("linears.py", __doc__, argv, CASES, measure, told)


if __name__ == "__main__":
    main()
