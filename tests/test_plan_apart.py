"""Which epilogues' statements stand apart, and that the kernel has the same ones then."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from disassembly import disassembled
from emitted import include

from fusepass.ir import DType, Epilogue
from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import build_cubin
from fusepass.kernels.plan import sm90
from fusepass.kernels.plan.apart import stand_apart
from fusepass.kernels.plan.configs import CONFIGS
from fusepass.kernels.plan.demand import Demand

CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"
LARGE = (50432, 3072)


def of(text: str, dtype: DType = DType.BF16, with_preact: bool = False) -> Demand:
    found = Demand.of(Epilogue.parse(text), dtype, with_preact)
    assert isinstance(found, Demand)
    return found


def taken(text: str, m: int, n: int, k: int) -> tuple[str, bool]:
    """The configuration, and whether statements stand apart."""
    config = sm90.choose(m, n, k, demand=of(text))
    assert config is not None
    return str(config), stand_apart(config, (m, n, k), of(text), 132)


def test_which_programs_from_which_k_on() -> None:
    for dtype in (DType.BF16, DType.F16):
        assert of(CHAIN, dtype).apart == of("clamp(-1.0, 0.5) gelu", dtype).apart == 768
        assert of("gelu_tanh", dtype).apart == of("mul($0) gelu_tanh", dtype).apart == 1024
        for text in ("", "gelu", "clamp(-3.0, 2.0) gelu", "silu", "clamp(0.0, inf)"):
            assert of(text, dtype).apart == 0, text
        for text in (f"{CHAIN} mul(col0)", f"{CHAIN} add(mat0)", "gelu_tanh mul(z1)"):
            assert of(text, dtype).apart == 0, text
        assert of(CHAIN, dtype, with_preact=True).apart == of(f"{CHAIN}, z", dtype).apart == 0


def test_where_products_beside_last_longer() -> None:
    """Two consumers in turns, K long enough, and many tiles a multiprocessor."""
    chain, tanh = of(CHAIN), of("gelu_tanh")
    for config in CONFIGS:
        turns = config.pingpong and config.turns == 2
        assert stand_apart(config, (*LARGE, 768), chain, 132) == turns, config
        assert not stand_apart(config, (*LARGE, 760), chain, 132), config
        assert not stand_apart(config, (*LARGE, 1016), tanh, 132), config
        assert stand_apart(config, (*LARGE, 1024), tanh, 132) == turns, config
        assert not stand_apart(config, (200, 1024, 768), chain, 132), config


def test_what_is_taken_was_the_fastest_that_was_timed() -> None:
    """At these sizes (benchmarks/NOTES.md)."""
    plain = "128x192 pingpong cluster1 stages4 group14"
    swapped = "128x192 pingpong cluster2 stages4 group12 swapped"
    for text, apart in ((CHAIN, True), ("gelu_tanh", False)):
        assert taken(text, 8192, 3072, 768) == taken(text, *LARGE, 768) == (plain, apart)
        assert taken(text, 16384, 4096, 1024) == (swapped, True)
    for text in ("gelu", "mul(0.5) gelu", "mul(-3.0) gelu"):
        assert taken(text, 8192, 3072, 768) == taken(text, *LARGE, 768) == (plain, False)
        assert taken(text, 16384, 4096, 1024)[0] != plain != taken(text, 1576, 3072, 768)[0]
    assert taken("silu", *LARGE, 768)[0] != plain
    assert not of("gelu", with_preact=True).gelu and not of("gelu add(mat0)").gelu


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")
def test_the_same_instructions_in_another_order() -> None:
    config = sm90.Config.parse("128x192 pingpong cluster1 stages4 group14")
    packed, apart = (_instructions(config, each) for each in (False, True))
    assert Counter(packed) == Counter(apart)
    assert packed != apart


def _instructions(config: sm90.Config, apart: bool) -> list[str]:
    """Those that compute, in their order."""
    defines = sm90.defines(config, True, False, False, apart=apart)
    cubin = build_cubin("sm90/gemm_sm90.cu", defines, "90a", include(CHAIN, "bf16"))
    return re.findall(r"\b(?:FFMA|FMUL|FADD|FMNMX|MUFU|F2FP|EXIT)\b", disassembled(cubin))
