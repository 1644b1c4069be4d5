"""Which configuration two weights of one x get: what the kernel has, and only where it pays."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from emitted import include

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES, build_cubin
from fusepass.kernels.library import chosen_gated, plan_for
from fusepass.kernels.plan import gated as plan_gated
from fusepass.kernels.plan.configs import SHARED_LIMIT
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.problem import BFLOAT16, FLOAT32, TF32, Problem, ir_dtype
from fusepass.kernels.plan.sm90 import Config, defines, why_not

SIZES_M = (0, 1, 64, 65, 129, 512, 1576, 8192, 1 << 20, 1 << 30)
SIZES_N = (0, 1, 7, 8, 200, 1000, 4864, 14336, 151936)
SIZES_K = (0, 1, 8, 72, 768, 1020, 4096, 16384)
SHAPES = tuple(itertools.product(SIZES_M, SIZES_N, SIZES_K))
ORDERS = tuple(itertools.product((False, True), repeat=2))

_ASK = """
#include <cstdio>
#include <cstdlib>
#include "sm90/gemm_sm90_geometry.h"
int main(int, char** v) {
  int n[8];
  for (int i = 0; i < 8; ++i) n[i] = std::atoi(v[i + 1]);
  fusepass::Geometry g{};
  g.tile_m = n[0], g.tile_n = n[1], g.stages = n[2], g.consumers = n[3], g.split = n[4];
  g.pingpong = n[5], g.swapped = n[6], g.slot_bytes = 256 * n[7], g.gated = true;
  std::printf("%d", fusepass::chunk_units(g) ? fusepass::shared_bytes(g) : 0);
}
"""


def _demand(stores: int) -> Demand:
    return Demand(stores=(2,) * stores, gated=True)


@pytest.fixture(scope="module")
def header(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("geometry")
    (folder / "ask.cpp").write_text(_ASK)
    command = [host_compiler, "-std=c++17", f"-I{SOURCES}", "ask.cpp", "-o", "ask"]
    toolchain.run(command, folder)
    return folder / "ask"


@pytest.mark.parametrize("config", plan_gated.CONFIGS, ids=str)
def test_room_is_what_the_header_says(config: Config, header: Path) -> None:
    flags = (int(config.pingpong), int(config.swapped))
    sizes = (config.tile_m, config.tile_n, config.stages, config.consumers, config.split)
    for stores in (1, 2, 3):
        answer = toolchain.run([str(header), *map(str, (*sizes, *flags, stores))])
        assert (why_not(config, _demand(stores)) is None) == (int(answer) > 0)
        assert int(answer) <= SHARED_LIMIT


@pytest.mark.parametrize("config", plan_gated.CONFIGS, ids=str)
def test_each_weight_has_whole_blocks_of_a_tile(config: Config) -> None:
    if config.swapped:
        assert config.blocks % 2 == 0
    else:
        assert config.tile_n % 16 == 0
    assert config.split == 1 and config.turns == 2


@pytest.mark.parametrize(("w_is_kn", "x_is_km"), ORDERS)
def test_only_what_can_run_is_chosen(w_is_kn: bool, x_is_km: bool) -> None:
    chosen = 0
    for (m, n, k), stores in itertools.product(SHAPES, (1, 3)):
        config = plan_gated.choose(m, n, k, w_is_kn, _demand(stores), 132, x_is_km)
        if config is None:
            continue
        chosen += 1
        assert m > 64 and n % 8 == 0 and k % 8 == 0
        if config.swapped:
            assert not x_is_km or config.tile_n % 64 == 0
        else:
            assert not w_is_kn or config.tile_n % 128 == 0
        below, wide = (n, m) if config.swapped else (m, n)
        height = config.tile_m // 2 if config.swapped else config.tile_m
        width = config.tile_n if config.swapped else config.tile_n // 2
        assert config.cluster == 1 or (wide > width if config.beside else below > height)
    assert chosen > len(SHAPES) // 6


@pytest.mark.parametrize("m", [512, 2048, 16384])
@pytest.mark.parametrize(("k", "n"), [(896, 4864), (2048, 8192), (4096, 14336), (3072, 8192)])
def test_models_layers_are_the_kernels(m: int, k: int, n: int) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for stores in (1, 3):
            assert chosen_gated(dtype, m, n, k, False, 132, False, stores)


def test_other_dtypes_and_devices_are_left() -> None:
    for dtype in (torch.float32, torch.float64):
        assert not chosen_gated(dtype, 8192, 4864, 896, False, 132)
    assert not chosen_gated(torch.bfloat16, 8192, 4864, 896, False, 1)
    for code in (FLOAT32, TF32):
        problem = Problem("silu mul(z1)", code, 8192, 4864, 896, False, False)
        assert problem.gated and plan_for(problem, "90a", 132) is None
    for arch in ("80", "100a"):
        problem = Problem("silu mul(z1)", BFLOAT16, 8192, 4864, 896, False, False)
        assert plan_for(problem, arch, 132) is None


@pytest.mark.parametrize(
    "text", ["silu mul(z1) add(mat0)", "silu mul(z1) mul(col0)", "silu mul(z1) mul(row0)"]
)
def test_a_third_tensor_is_left(text: str) -> None:
    """No kernel of two weights has been run that reads one."""
    rest = (BFLOAT16, 8192, 4864, 896, False, False)
    demand = Demand.of(Problem(text, *rest).program, ir_dtype(BFLOAT16))
    assert isinstance(demand, Demand)
    assert plan_gated.choose(8192, 4864, 896, demand=demand) is None
    assert plan_gated.choose(8192, 4864, 896) is not None
    assert plan_for(Problem(text, *rest), "90a", 132) is None


def test_a_program_says_that_there_are_two_weights() -> None:
    texts = {"silu mul(z1)": True, "silu mul(z1), z, z1": True, "gelu": False}
    for text, gated in texts.items():
        assert Problem(text, BFLOAT16, 128, 128, 128, False, False).gated == gated


_TO_BUILD = [
    (config, text)
    for config in plan_gated.CONFIGS
    for text in ("gelu mul(z1)", "silu mul(z1), z, z1")
    if why_not(config, _demand(1 + text.count(","))) is None
]


@pytest.mark.sampled(9)  # each takes nvcc seconds
@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize(("config", "text"), _TO_BUILD, ids=str)
def test_no_configuration_spills(config: Config, text: str) -> None:
    """The build refuses spills and stack frames."""
    kn = config.swapped or config.tile_n % 128 == 0
    build_cubin("sm90/gemm_sm90.cu", defines(config, True, kn, False), "90a", include(text, "bf16"))
