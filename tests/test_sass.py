"""The 16-bit GEMM compiles to what makes it fast: tensor cores fed by TMA, and no spill."""

from __future__ import annotations

import dataclasses
import re

import pytest
from disassembly import disassembled
from emitted import include

from fusepass.ir import DType, Epilogue
from fusepass.kernels import pointwise
from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import build_cubin
from fusepass.kernels.plan import several
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.configs import CONFIGS_WITH_MATRICES

pytestmark = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")


def listing(config: plan.Config, text: str, bf16: bool, kn: bool, preact: bool) -> str:
    """The disassembly; the build itself refuses spills and stack frames."""
    defines, epilogue = plan.defines(config, bf16, kn, preact), _include(text, bf16)
    listed = disassembled(build_cubin("sm90/gemm_sm90.cu", defines, "90a", epilogue))
    assert "fusepass_gemm" in listed
    return listed


def _include(text: str, bf16: bool) -> str:
    return include(text, "bf16" if bf16 else "f16")


def built(config: plan.Config, text: str, bf16: bool, kn: bool, preact: bool) -> list[str]:
    """The names of the instructions."""
    return instructions_of(listing(config, text, bf16, kn, preact))


def instructions_of(listed: str) -> list[str]:
    return re.findall(r"\b[A-Z][A-Z0-9_]+(?:\.[A-Za-z0-9_]+)*\b", listed)


def first(pingpong: bool, multiple: int = 8) -> plan.Config:
    fits = (c for c in plan.CONFIGS if c.pingpong == pingpong and c.tile_n % multiple == 0)
    return next(fits)


@pytest.mark.parametrize(
    ("config", "text", "bf16", "kn", "preact"),
    [
        (first(True), "mul(0.5) clamp(-2.0, 2.0) gelu", True, False, False),
        (first(False, 64), "mul(0.5) gelu_tanh", False, True, True),
        (first(True), "silu mul(z1)", True, False, False),
        (first(False, 64), "gelu mul(z1)", False, True, False),
    ],
    ids=[
        "ping-pong bf16",
        "cooperative fp16 [K, N] with z",
        "two weights",
        "two weights, cooperative fp16 [K, N]",
    ],
)
def test_tensor_cores_and_tma(
    config: plan.Config, text: str, bf16: bool, kn: bool, preact: bool
) -> None:
    instructions = built(config, text, bf16, kn, preact)
    multiply = f"HGMMA.64x{config.tile_n}x16.F32" + (".BF16" if bf16 else "")
    blocks = config.tile_m // (64 if config.pingpong else 64 * config.consumers)
    # 64 of K are 4 steps; the loop may be unrolled but no product is made twice.
    products = [i for i in instructions if i.startswith(multiply)]
    assert products and len(products) % (4 * blocks) == 0
    assert {i for i in instructions if i.startswith("HGMMA")} == set(products)
    names = {i.split(".")[0] for i in instructions}
    assert {"UTMALDG", "UTMASTG", "USETMAXREG", "SYNCS", "STSM"} <= names
    # No local memory, no call of a subroutine, no product on the ordinary cores.
    assert not names & {"LDL", "STL", "CALL", "HMMA"}
    # x and w are loaded by TMA, the outputs stored by it: none of the rest is of 16 bytes.
    assert not [i for i in instructions if re.match(r"(LDG|STG)\..*128", i)]


@pytest.mark.sampled(10)  # each takes nvcc seconds
@pytest.mark.parametrize("config", plan.CONFIGS, ids=str)
def test_no_configuration_spills_or_lets_products_wait(config: plan.Config) -> None:
    """The build refuses spills and stack frames, and the plan then takes a slower configuration.

    Where ptxas would define accumulators between products it has each wait for the one before it
    (gsb0); otherwise the last of a step says so.
    """
    kn = config.tile_n % 64 == 0 or config.swapped
    listed = listing(
        config, "div(3.0) clamp(-1.0, 3.0) mul(0.5) gelu", False, kn, config.turns == 2
    )
    products = [line for line in listed.splitlines() if "HGMMA" in line]
    assert [("gsb0" in line) for line in products] == [False] * (len(products) - 1) + [True]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("config", [c for c in plan.CONFIGS if not several.why_not(c)], ids=str)
def test_several_weights_cost_no_product_a_wait(config: plan.Config) -> None:
    """Nor a register too many: what a tile is of is looked up once a tile."""
    defines = several.defines(config, True, config.swapped)
    lines = disassembled(build_cubin("sm90/gemm_sm90.cu", defines, "90a", _include("", True)))
    products = [line for line in lines.splitlines() if "HGMMA" in line]
    assert [("gsb0" in line) for line in products] == [False] * (len(products) - 1) + [True]
    assert {"UTMALDG", "UTMASTG"} <= {i.split(".")[0] for i in instructions_of(lines)}


@pytest.mark.sampled(12)
@pytest.mark.parametrize("config", plan.CONFIGS, ids=str)
def test_a_batch_norm_behind_a_scale_fits_beside_the_accumulators(config: plan.Config) -> None:
    text = "mul(col0) sub(col1) mul(col2:f32) mul(col3) add(col4)"
    lines = listing(config, text + " mul(col5)" * (config.turns == 2), True, False, False)
    assert "HGMMA" in lines


@pytest.mark.sampled(3)  # by which each operand is seen both ways
@pytest.mark.parametrize("swapped", [False, True], ids=["", "swapped"])
@pytest.mark.parametrize("x_is_km", [False, True], ids=["x [M, K]", "x [K, M]"])
@pytest.mark.parametrize("w_is_kn", [False, True], ids=["w [N, K]", "w [K, N]"])
def test_operands_are_read_as_they_lie(w_is_kn: bool, x_is_km: bool, swapped: bool) -> None:
    config = dataclasses.replace(first(True, 64), swapped=swapped)
    defines = plan.defines(config, True, w_is_kn, False, x_is_km)
    cubin = build_cubin("sm90/gemm_sm90.cu", defines, "90a", _include("", True))
    lines = disassembled(cubin).splitlines()
    products = [line for line in lines if "HGMMA" in line]
    a, b = (w_is_kn, x_is_km) if swapped else (x_is_km, w_is_kn)
    assert products
    assert all(("tnspA" in line, "tnspB" in line) == (a, b) for line in products)
    # Turned back on the way out.
    stores = [line for line in lines if "STSM" in line]
    assert stores and all((".MT88" in line) == swapped for line in stores)


def test_an_epilogue_costs_its_own_instructions_only() -> None:
    """GELU's power is one instruction an element; without GELU there is none."""
    config = first(True)
    with_gelu = built(config, "gelu", True, False, False)
    without = built(config, "mul(0.5)", True, False, False)
    assert any(i.startswith("MUFU.EX2") for i in with_gelu)
    assert not any(i.startswith("MUFU.EX2") for i in without)
    assert len(without) < len(with_gelu)


@pytest.mark.parametrize("config", [first(True), first(False, 64)], ids=str)
def test_constants_take_no_register_of_a_thread(config: plan.Config) -> None:
    """The tensor cores' accumulators pass through the same registers, and reading there costs."""
    clamp = re.compile(r"FMNMX\.NAN R\d+, R\d+(?:\.reuse)?, (U?R)\d+")
    chain = "mul(0.5) clamp(-2.0, 2.0) gelu"
    constants = clamp.findall(listing(config, chain, True, False, False))
    threads = 128 * (1 if config.pingpong else config.consumers)
    assert constants == ["UR"] * (2 * config.tile_m * config.tile_n // threads)
    # What is known only when the kernel runs is loaded from memory, once a thread.
    operands = "mul($0) clamp($1, $2) gelu"
    loads = [len(re.findall(r"\bLDG\.", listing(config, text, True, False, False)))
             for text in (chain, operands)]  # fmt: skip
    assert loads[0] == 0 < loads[1] <= 4 * 3  # of four dtypes


@pytest.mark.parametrize("config", [first(True), first(False, 64)], ids=str)
def test_where_a_stage_lies_is_worked_out_once_a_warp(config: plan.Config) -> None:
    lines = listing(config, "mul(0.5) clamp(-2.0, 2.0) gelu", True, False, False).splitlines()
    products = [i for i, line in enumerate(lines) if "HGMMA" in line]
    assert len(products) >= 4  # 64 of K
    loop = lines[products[0] : products[-1]]
    assert not [line for line in loop if "R2UR" in line]


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16], ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("text", ["mul(-3.0) gelu", "mul($0) gelu", "square neg mul(2.0) gelu"])
def test_no_half_of_a_product_that_overflows_is_computed_without_it(
    text: str, dtype: DType
) -> None:
    """GELU of a product that is -inf is NaN; its half alone would be finite (FMUL.D2)."""
    cubin, _ = pointwise.build(Epilogue.parse(text), dtype, False, 0, "90a")
    listed = disassembled(cubin)
    assert "FMUL" in listed
    for target in re.findall(r"FMUL\.D2 (R\d+)", listed):
        assert not re.search(rf"FADD R\d+, {target}(\.reuse)?, \|{target}", listed)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("config", CONFIGS_WITH_MATRICES, ids=str)
def test_matrices_come_by_tma_and_nothing_spills(config: plan.Config) -> None:
    """No thread loads an element of a matrix from global memory; LDSM reads what TMA brought."""
    listed = listing(config, "mul(col0) add(mat0)", True, False, False)
    names = {i.split(".")[0] for i in instructions_of(listed)}
    assert {"LDSM", "STSM", "UTMALDG", "UTMASTG", "LDGSTS"} <= names
    assert not names & {"LDL", "STL", "CALL", "HMMA"}
    turned = [line for line in listed.splitlines() if "LDSM" in line]
    assert all((".MT88" in line) == config.swapped for line in turned)
