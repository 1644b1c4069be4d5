"""Which configuration several weights of one x get: what the kernel has, and only where it pays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fusepass.kernels import linears
from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import build_cubin
from fusepass.kernels.plan import several as plan
from fusepass.kernels.plan import sm90
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.model import cublas_seconds
from fusepass.kernels.plan.problem import BFLOAT16, FLOAT16, FLOAT32, ir_dtype

Widths = tuple[int, ...]
BARE = Demand.plain(bare=True)
ORDERS = tuple(itertools.product((False, True), repeat=2))
SIZES_M = (17, 64, 65, 200, 1576, 16384, 1 << 20)  # fewer rows are few.py's
SIZES_K = (0, 8, 72, 1020, 1024, 4096)
WIDTHS: tuple[Widths, ...] = (
    (1024, 1024, 1024), (2048, 512, 512), (8, 8), (40, 4096, 136, 72), (100, 104), (0, 64),
    (151936, 8),
)  # fmt: skip

# Microseconds on an H200 (benchmarks/NOTES.md): of M, K and columns, the products by themselves at
# their best, and one launch of the configurations that were timed.
MEASURED: dict[tuple[int, int, Widths], tuple[float, dict[str, float]]] = {
    (16384, 1024, (1024,) * 3): (157.1, {
        "128x192 pingpong cluster2 stages5 group12 swapped": 135.6,
        "128x160 pingpong cluster2 stages5 group12 swapped": 137.1,
        "128x144 pingpong cluster2 stages6 group12 swapped": 139.3,
    }),
    (50432, 768, (768,) * 3): (263.3, {
        "128x192 pingpong cluster2 stages5 group12 swapped": 251.2,
        "128x192 pingpong cluster2 stages4 group14": 248.9,
        "128x192 pingpong cluster2 stages4 group12 swapped": 254.4,
        "128x192 pingpong cluster1 stages5 group12 swapped": 249.8,
    }),
    (8192, 2048, (2048, 512, 512)): (147.1, {
        "128x192 pingpong cluster2 stages5 group12 swapped": 136.9,
        "128x128 pingpong cluster2 stages6 group12": 140.0,
    }),
    (16384, 768, (768,) * 3): (102.4, {
        "128x208 pingpong cluster2 stages4 group12 swapped": 88.7,
        "128x208 pingpong cluster1 stages4 group12 swapped": 88.5,
    }),
    (1024, 768, (768,) * 3): (16.2, {
        "64x160 pingpong cluster1 stages7 group12 swapped": 10.33,
        "64x96 pingpong cluster1 stages8 group8": 9.63,
        "128x160 pingpong cluster1 stages5 group12 swapped": 8.92,
        "128x168 pingpong cluster1 stages5 group12": 8.93,
    }),
    (2048, 768, (768,) * 3): (20.38, {
        "64x160 pingpong cluster1 stages7 group12 swapped": 18.79,
        "128x160 pingpong cluster1 stages5 group12 swapped": 12.96,
        "128x112 pingpong cluster1 stages6 group12 swapped": 13.88,
        "128x168 pingpong cluster1 stages5 group12": 14.44,
    }),
    (616, 2048, (1280, 1280)): (15.45, {
        "128x104 cooperative cluster1 stages6 group12": 13.0,
        "128x112 pingpong cluster1 stages6 group12 swapped": 13.96,
        "128x128 cooperative cluster1 stages6 group10": 13.09,
    }),
    (616, 2048, (640, 640)): (14.42, {
        "64x128 pingpong cluster1 stages8 group12 swapped": 9.31,
        "64x128 pingpong cluster1 stages8 group8": 8.8,
        "128x64 cooperative cluster1 stages8 group8": 8.81,
    }),
    (512, 1024, (1024,) * 3): (14.59, {
        "128x104 cooperative cluster1 stages6 group12": 7.38,
        "128x112 pingpong cluster1 stages6 group12 swapped": 8.28,
        "64x96 pingpong cluster1 stages8 group8": 9.06,
        "128x128 pingpong cluster1 stages6 group12": 7.78,
    }),
    (512, 768, (768,) * 3): (13.55, {
        "64x80 pingpong cluster1 stages8 group8": 6.79,
        "128x104 cooperative cluster1 stages6 group12": 6.68,
        "64x48 pingpong cluster1 stages8 group8": 8.42,
    }),
    (256, 4096, (4096, 1024, 1024)): (36.92, {
        "128x104 cooperative cluster1 stages6 group12": 23.25,
        "64x96 pingpong cluster1 stages8 group8": 30.83,
        "128x128 pingpong cluster1 stages6 group12": 25.62,
    }),
    (128, 1024, (1024,) * 3): (13.93, {
        "64x48 pingpong cluster1 stages8 group8": 4.88,
        "64x64 pingpong cluster1 stages8 group12 swapped": 4.78,
        "64x80 pingpong cluster1 stages8 group8": 5.49,
    }),
    (12000, 1280, (1280,) * 3): (174.88, {
        "128x192 pingpong cluster2 stages5 group12 swapped": 163.57,
        "128x208 pingpong cluster2 stages4 group12 swapped": 166.08,
    }),
    (8192, 1536, (1536, 256, 256)): (80.94, {
        "128x144 pingpong cluster2 stages6 group12 swapped": 71.64,
        "128x144 pingpong cluster1 stages6 group12 swapped": 75.2,
    }),
    (2048, 4096, (4096, 1024, 1024)): (138.45, {
        "128x192 pingpong cluster2 stages5 group12 swapped": 136.44,
        "128x192 pingpong cluster2 stages4 group12 swapped": 132.62,
        "128x192 pingpong cluster1 stages5 group12 swapped": 153.96,
        "128x128 pingpong cluster2 stages6 group12": 139.17,
    }),
    (2048, 2048, (2048,) * 3): (83.36, {
        "128x192 pingpong cluster2 stages5 group12 swapped": 74.05,
        "128x192 pingpong cluster2 stages4 group12 swapped": 73.45,
    }),
}  # fmt: skip


def test_what_is_taken_was_measured_to_be_faster_and_is_among_the_fastest() -> None:
    behind = []
    for (m, k, widths), (apart, times) in MEASURED.items():
        config = plan.choose(m, widths, k)
        assert str(config) in times, (m, k, widths, str(config))
        taken = times[str(config)]
        assert taken < apart
        behind.append(taken / min(times.values()) - 1)
    assert max(behind) < 0.03 and sum(behind) / len(behind) < 0.007


@pytest.mark.parametrize(("w_is_kn", "x_is_km"), ORDERS)
def test_only_what_can_run_is_chosen(w_is_kn: bool, x_is_km: bool) -> None:
    chosen = 0
    for m, k, widths in itertools.product(SIZES_M, SIZES_K, WIDTHS):
        config = plan.choose(m, widths, k, w_is_kn, 132, x_is_km)
        if config is None:
            continue
        chosen += 1
        assert m > 64 and k % 8 == 0 and k > 0 and not (x_is_km and m % 8)
        assert all(n > 0 and n % 8 == 0 for n in widths)
        assert plan.why_not(config) is None and config.split == 1 and config.turns == 2
        sizes = (m, plan.walked(config, widths), k)
        assert sm90.fits(config, sizes, w_is_kn, x_is_km, 132, BARE)
        one, apart = plan.times(m, widths, k, w_is_kn, 132, x_is_km) or (0.0, 0.0)
        assert 0 < one <= apart <= sum(cublas_seconds(m, n, k) for n in widths)
    assert chosen > 20


def test_each_weights_columns_are_whole_tiles() -> None:
    config = plan.Config.parse("128x192 pingpong cluster2 stages4 group14")
    assert plan.walked(config, (192, 8, 200)) == 192 + 192 + 384
    swapped = plan.Config.parse("128x192 pingpong cluster2 stages4 group12 swapped")
    assert plan.walked(swapped, (192, 8, 200)) == 256 + 128 + 256


def test_what_runs_by_itself_is_told_by_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "times", lambda *question: (3e-6, 2e-6))
    question: Any = (torch.bfloat16, 4096, (64, 64), 64, False, False, 132)
    plan.choose.cache_clear()
    assert linears.weigh(*question) == linears.Together(False, 3e-6, 2e-6)
    assert linears.weigh(torch.float32, *question[1:]) is None
    plan.choose.cache_clear()
    monkeypatch.setattr(plan, "times", lambda *question: None)
    assert linears.weigh(*question) is None
    plan.choose.cache_clear()


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_the_answer_is_a_kernel_of_several_weights(dtype: int) -> None:
    answer = plan.plan(dtype, 512, (1024,) * 3, 1024, False, False, "90a", 132)
    assert answer is not None
    config, cubin, name = answer.split("|")
    assert plan.Config.parse(config) == plan.choose(512, (1024,) * 3, 1024)
    macros = plan.defines(plan.Config.parse(config), dtype == BFLOAT16, False)
    include = plan.emit(plan.Epilogue(), ir_dtype(dtype))
    assert str(build_cubin("sm90/gemm_sm90.cu", macros, "90a", include)) == cubin
    assert name == "fusepass_gemm" and macros["FUSEPASS_SEVERAL"] == 1
    assert plan.plan(dtype, 512, (1024,) * 3, 1024, False, False, "80", 132) is None
    assert plan.plan(FLOAT32, 512, (1024,) * 3, 1024, False, False, "90a", 132) is None
