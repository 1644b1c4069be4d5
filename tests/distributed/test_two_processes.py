"""DDP, FSDP2 and tensor parallel around compiled models, in two processes."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from scenarios import SCENARIOS, WORLD, process

_TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
BACKENDS = [
    pytest.param("gloo", id="gloo"),
    pytest.param("nccl", id="nccl", marks=[pytest.mark.gpu, _TWO_GPUS]),
]


@functools.cache
def _results(backend: str) -> list[dict[str, Any]]:
    """Both processes' results; they are started once, for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, args=(folder, backend), nprocs=WORLD)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fused_and_equal_to_one_process(scenario: str, backend: str) -> None:
    _, forward, everywhere = SCENARIOS[scenario]
    for results in _results(backend):
        result = results[scenario]
        assert "failure" not in result, result["failure"]
        if backend == "gloo":
            assert result["fused"] == everywhere
        else:  # there the sizes decide whether a residual's sum is better left
            assert result["fused"] >= forward
        assert result["error"] < (1e-5 if backend == "gloo" else 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_parallel_linear_is_not_fused_across_its_all_reduce(backend: str) -> None:
    for results in _results(backend):
        assert results["row parallel"]["all-reduce, then erf"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_ddp_is_cut_at_its_buckets(backend: str) -> None:
    for results in _results(backend):
        assert results["compiled DDP"]["graphs"] > 2  # more than one forward and one backward
