"""One short launch of every kernel that a plan can choose, which sanitize.py runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import operand_cases
import torch
from forced_gemm import CHAIN, ORDERS
from launch_kinds import (
    BF16,
    F16,
    F32,
    NAMES,
    SPLIT,
    Gemm,
    InParts,
    Pointwise,
    Several,
)
from launch_widened import Widened
from test_gated_kernel import VARIANTS as GATED
from test_linears import VARIANTS as SEVERAL
from test_rope_kernel import CASES as ROPE
from test_rope_kernel import KINDS as HEADS

from fusepass import Epilogue
from fusepass.ir import DType
from fusepass.kernels.plan import f32, few, sm90, tf32
from fusepass.kernels.plan.configs import CONFIGS, CONFIGS_WITH_MATRICES
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.narrow import NARROW_TILES

_SM90, _TF32 = "sm90/gemm_sm90.cu", "sm90/gemm_sm90_tf32.cu"
_LARGE = (1 << 14, 1 << 14, 1 << 14)  # a problem that all tiles are for
_MATRICES = "mul(col0) mul(row0) add(mat0)"
_SUM = "v0 = mul(mat0); v0, v0 col_sum"
_GATE = "silu mul(z1)"

Launch = Gemm | Pointwise | Several | Widened | InParts


def _edges(config: sm90.Config) -> tuple[int, int, int]:
    rows, columns, k = 2 * config.tile_m + 9, config.tile_n + 8, 64 * config.split + 72
    return (columns, rows - 1, k) if config.swapped else (rows, columns, k)


def _sixteen_bits() -> Iterator[Gemm]:
    """Every configuration in every order that it has, and with what it reads and stores."""
    tiles = [(c, orders) for c in CONFIGS for orders in ORDERS]
    for i, (config, orders) in enumerate([*tiles, *((c, ORDERS[0]) for c in NARROW_TILES)]):
        dtype = (BF16, F16)[i % 2]
        for text, preact in (("", False), (CHAIN, False), (CHAIN, True)):
            yield from _sm90("16 bits", config, text, dtype, orders, preact)
    for i, (config, orders) in enumerate(itertools.product(CONFIGS_WITH_MATRICES, ORDERS)):
        yield from _sm90("16 bits", config, "add(mat0)", (BF16, F16)[i % 2], orders)
    for case in operand_cases.cases(1):
        yield from _sm90("16 bits", case.config, case.text, case.dtype, (case.w_is_kn, False))


def _sm90(
    family: str,
    config: sm90.Config,
    text: str,
    dtype: torch.dtype,
    orders: tuple[bool, bool],
    preact: bool = False,
) -> Iterator[Gemm]:
    """The launch, if there is such a kernel."""
    demand = Demand.of(Epilogue.parse(text), DType(NAMES[dtype]), preact)
    assert isinstance(demand, Demand), demand
    there = sm90.why_not(config, demand) is None
    if there and sm90.fits(config, _LARGE, *orders, 132, demand):
        macros = sm90.defines(config, dtype == BF16, orders[0], preact, orders[1])
        shape = _edges(config)
        yield Gemm(family, str(config), _SM90, macros, text, dtype, shape, orders, preact)


def _gated() -> Iterator[Gemm]:
    for v in GATED:
        yield from _sm90("gated", v.config, v.whole, v.dtype, (v.w_is_kn, v.x_is_km))


def _several() -> Iterator[Several]:
    """A weight of less than a tile, one of a tile and some columns, one of two."""
    for v in SEVERAL:
        m, _, k = _edges(v.config)
        tile = v.config.tile_m if v.config.swapped else v.config.tile_n
        shape = (-(-m // 8) * 8, (tile // 2 // 8 * 8, tile // 8 * 8 + 8, 2 * tile // 8 * 8), k)
        yield Several(v.config, v.dtype, shape, (v.w_is_kn, v.x_is_km))
    for config, dtype in itertools.product(few.SEVERAL, (BF16, F16)):
        unit = 8 if config.w_is_kn else 1
        k = 256 * config.split + 72  # the last block has a part of a step
        rows = (config.rows - 1, (64 - unit, 64 + unit, 128), k)
        yield Several(config, dtype, rows, (config.w_is_kn, False))


def _heads() -> Iterator[Gemm]:
    """What RoPE exchanges, beside tables."""
    for case in ROPE:
        kind, config = case.kind, case.config
        n = kind.columns * kind.heads(config.tile_n // kind.columns + 1)
        shape = (2 * config.tile_m + 9, n, 64 * config.stages + 72)
        for launch in _sm90("heads", config, case.text, case.dtype, ORDERS[0]):
            yield replace(launch, shape=shape, table=kind.table)


def _float32() -> Iterator[Gemm]:
    """Tiles, segments, clusters and orders; and every kernel that splits rows or columns."""
    programs = (("", False), (CHAIN, True), (_MATRICES, False), (_SUM, False))
    for i, tile in enumerate(f32.TILES):
        for segments in (1, 3):
            for j, orders in enumerate(ORDERS):
                for p, (text, preact) in enumerate(programs):
                    m = (100, 300, 300, 100)[p]
                    config = tile.config(m, segments)
                    macros = f32.defines(config, preact, *orders)
                    for hostile in (False, True):
                        shape = (m, tile.n + 66, 777 + 64 * i + j)
                        what = (config, SPLIT, macros, text, F32, shape, orders, preact)
                        yield Gemm("float32", *what, hostile=hostile)
                    if p == j:
                        odd = f32.defines(config, preact, *orders, True)
                        shape = (m, tile.n + 65, 777 + 64 * i + j)
                        yield Gemm("float32", config, SPLIT, odd, text, F32, shape, orders, preact)
    narrow = f32.TILES[1]
    for k in (40, 600, 2000, 9000):
        for orders in ORDERS:
            config = narrow.config(140)
            macros = f32.defines(config, False, *orders)
            yield Gemm("float32", config, SPLIT, macros, "", F32, (140, 66, k), orders)
    for tile, orders in itertools.product(f32.TILES, ORDERS):
        config = tile.config(140, 6, 3)
        macros = f32.defines(config, True, *orders)
        what = (config, SPLIT, macros, CHAIN, F32, (140, tile.n + 66, 1000), orders, True)
        yield from (Gemm("float32", *what, hostile=hostile) for hostile in (False, True))


def _in_parts() -> Iterator[InParts]:
    for km in (False, True):
        yield InParts((65236, 514, 512), (False, km))
    yield InParts((5100, 9004, 900), (True, True), over_x=True)


def _tf32() -> Iterator[Gemm]:
    for tile, config in zip(tf32.TILES, _tf32_configs(), strict=True):
        for text, preact in (("", False), (CHAIN, True)):
            shape = (4 * tile.m + 9, tile.n + 6, 140)
            macros = tf32.defines(config, preact)
            yield Gemm("TF32", config, _TF32, macros, text, F32, shape, preact=preact, tf32=True)


def _tf32_configs() -> list[str]:
    """In the order of the tiles."""
    found = tf32.candidates(4096, 4096, 4096, 132)
    return [next(c for c in found if tile.text in c) for tile in tf32.TILES]


def _few_rows() -> Iterator[Gemm]:
    for config in few.CONFIGS:
        for dtype in (F32,) if config.float32 else (BF16, F16):
            programs = [("", False), (CHAIN, True), (_MATRICES, False)]
            programs += [(_GATE, False)] * (not config.float32)
            for text, preact in programs:
                macros = config.defines(dtype == BF16, preact)
                k = 8204 if config.chain else 257 * config.unit
                shape = (config.rows, config.batch + 4 * config.unit, k)
                what = (str(config), config.source, macros, text, dtype, shape)
                orders = (config.w_is_kn, False)
                yield Gemm("few rows", *what, orders, preact, "fusepass_few_rows")


def _pointwise() -> Iterator[Pointwise]:
    for dtype in (BF16, F16, F32, torch.float64):
        yield from (Pointwise(CHAIN, dtype, numerics) for numerics in ("accurate", "bitwise"))
        for text in (_MATRICES, _SUM, _GATE, "gelu, tanh"):
            yield Pointwise(text, dtype)
    for kind, dtype in zip(HEADS, itertools.cycle((BF16, F16, F32, torch.float64)), strict=False):
        yield Pointwise(kind.text(), dtype, n=kind.columns * kind.heads(3), table=kind.table)


def launches() -> list[Launch]:
    """All of them; those of a family follow each other."""
    batches = [Widened(m, n, k) for m, n in ((7, 33), (129, 65)) for k in (8, 40, 64, 256)]
    kinds: Sequence[Iterator[Gemm]] = (
        _sixteen_bits(), _gated(), _heads(), _float32(), _tf32(), _few_rows(),
    )  # fmt: skip
    gemms = {str(launch): launch for kind in kinds for launch in kind}
    return [*gemms.values(), *_several(), *_in_parts(), *batches, *_pointwise()]
