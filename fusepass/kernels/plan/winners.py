"""Winners: what ``max_autotune`` found to be fastest on this machine, kept beside the kernels.

Later processes, and a compile that comes from a graph cache, plan with it and time nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from ..build import cache
from ..build.build import source_hash
from .configs import Config
from .problem import Problem

_HYBRID = "hybrid"

forced: dict[Problem, Config | None] = {}  # while it is being timed
_won: dict[str, str] = {}  # this process's winners


def recall(problem: Problem) -> tuple[bool, Config | None]:
    """(whether the current device has a winner, the winner); None stands for the hybrid."""
    if problem in forced:
        return True, forced[problem]
    if not torch.cuda.is_available():
        return False, None
    key = _key(problem, torch.cuda.get_device_name())
    text = _won.get(key) or _on_disk(key)
    if text is None:
        return False, None
    return True, None if text == _HYBRID else Config.parse(text)


def remember(problem: Problem, winner: Config | None) -> None:
    """Keeps the winner of the current device, here and on disk; None stands for the hybrid."""
    key = _key(problem, torch.cuda.get_device_name())
    text = _HYBRID if winner is None else str(winner)
    _won[key] = text  # also where the cache folder cannot be written
    cache.entry(key, lambda folder: _write(folder, text))


@lru_cache(maxsize=4096)
def _on_disk(key: str) -> str | None:
    folder = cache.find(key)
    return None if folder is None else (folder / "config.txt").read_text()


def _write(folder: Path, text: str) -> None:
    (folder / "config.txt").write_text(text)


def _key(problem: Problem, device_name: str) -> str:
    """Names the winner: a kernel of other sources, or another GPU, is another contest."""
    parts = (
        replace(problem, epilogue=problem.key),
        device_name,
        source_hash("sm90/gemm_sm90.cu"),
        torch.__version__,
    )
    return f"tuned-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"
