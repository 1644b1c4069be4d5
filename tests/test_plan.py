"""Which configuration of the 16-bit GEMM a shape gets: pure, total, and only what can run."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import pytest
import torch

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES
from fusepass.kernels.library import chosen, plan_for
from fusepass.kernels.plan import gated as plan_gated
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.configs import CONFIGS_WITH_MATRICES, SHARED_LIMIT, configs_for
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.narrow import MOST_ROWS, NARROW_TILES
from fusepass.kernels.plan.problem import BFLOAT16, Problem, plan_code
from fusepass.kernels.plan.sm90 import CONFIGS, Config

SIZES_M = (0, 1, 64, 65, 100, 128, 129, 512, 1576, 3000, 8192, 50432, 1 << 20, 1 << 30)
SIZES_N = (0, 1, 7, 8, 200, 256, 1000, 3072, 4304, 8192, 28672, 151936)
SIZES_K = (0, 1, 8, 72, 768, 1020, 1152, 4096, 16384)
SHAPES = tuple(itertools.product(SIZES_M, SIZES_N, SIZES_K))
DEMANDS = (
    Demand(),
    Demand(stores=(2, 2)),
    Demand(mats=(2,)),
    Demand(mats=(2,), stores=(2, 2), col_bytes=2),
    Demand(mats=(4,), stores=(4,), col_bytes=6, row_bytes=4),
    Demand(mats=(2,), sums=1),
    Demand(col_bytes=20, row_bytes=12),
    Demand(mats=(2,), col_bytes=32),
    Demand(mats=(1,)),
    Demand(mats=(1, 2)),
    Demand(mats=(2, 2)),
    Demand(gated=True),
    Demand(stores=(2, 2, 2), gated=True, mats=(2,)),
)
SINGLE = tuple(d for d in DEMANDS if not d.gated)
FLAGS = tuple(itertools.product((False, True), SINGLE))


# Asks the header itself.
_ASK = """
#include <cstdio>
#include <cstdlib>
#include "sm90/gemm_sm90_geometry.h"
int main(int, char** v) {
  int n[14];
  for (int i = 0; i < 14; ++i) n[i] = std::atoi(v[i + 1]);
  const fusepass::Geometry geometry{n[0], n[1], n[2], n[3], n[4], n[5] != 0, n[6] != 0,
                                    n[7], n[8], n[9], n[10], n[11], n[12] != 0,
                                    n[13] != 0};
  const int usual = fusepass::consumers_of(n[0], n[5]), units = fusepass::chunk_units(geometry);
  const int bytes = units ? fusepass::shared_bytes(geometry) : 0;
  const int slots = units ? fusepass::staging_slots(geometry) : 0;
  const int mats[] = {1, 4, 2}, stores[] = {2, 2, 4};  // the first and the last overwrite
  const int apart = fusepass::bytes_of_slot(mats, 3, stores, 3);
  std::printf("%d %d %d %d %d", bytes, usual, units, slots, apart);
}
"""


@pytest.fixture(scope="module")
def header(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("geometry")
    (folder / "ask.cpp").write_text(_ASK)
    command = [host_compiler, "-std=c++17", f"-I{SOURCES}", "ask.cpp", "-o", "ask"]
    toolchain.run(command, folder)
    return folder / "ask"


def _forms(config: Config) -> tuple[Config, ...]:
    """The configuration, and the same with operands in the other roles."""
    return config, dataclasses.replace(config, swapped=not config.swapped)


def _whole(config: Config, demand: Demand) -> bool:
    """Whether a gated tile of that form has whole halves."""
    if not demand.gated:
        return True
    return config.blocks % 2 == 0 if config.swapped else config.tile_n % (16 * config.split) == 0


EVERY = tuple(dict.fromkeys((*CONFIGS, *CONFIGS_WITH_MATRICES)))


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_shared_memory_is_what_the_header_says(config: Config, header: Path) -> None:
    for form, demand in itertools.product(_forms(config), DEMANDS):
        if not _whole(form, demand):
            continue
        sizes = (form.tile_m, form.tile_n, form.stages, form.consumers, form.split)
        matrices = (len(demand.stores), len(demand.mats), demand.slot_bytes)
        asked = (*matrices, demand.col_bytes, demand.row_bytes, demand.gated, 1 in demand.mats)
        numbers = map(int, (*sizes, form.pingpong, form.swapped, *asked))
        answer = toolchain.run([str(header), *map(str, numbers)])
        bytes_, usual, units, slots, apart = map(int, answer.split())
        assert apart == Demand(mats=(1, 4, 2), stores=(2, 2, 4)).slot_bytes == 128 * 9
        assert units == form.chunk_units(demand)
        assert form.turns == 3 or usual == form.consumers
        if units:
            assert slots == form.slots(demand)[0] and bytes_ == form.shared_bytes(demand)
            ring = form.stages * (form.tile_m + form.tile_n) * 128
            assert ring < bytes_ <= SHARED_LIMIT
        assert units or demand != Demand() or form != config


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_a_configuration_is_one_the_kernel_has(config: Config) -> None:
    rows = config.tile_m // (1 if config.pingpong else config.consumers)  # of one consumer
    assert rows % 64 == 0 and config.tile_n % 8 == 0 and config.tile_n <= 256
    # A thread has 240 registers, 160 of three consumers; addresses, stages and packing need some.
    most = 208 if config.consumers == 2 else 128 if config.pingpong else 100
    assert rows * config.tile_n // 128 <= most
    assert config.cluster == 1 or config.beside or config.tile_n % (8 * config.cluster) == 0
    assert config.stages >= 2 and config.group >= config.cluster


@pytest.mark.parametrize(("w_is_kn", "demand"), FLAGS)
def test_pure_total_and_only_what_can_run(w_is_kn: bool, demand: Demand) -> None:
    answers = []
    for shapes in (SHAPES, SHAPES[::-1]):  # an answer depends on no earlier question
        plan.choose.cache_clear()
        answers.append({s: plan.choose(*s, w_is_kn, demand) for s in shapes})
    assert answers[0] == answers[1]
    chosen = 0
    for (m, n, k), config in answers[0].items():
        if config is None:
            continue
        chosen += 1
        assert config in (configs_for(demand) if m > MOST_ROWS else NARROW_TILES)
        assert Config.parse(str(config)) == config
        assert n % 8 == 0 and k % 8 == 0
        assert not w_is_kn or config.swapped or config.tile_n % 64 == 0
        # A pair has work for both.
        along = n if config.swapped != config.beside else m
        assert config.cluster == 1 or along > (config.tile_n if config.beside else config.tile_m)
    assert chosen > len(SHAPES) // 7


@pytest.mark.parametrize(("w_is_kn", "demand"), FLAGS)
@pytest.mark.parametrize("sms", [16, 60, 114, 132])
def test_other_multiprocessor_counts(w_is_kn: bool, demand: Demand, sms: int) -> None:
    for m, n, k in ((128, 128, 64), (2048, 8192, 8192), (65536, 256, 256)):
        config = plan.choose(m, n, k, w_is_kn, demand, sms)
        assert config is None or config.cluster <= sms


@pytest.mark.parametrize("m", [2048, 50432])
def test_large_problems_are_the_kernels(m: int) -> None:
    for (n, k), flags in itertools.product(((8192, 8192), (3072, 768), (4096, 1024)), FLAGS):
        assert plan.choose(m, n, k, *flags) is not None


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(48, 11008, 4096), (64, 1024, 4096), (4096, 4095, 4096), (4096, 4096, 4095), (4096, 4, 4096)],
)
def test_few_rows_of_few_tiles_and_odd_sizes_are_the_hybrids(m: int, n: int, k: int) -> None:
    for flags in FLAGS:
        assert plan.choose(m, n, k, *flags) is None


def test_three_consumers_have_no_registers_for_z() -> None:
    for turns, demand in itertools.product((2, 3), SINGLE):
        some = plan.candidates(65536, 1024, 256, False, demand)
        assert any(c.turns == turns for c in some) == (turns == 2 or demand.traffic == 2)


def test_few_tiles_and_a_long_k_are_split_over_a_cluster() -> None:
    best = plan.candidates(768, 3072, 50432, True, Demand(bare=True), 132, True)[0]
    assert best.split > 1
    assert plan.candidates(50432, 3072, 768, False)[0].split == 1


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_form_of_a_configuration_survives_its_text(config: Config) -> None:
    for swapped, beside, split in itertools.product((False, True), (False, True), (1, 2, 4)):
        for turns in (2, 3):
            more = {"swapped": swapped, "beside": beside, "split": split, "turns": turns}
            form = dataclasses.replace(config, **more)
            assert Config.parse(str(form)) == form


def test_the_operand_that_wgmma_calls_b_has_boxes_of_64_columns() -> None:
    """x where operands are swapped, else w; the other may be of any width."""
    for config, swapped, km, kn in itertools.product(CONFIGS, *[(False, True)] * 3):
        form = dataclasses.replace(config, swapped=swapped)
        transposed = km if swapped else kn
        fits = plan.fits(form, (4096, 4096, 4096), kn, km, 132)
        assert fits == (not transposed or form.tile_n % 64 == 0)


@pytest.mark.parametrize("gated", [False, True])
def test_rows_of_x_stored_by_columns_start_at_16_bytes(gated: bool) -> None:
    """Its rows in memory are of m: elsewhere gemm90_unsupported sends the call to two kernels."""
    choose = plan_gated.choose if gated else plan.choose
    demand, sizes = Demand(gated=gated), (4864, 1024)
    for m in (8192, 50256):
        assert choose(m, *sizes, False, demand, 132, True) is not None
    for m in (8193, 50257, 50260):
        assert choose(m, *sizes, False, demand, 132, True) is None
        assert choose(m, *sizes, False, demand, 132, False) is not None


def test_a_kernel_of_another_architecture_is_never_planned() -> None:
    for arch in ("80", "90", "100a", "120"):
        problem = Problem("mul(0.5) gelu", BFLOAT16, 8192, 3072, 768, False, False)
        assert plan.plan(problem, arch, 132) is None


def test_planning_takes_microseconds_and_is_kept() -> None:
    plan.choose.cache_clear()
    some = [s for s in SHAPES if plan.possible(*s)][:500]
    times = []
    for shape in some:
        start = time.perf_counter()
        plan.choose(*shape)
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 2e-3
    before = plan.choose.cache_info().hits
    for shape in some:
        plan.choose(*shape)
    assert plan.choose.cache_info().hits == before + len(some)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_device_smaller_than_a_cluster_is_left_to_two_kernels(
    dtype: torch.dtype, precision: str
) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        problem = Problem("gelu", plan_code(dtype), 8192, 8192, 8192, False, False)
        assert chosen(dtype, 8192, 8192, 8192, False, 132)
        assert not chosen(dtype, 8192, 8192, 8192, False, 1)
        assert plan_for(problem, "90a", 1) is None
    finally:
        torch.set_float32_matmul_precision(before)
