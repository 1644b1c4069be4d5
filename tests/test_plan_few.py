"""The plans of few rows: what runs which problem, without a device."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from disassembly import disassembled

from fusepass import kernels
from fusepass.kernels import library
from fusepass.kernels.build import toolchain
from fusepass.kernels.calls import Call
from fusepass.kernels.plan import few as plan_few
from fusepass.kernels.plan import narrow as plan_narrow
from fusepass.kernels.plan import several as plan_several
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.few import CONFIGS, choose
from fusepass.kernels.plan.narrow import NARROW_TILES, narrow
from fusepass.kernels.plan.problem import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    TF32,
    Problem,
    plan_code,
)
from fusepass.op.presplit import splits

NVCC = toolchain.find_nvcc()
SMS = 132
SIZES = (512, 1024, 4096, 5120, 8192, 16384)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32])
@pytest.mark.parametrize("w_is_kn", [False, True])
def test_a_configuration_holds_its_rows(dtype: int, w_is_kn: bool) -> None:
    for m in range(1, 70):
        config = choose(dtype, m, 4096, 1024, w_is_kn)
        if config is not None:
            assert m <= config.rows and config.w_is_kn == w_is_kn
            assert config.float32 == (dtype == FLOAT32)
        tile = narrow(m, 16384, 4096, SMS)
        assert (tile is None) == (m > plan_narrow.MOST_ROWS)
        assert tile is None or (tile.swapped and m <= tile.tile_n)


def test_each_configuration_is_chosen_somewhere() -> None:
    """What no problem gets need not be there."""
    columns = (*SIZES, 50257)
    problems = [(m, n, k) for m in range(1, 65) for n in columns for k in (*SIZES, 20480)]
    chosen = {
        choose(dtype, *problem, kn, False, gated)
        for dtype in (BFLOAT16, FLOAT32)
        for problem in problems
        for kn in (False, True)
        for gated in (False, True)
    }
    assert chosen == {*CONFIGS, None}
    assert {narrow(*problem, SMS) for problem in problems} == {*NARROW_TILES, None}


@pytest.mark.parametrize(
    ("dtype", "m", "n", "k", "w_is_kn", "x_is_km"),
    [
        (BFLOAT16, 1, 4096, 1020, False, False),  # K of no whole 16 bytes
        (FLOAT32, 1, 4096, 1022, False, False),
        (FLOAT32, 1, 4098, 1024, True, False),  # N of a weight [K, N]
        (BFLOAT16, 16, 4096, 1024, True, False),  # one of 16 bits, of more than 8 rows
        (BFLOAT16, 1, 3072, 2048, True, False),
        (FLOAT32, 1, 1024, 4096, True, False),  # its long K
        (BFLOAT16, 4, 4096, 1024, False, True),
        (BFLOAT16, 8, 4096, 4096, False, False),  # the tiles'
        (FLOAT64, 1, 4096, 1024, False, False),
        (TF32, 1, 4096, 1024, False, False),
        (FLOAT32, 17, 4096, 1024, False, False),
        (FLOAT32, 1, 4096, 16384, False, False),  # sums of two levels
        (BFLOAT16, 0, 4096, 1024, False, False),
    ],
)
def test_what_is_left(dtype: int, m: int, n: int, k: int, w_is_kn: bool, x_is_km: bool) -> None:
    assert choose(dtype, m, n, k, w_is_kn, x_is_km) is None


# Microseconds behind another's kernel in a decoding step, ours and theirs (NOTES-few-rows.md).
@pytest.mark.parametrize(
    ("m", "n", "k", "w_is_kn", "gated", "bare", "split"),
    [
        (1, 1024, 1024, True, False, True, 4),  # 4.6, 5.4
        (16, 1024, 1024, True, False, False, 4),  # 4.7, 5.1
        (1, 1024, 4096, True, False, False, 8),  # 5.7, 8.5
        (16, 1024, 4096, True, False, True, 8),  # 6.7, 7.9
        (1, 4096, 1024, True, False, False, 4),  # 6.3, 7.0 with the epilogue's kernel
        (1, 4096, 1024, True, False, True, 0),
        (16, 4096, 1024, True, False, False, 0),  # 7.8, 7.1
        (1, 3072, 1024, True, False, True, 0),  # 5.7, 5.4
        (16, 3072, 1024, True, False, True, 0),  # 6.0, 5.2
        (1, 512, 2048, False, False, True, 8),
        (16, 512, 2048, False, False, True, 8),  # 2.8 and 3.6, 5.7
        (16, 2048, 2048, False, False, True, 0),  # 6.9, 5.7
        (16, 2048, 8192, False, False, False, 0),  # 14.4, 13.7
        (16, 8192, 2048, False, True, False, 1),  # 19.3, 22.5 with the epilogue's kernel
        (16, 8192, 2048, True, True, False, 0),
        (16, 50257, 1024, False, False, True, 1),  # 27, 125
    ],
)
def test_what_goes_in_strips(
    m: int, n: int, k: int, w_is_kn: bool, gated: bool, bare: bool, split: int
) -> None:
    config = choose(BFLOAT16, m, n, k, w_is_kn, False, gated, bare)
    assert (config.split if config is not None else 0) == split


@pytest.mark.parametrize("config", plan_few.STRIPS, ids=str)
def test_strips_have_room_for_x(config: plan_few.Config) -> None:
    """In as many blocks of a multiprocessor as were planned, where they are chosen."""
    for m, n, k in product((8, 16), (512, 1000, 8192, 50257), range(1024, 4097, 8)):
        if n % 8 == 0 or not config.w_is_kn:
            gated = config.blocks == 1
            if choose(BFLOAT16, m, n, k, config.w_is_kn, gated=gated) == config:
                used = config.blocks * plan_few.shared_bytes(config, k, 1 + gated)
                assert used <= 227 * 1024, f"{m}x{k}->{n}"


@pytest.mark.parametrize(("m", "widths", "k", "split"), [
    (1, (2048, 512, 512), 2048, 4),  # 48 strips by 4: at most two blocks of a multiprocessor
    (16, (2048, 512, 512), 2048, 4),
    (8, (4096, 1024, 1024), 4096, 2),
    (1, (512, 512), 2048, 8),
    (1, (4096, 4096, 4096), 4096, 0),  # as many strips as blocks: each weight by itself
    (17, (512, 512), 2048, 0),
    (1, (512, 512), 512, 0),
    (1, (512, 512), 8192, 0),
    (1, (512, 512), 2044, 0),  # no multiple of 16 bytes
])  # fmt: skip
def test_several_weights_of_one_x_go_in_strips(
    m: int, widths: tuple[int, ...], k: int, split: int
) -> None:
    config = plan_few.several(m, widths, k)
    assert (config.split if config is not None else 0) == split
    question = (m, widths, k, False, 132, False)
    assert plan_several.choose(*question) == config
    times = plan_several.times(*question)
    assert (times is not None) == (config is not None)
    assert times is None or times[0] < times[1]
    assert plan_several.choose(m, widths, k, False, 132, True) is None  # x stored [K, M]


@pytest.mark.parametrize("config", plan_few.SEVERAL, ids=str)
def test_strips_of_several_weights_have_room_for_x(config: plan_few.Config) -> None:
    for m, n, k in product((8, 16), (256, 520, 2048, 4096), range(1024, 4097, 8)):
        if plan_few.several(m, (n, 64), k, config.w_is_kn) == config:
            assert 2 * plan_few.shared_bytes(config, k, 1) <= 227 * 1024, f"{m}x{k}->{n}"


def test_odd_n_is_taken() -> None:
    """A vocabulary of 50257, for as many rows as the kernel has columns of products."""
    assert choose(BFLOAT16, 1, 50257, 1024) == choose(BFLOAT16, 8, 50257, 1024) == plan_few._SHORT


@pytest.mark.parametrize(("n", "k"), [(2048, 2048), (4096, 1024), (1024, 4096)])
def test_up_to_eight_rows_are_taken_where_no_tile_is(n: int, k: int) -> None:
    """Which cuBLAS got, though 8x4096->4096 takes 0.81 of its time in this kernel, too."""
    for m in (1, 5, 8, 9):
        assert narrow(m, n, k, SMS) is None
        assert library._chosen(BFLOAT16, m, n, k, False, SMS, False, "") is (m <= 8)


# benchmarks/NOTES-few-rows.md: times over cuBLAS's.
@pytest.mark.parametrize(
    ("m", "n", "k", "bare", "taken"),
    [
        (1, 16384, 4096, True, True),  # 0.97
        (8, 4096, 4096, True, True),  # 0.79
        (8, 8192, 8192, True, False),  # 1.01
        (8, 8192, 8192, False, True),  # and an epilogue's kernel is 1.06
        (16, 16384, 4096, False, True),  # 0.97
        (16, 16384, 4096, True, False),  # 0.98, and its start behind other kernels
        (16, 128256, 2048, True, True),  # 0.96
        (32, 20480, 5120, False, True),  # 0.98
        (48, 11008, 4096, False, False),  # 1.09
        (64, 16384, 4096, False, True),  # 0.97
    ],
)
def test_what_is_taken(m: int, n: int, k: int, bare: bool, taken: bool) -> None:
    text = "" if bare else None
    assert library._chosen(BFLOAT16, m, n, k, False, SMS, False, text) is taken


def test_the_border_to_more_rows_is_the_models() -> None:
    assert plan.choose(plan_narrow.MOST_ROWS, 16384, 4096) in NARROW_TILES
    assert plan.choose(plan_narrow.MOST_ROWS + 1, 16384, 4096) not in NARROW_TILES


@pytest.mark.parametrize(("m", "wanted"), [(4, False), (2048, True)])
def test_a_weight_is_split_only_for_more_rows(
    m: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "hopper_sms", lambda device: SMS)
    shape = {"m": m, "n": 4096, "k": 4096, "w_is_kn": False}
    given = {"with_preact": False, "numerics": "accurate", "device": torch.device("cuda")}
    assert splits(Call("linear", "gelu", torch.float32, **shape, **given)) is wanted


@pytest.mark.sampled(2)  # each takes nvcc seconds
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize(
    ("epilogue", "dtype", "m", "w_is_kn", "with_preact"),
    [
        ("mul(0.5) clamp(-2.0, 2.0) gelu", BFLOAT16, 1, False, True),
        ("silu mul(z1)", FLOAT16, 4, False, False),
        ("mul(col0) add(mat0)", BFLOAT16, 3, False, False),
        ("gelu mul($0)", FLOAT32, 16, False, True),
        ("gelu mul($0)", FLOAT32, 4, False, True),
        ("add(mat0)", FLOAT32, 1, True, False),
        ("mul(0.5) clamp(-2.0, 2.0) gelu", BFLOAT16, 8, True, True),
        ("mul(col0) add(mat0)", FLOAT16, 16, True, False),
    ],
)
def test_kernels_compile_without_spilling(
    epilogue: str, dtype: int, m: int, w_is_kn: bool, with_preact: bool
) -> None:
    k = 65536 // m if dtype == FLOAT32 and not w_is_kn else 1024  # the longest, of two levels
    problem = Problem(epilogue, dtype, m, 1024, k, w_is_kn, with_preact)
    answer = library.plan_for(problem, "90a", SMS)
    assert answer is not None
    config, cubin, name = answer.split("|")
    assert config.startswith("few rows") and name == "fusepass_few_rows"
    # Of float32 the last sums, of a block's warps, are added in float64.
    assert ("DADD" in disassembled(Path(cubin))) is (dtype == FLOAT32)


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("m", [16, 32, 64])
def test_narrow_tiles_compile_without_spilling(m: int) -> None:
    problem = Problem("mul(0.5) gelu", BFLOAT16, m, 16384, 4096, False, True)
    answer = library.plan_for(problem, "90a", SMS)
    assert answer is not None and answer.split("|")[0] in map(str, NARROW_TILES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_column_sums_are_left(dtype: torch.dtype) -> None:
    """The decision is told the same as the call."""
    problem = Problem("z, col_sum", plan_code(dtype), 1, 1024, 1024, False, False)
    assert plan_few.choose(problem.dtype, 1, 1024, 1024) is not None
    assert library.plan_for(problem, "90a", SMS) is None
    assert not library.chosen_program(dtype, 1, 1024, 1024, False, SMS, False, "z, col_sum")


def test_few_rows_beside_a_matrix_are_asked_for() -> None:
    """A residual behind few rows is a site: its kernel reads operands. sin has no place in one."""
    rest = (4096, 4096, False, 132, False)
    for m in (1, 4):
        assert choose(BFLOAT16, m, 4096, 4096) is not None
        assert library.chosen_program(torch.bfloat16, m, *rest, "add(mat0)")
        assert not library.chosen_program(torch.bfloat16, m, *rest, "sin add(mat0)")


@pytest.mark.parametrize("m", [16, 32, 64])
def test_narrow_tiles_read_no_matrix(m: int) -> None:
    """They have not been run so: two kernels, as the decision is told."""
    rest = (16384, 4096, False, SMS, False)
    assert library.chosen_program(torch.bfloat16, m, *rest, "mul(col0) gelu")
    assert not library.chosen_program(torch.bfloat16, m, *rest, "add(mat0)")
    problem = Problem("add(mat0)", BFLOAT16, m, 16384, 4096, False, False)
    assert library.plan_for(problem, "90a", SMS) is None
