"""``python -m tests.fuzz --sites 20000``: random programs until so many graphs had a site.

Prints every failing program, shortened as far as it still fails, and a count at the end.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import torch

from .oracle import Outcome, check
from .programs import FLOATS, Program, random_program


def case(seed: int) -> tuple[Program, torch.dtype, str, bool]:
    """The program of a seed, and how it is run."""
    rng = random.Random(~seed)
    dtype = getattr(torch, rng.choices(FLOATS, weights=(4, 3, 2, 1))[0])
    numerics = "bitwise" if rng.random() < 0.2 else "accurate"
    return random_program(seed), dtype, numerics, rng.random() < 0.4


def outcome(seed: int, device: str = "cpu") -> Outcome:
    program, dtype, numerics, grads = case(seed)
    return check(program, dtype, numerics, grads, seed, device)


def shortened(seed: int, device: str = "cpu") -> Program:
    """The program of ``seed`` without the lines that its failure does not need."""
    program, *how = case(seed)
    shorter = True
    while shorter:
        shorter = False
        for i in reversed(range(len(program.lines))):
            lines = program.lines[:i] + program.lines[i + 1 :]
            results = [r for r in program.results if any(s.startswith(f"{r} ") for s in lines)]
            candidate = Program(lines, results)
            if results and _fails(candidate, how, seed, device):
                program, shorter = candidate, True
    return program


def _fails(program: Program, how: list[object], seed: int, device: str) -> bool:
    try:
        return check(program, *how, seed, device).problem is not None  # type: ignore[arg-type]
    except Exception:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=1000, help="graphs with a site to run")
    parser.add_argument("--seed", type=int, default=0, help="the first program's")
    parser.add_argument("--stride", type=int, default=1, help="between one program's and the next")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    graphs = with_site = failures = 0
    seed, start = options.seed, time.monotonic()
    while with_site < options.sites and time.monotonic() - start < options.seconds:
        found = outcome(seed, options.device)
        graphs += 1
        with_site += found.sites > 0
        if found.problem is not None:
            failures += 1
            _, dtype, numerics, grads = case(seed)
            how = f"{dtype}, {numerics}, {'with' if grads else 'without'} gradients"
            print(
                f"seed {seed} ({how}): {found.problem}\n{shortened(seed, options.device).source}",
                flush=True,
            )
        seed += options.stride
    print(f"{graphs} graphs, {with_site} with a site, {failures} failed; next seed {seed}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
