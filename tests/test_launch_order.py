"""A kernel of ours lets those behind it start when it has waited for those ahead, not before."""

from __future__ import annotations

import re

import pytest
from disassembly import disassembled
from emitted import include

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import build_cubin
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import few as plan_few
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan import tf32 as plan_tf32

pytestmark = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")

_PINGPONG = next(c for c in plan.CONFIGS if c.pingpong)
_COOPERATIVE = next(c for c in plan.CONFIGS if not c.pingpong)
_KERNELS = {
    "16-bit ping-pong": ("sm90/gemm_sm90.cu", plan.defines(_PINGPONG, True, False, False), "bf16"),
    "16-bit cooperative": (
        "sm90/gemm_sm90.cu",
        plan.defines(_COOPERATIVE, True, False, False),
        "bf16",
    ),
    "TF32": ("sm90/gemm_sm90_tf32.cu", plan_tf32.defines(plan_tf32.TILES[0].text, False), "f32"),
    "float32": (
        "sm90_f32/gemm_sm90_f32.cu",
        plan_f32.defines(plan_f32.TILES[0].config(256), False),
        "f32",
    ),
    "float32, K in segments": (
        "sm90_f32/gemm_sm90_f32.cu",
        plan_f32.defines(plan_f32.TILES[1].config(256, 4), False, True, True),
        "f32",
    ),
    "the split": ("sm90_f32/split_sm90.cu", {}, ""),
}

# griddepcontrol.wait and griddepcontrol.launch_dependents as the assembler names them.
_ORDER = re.compile(r"\.text\.(\w+):|\b(ACQBULK|PREEXIT)\b|Function : (\w+)")


def _orders(sass: str) -> dict[str, list[str]]:
    """These instructions of each kernel as they lie."""
    orders: dict[str, list[str]] = {}
    order: list[str] = []
    for section, instruction, function in _ORDER.findall(sass):
        if instruction:
            order.append(instruction)
        else:
            order = orders.setdefault(section or function, [])
    return orders


@pytest.mark.sampled(2)  # each takes nvcc seconds
@pytest.mark.parametrize("kernel", _KERNELS)
def test_dependents_start_after_the_wait(kernel: str) -> None:
    source, defines, dtype = _KERNELS[kernel]
    epilogue = include("mul(0.5)", dtype) if dtype else ""
    orders = _orders(disassembled(build_cubin(source, defines, "90a", epilogue)))
    assert any("PREEXIT" in order for order in orders.values())
    for order in orders.values():
        # A producer may wait elsewhere; the thread that lets others start has waited right before.
        for i, instruction in enumerate(order):
            assert instruction == "ACQBULK" or order[max(i - 1, 0)] == "ACQBULK", orders


@pytest.mark.parametrize(
    "config", [plan_few.CONFIGS[0], plan_few.STRIPS[0], plan_few.CONFIGS[-1]], ids=str
)
def test_few_rows_wait_first_and_let_others_start_at_their_last_batch(
    config: plan_few.Config,
) -> None:
    """All threads wait, once, before they read; each of them may be the one that lets others."""
    dtype = "f32" if config.float32 else "bf16"
    cubin = build_cubin(config.source, config.defines(True), "90a", include("mul(0.5)", dtype))
    (order,) = filter(None, _orders(disassembled(cubin)).values())
    assert order[0] == "ACQBULK" and {*order[1:]} == {"PREEXIT"}
