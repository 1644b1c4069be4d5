"""float32's plans, and that what they name compiles to what it should."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from disassembly import disassembled
from emitted import include

from fusepass.explaining.choice import choose_for
from fusepass.kernels import library
from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import build_cubin
from fusepass.kernels.calls import Call
from fusepass.kernels.library import chosen
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import tf32 as plan_tf32
from fusepass.kernels.plan.problem import TF32, Problem

SMS = 132
NARROW_WIDE = sorted(plan_f32.TILES, key=lambda tile: tile.n)
# m, n, k of the shapes on which the kernels must win.
LARGE = [(2048, 8192, 8192), (4096, 14336, 4096), (16384, 4096, 1024), (8192, 3072, 768)]


@pytest.mark.parametrize(("m", "n", "k"), LARGE)
def test_large_problems_are_split(m: int, n: int, k: int) -> None:
    assert plan_f32.choose(m, n, k, False, SMS) is not None
    assert plan_f32.split_seconds(m, n, k, True, SMS) > plan_f32.split_seconds(m, n, k, False, SMS)


def test_narrow_tiles_fill_the_device() -> None:
    narrow, wide = (f"split 128x{t.n} cluster2 stages{t.stages} group16" for t in NARROW_WIDE)
    assert plan_f32.choose(1024, 1024, 1024, False, SMS) == narrow + " segments1"
    assert plan_f32.choose(2048, 8192, 8192, False, SMS) == wide + " segments1"


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 16384, 4096), (32, 4096, 1024), (8192, 3072, 128), (64, 64, 1024), (64, 512, 65536)],
)
def test_small_ones_are_cublas(m: int, n: int, k: int) -> None:
    assert plan_f32.choose(m, n, k, False, SMS) is None


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(512, 512, 32768), (128, 2048, 16384), (1024, 512, 8192), (1024, 1024, 4096)],
)
def test_few_tiles_with_a_long_k_get_the_narrow_tile(m: int, n: int, k: int) -> None:
    """There cuBLAS cuts K, too, and a wide tile's errors were measured to be larger."""
    config = plan_f32.choose(m, n, k, False, SMS)
    assert config is not None and "128x64 " in config
    assert config.endswith("segments1") is (m * n == 1024 * 1024)


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(64, 2048, 1024), (256, 1024, 4096), (1024, 512, 2048), (512, 512, 512), (768, 768, 1024)],
)
@pytest.mark.parametrize("by_k", [False, True])
def test_where_its_errors_were_the_smaller_ones_cublas_runs(
    m: int, n: int, k: int, by_k: bool
) -> None:
    """Whatever the order of the operands."""
    assert plan_f32.choose(m, n, k, False, SMS, by_k, by_k) is None
    assert plan_f32.choose(m, n, 320, False, SMS, by_k, by_k) is None
    assert plan_f32.choose(m, n, 300, False, SMS) is not None
    assert plan_f32.choose(1024, 1024, 1024, False, SMS, by_k, by_k) is not None


@pytest.mark.parametrize(("m", "n", "k"), [*LARGE, (512, 512, 65536), (768, 3072, 16384)])
def test_no_segment_is_empty_and_their_sums_take_little_memory(m: int, n: int, k: int) -> None:
    steps = -(-k // 64)
    for segments in plan_f32._segments(m, n, k):
        per = -(-steps // segments)
        assert (segments - 1) * per < steps <= segments * per
        assert segments == 1 or 4 * segments * m * n <= 2**27


def test_a_weight_gradient_of_many_tokens_is_split_in_parts() -> None:
    """Each has as many segments, its pieces no more than so many bytes; not one of few tokens."""
    for m, n, k in [(512, 512, 65536), (512, 512, 262145), (512, 640, 60000)]:
        config = plan_f32.choose(m, n, k, False, SMS, True, True, True)
        numbers = re.search(r"segments(\d+) parts(\d+)$", config or "")
        assert numbers is not None, config
        segments, parts = map(int, numbers.groups())
        assert parts > 1 and segments % parts == 0
        steps = math.ceil(math.ceil(k / 64) / segments) * (segments // parts)
        assert 4 * steps * 64 * (m + n) <= 1.25 * plan_f32._PIECES_OF_PART
    for m, n, k in [(512, 512, 32768), (4096, 1024, 6304), (3072, 768, 8192), (768, 3072, 16384)]:
        config = plan_f32.choose(m, n, k, False, SMS, True, True, True)
        assert config is not None and "parts" not in config


def test_weight_gradients_are_split() -> None:
    """x and w stored [K, M] and [K, N]; K counts tokens."""
    for k in (16384, 6305):
        assert plan_f32.choose(768, 3072, k, False, SMS, True, True, True) is not None


@pytest.mark.parametrize(("n", "k"), [(4095, 1024), (4096, 1001), (4096, 1026), (50257, 1024)])
def test_odd_sizes_are_split_but_none_of_tf32(n: int, k: int) -> None:
    assert plan_f32.choose(4096, n, k, False, SMS) is not None
    assert plan_tf32.choose(4096, n, k, False, SMS) is None


def test_precision_by_the_newer_setting_is_understood() -> None:
    """In a process of its own: torch's older setting raises ever after."""
    script = """
import torch
from fusepass.kernels.plan.problem import TF32, plan_code
from fusepass.cli.timing import float32_precision
assert float32_precision() == torch.get_float32_matmul_precision()
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert float32_precision() == "tf32" and plan_code(torch.float32) == TF32
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_tf32_reads_no_weight_stored_kn() -> None:
    assert plan_tf32.choose(2048, 8192, 8192, False, 132) is not None
    assert plan_tf32.choose(2048, 8192, 8192, True, 132) is None


def test_tf32_takes_a_tile_that_fills_the_device() -> None:
    tile = plan_tf32.TILES[0]
    assert tile.seconds(2048, 8192, 8192, 132) < tile.seconds(2048, 8192, 8192, 66)
    assert plan_tf32.choose(16384, 4096, 1024, False, 132) == (
        "tf32 128x192 pingpong cluster2 stages5 group16"
    )
    for shape, work in (((2048, 8192, 8192), 0), ((16384, 4096, 1024), 40)):
        assert plan_tf32.choose(*shape, False, 132, work) == (
            "tf32 128x128 pingpong cluster2 stages6 group16"
        )
    small = plan_tf32.choose(1024, 1024, 1024, False, 132)
    assert small == "tf32 128x64 cooperative cluster2 stages8 group16"


@pytest.mark.parametrize(("m", "n", "k"), [(128, 4096, 4096), (256, 1024, 8192), (512, 512, 512)])
def test_tf32_leaves_few_tiles_to_cublas(m: int, n: int, k: int) -> None:
    assert plan_tf32.choose(m, n, k, False, 132) is None


@pytest.mark.parametrize(
    ("m", "n", "k", "ours"),
    [
        (8192, 3072, 768, True), (16384, 4096, 1024, True), (2048, 8192, 8192, True),
        (4096, 14336, 4096, True), (50432, 768, 768, True), (25216, 3072, 1024, True),
        (1024, 1024, 1024, False), (256, 4096, 4096, False), (12608, 1024, 1024, False),
    ],
)  # fmt: skip
def test_a_tf32_product_alone_is_ours_where_rounds_of_tiles_are_full(
    m: int, n: int, k: int, ours: bool
) -> None:
    """The decision and the call say the same; with an epilogue there is more to gain."""
    assert (plan_tf32.choose(m, n, k, False, SMS, bare=True) is not None) is ours
    assert library._chosen(TF32, m, n, k, False, SMS, False, "") is ours
    if ours:
        assert plan_tf32.choose(m, n, k, False, SMS) is not None


@pytest.mark.parametrize(("precision", "planned"), [("highest", plan_f32), ("high", plan_tf32)])
def test_explain_plans_at_the_present_precision(
    precision: str, planned: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Call(
        "linear", "gelu", torch.float32, *(2048, 8192, 8192), False, False, "accurate",
        torch.device("cpu"),
    )  # fmt: skip
    monkeypatch.setattr(planned, "plan", lambda problem, arch, num_sms: "this one|/a.cubin|gemm")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert choose_for(call, "90a", SMS).kernel == "one kernel, this one"
        assert chosen(torch.float32, 2048, 8192, 8192, True, SMS) is (precision == "highest")
        assert chosen(torch.float32, 2048, 8192, 8192, False, SMS, bare=True)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "text", ["add(mat0)", "mul(col0)", "mul(row0)", "gelu, tanh", "z, col_sum"]
)
def test_tf32_is_planned_for_what_has_been_run(text: str) -> None:
    """z and scalars, one result and z besides; the decision and the call are told the same."""
    sizes = (8192, 4096, 4096, False)
    problem = Problem(text, TF32, *sizes, False)
    assert plan_tf32.plan(problem, "90a", SMS) is None
    assert not library._chosen(TF32, *sizes, SMS, False, text)
    assert library._chosen(TF32, *sizes, SMS, False, None)


CHAIN = include("mul(0.5) clamp(-2.0, 2.0) gelu", "f32")
requires_nvcc = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")


@pytest.mark.sampled(10)  # each takes nvcc seconds
@requires_nvcc
@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("orders", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("tile", plan_f32.TILES)
def test_the_split_kernel_multiplies_on_tensor_cores_and_adds_outside(
    tile: plan_f32.Tile, orders: tuple[bool, bool], segments: int
) -> None:
    config = tile.config(256, segments)
    defines = plan_f32.defines(config, True, *orders)
    sass = disassembled(
        build_cubin("sm90_f32/gemm_sm90_f32.cu", defines, "90a", CHAIN)
    )  # refuses spills
    # Twice 32 of K: 2 steps of hi hi and 4 of the corrections, then additions to the sum.
    assert sass.count(f"HGMMA.64x{tile.n}x16.F32") == 12
    assert sass.count("FADD") >= tile.n
    assert sass.count("DMMA") >= tile.n // 8  # what is summed in float64
    assert ("fusepass_sum" in sass) is (segments > 1)


@requires_nvcc
@pytest.mark.parametrize("odd", [False, True])
def test_results_are_written_in_one_stretch_of_code(odd: bool) -> None:
    """Pairs where rows allow it; no branch keeps neighbours' arithmetic apart."""
    tile = plan_f32.TILES[0]
    defines = plan_f32.defines(tile.config(256), False, odd_n=odd)
    lines = disassembled(
        build_cubin("sm90_f32/gemm_sm90_f32.cu", defines, "90a", CHAIN)
    ).splitlines()
    stores = [i for i, line in enumerate(lines) if "STG.E" in line]
    pairs = [i for i in stores if "STG.E.64" in lines[i]]
    assert len(pairs) == (0 if odd else tile.n // 4)
    some = stores if odd else pairs
    assert len(some) == tile.n // (2 if odd else 4)
    assert not [line for line in lines[some[0] : some[-1]] if "BRA" in line]


@requires_nvcc
def test_tf32_results_are_written_in_one_stretch_of_code() -> None:
    """With 13 instructions an element for the chain, besides stores and their bounds' checks."""
    tile = next(t for t in plan_tf32.TILES if t.text == "128x128 pingpong")
    defines = plan_tf32.defines(f"tf32 {tile.text} cluster2", False)
    sass = disassembled(build_cubin("sm90/gemm_sm90_tf32.cu", defines, "90a", CHAIN))
    lines = [line for line in sass.splitlines() if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line)]
    pairs = [i for i, line in enumerate(lines) if "STG.E.64" in line]
    elements = tile.m * tile.n // 128
    assert len(pairs) == elements // 2 == len([line for line in lines if "STG." in line])
    stretch = lines[pairs[0] : pairs[-1]]
    assert not [line for line in stretch if "BRA" in line]
    assert len(stretch) < (13 + 2) * elements


@pytest.mark.sampled(2)
@requires_nvcc
@pytest.mark.parametrize("tile", plan_f32.TILES)
def test_two_matrices_come_by_tma_behind_the_products(tile: plan_f32.Tile) -> None:
    """Four loads are a stage's. A matrix is boxes of 32 columns, asked for early, then loaded."""
    sass = disassembled(
        build_cubin(
            "sm90_f32/gemm_sm90_f32.cu",
            plan_f32.defines(tile.config(256), False),
            "90a",
            include("add(mat0) mul(mat1)", "f32"),
        )
    )
    assert sass.count("UTMALDG") == 4 + 2 * tile.n // 32
    assert sass.count("UTMAPF") == 2 * tile.n // 32


@requires_nvcc
def test_what_splits_a_matrix_is_built_once_for_all_epilogues() -> None:
    sass = disassembled(plan_f32.split_cubin("90a"))
    for kernel in ("short", "long", "longer", "columns", "few_columns"):
        assert f"fusepass_split_{kernel}" in sass


@pytest.mark.sampled(2)
@requires_nvcc
@pytest.mark.parametrize("tile", plan_tf32.TILES)
def test_the_tf32_kernel_multiplies_on_tensor_cores(tile: plan_tf32.Tile) -> None:
    config = f"tf32 {tile.text} cluster2 stages{tile.stages} group8"
    defines = plan_tf32.defines(config, True)
    sass = disassembled(build_cubin("sm90/gemm_sm90_tf32.cu", defines, "90a", CHAIN))
    assert f"HGMMA.64x{tile.n}x8.F32.TF32" in sass
