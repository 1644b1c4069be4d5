"""The emitter: any program, compiled for the host, computes what torch computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_epilogues import HostEpilogues
from hypothesis import HealthCheck, Phase, given, seed, settings
from ir_programs import SAME_EVERYWHERE, programs, short_number, tensors

from fusepass.ir import DType, Epilogue
from fusepass.ir.emit import build_key, emit

COUNT, M, N = 80, 32, 24


def some(count: int, rounded: bool) -> list[Epilogue]:
    found: list[Epilogue] = []

    @seed(1)
    @settings(max_examples=count, phases=[Phase.generate], database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(programs(SAME_EVERYWHERE, rounded, most=12, number=short_number, plain=True))
    def collect(epilogue: Epilogue) -> None:
        found.append(epilogue)

    collect()
    return list(dict.fromkeys(found))


PROGRAMS = {DType.F64: some(COUNT, rounded=False), DType.F32: some(COUNT, rounded=True)}
CASES = [(p, dtype) for dtype, found in PROGRAMS.items() for p in found]


@pytest.fixture(scope="module")
def host(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> HostEpilogues:
    return HostEpilogues(host_compiler, tmp_path_factory.mktemp("programs"), CASES)


def elements(epilogue: Epilogue, given: dict[str, Any]) -> Iterator[np.ndarray]:
    """One number an element of each input, in the order of the host's ``call``."""
    yield given["z"]
    if given["z1"] is not None:
        yield given["z1"]
    yield from given["operands"][epilogue.count("$") :]


def spread(value: Any) -> np.ndarray:
    return torch.as_tensor(value).double().expand(M, N).reshape(-1).numpy()


@pytest.mark.parametrize("dtype", PROGRAMS, ids=lambda d: d.value)
def test_any_program_to_the_last_bit(host: HostEpilogues, dtype: DType) -> None:
    """Branches, operands, conditions, roundings, several outputs; NaN and infinities among all."""
    for epilogue in PROGRAMS[dtype]:
        given = tensors(epilogue, M, N, dtype.in_torch)
        wanted = epilogue.reference(given["z"], *given["operands"], z1=given["z1"])
        scalars = [float(v) for v in given["operands"][: epilogue.count("$")]]
        inputs = map(spread, elements(epilogue, given))
        got = host((epilogue, dtype), *inputs, operands=scalars)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for mine, theirs in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(mine, spread(theirs), str(epilogue))


# The includes as they are, so that a change of them is seen.
GOLDEN = {
    "mul_clamp_gelu.bf16": ("mul(0.5) clamp(-2.0, 2.0) gelu", DType.BF16),
    "mul_clamp_gelu.f16": ("mul($0) clamp(-3.0, 3.0) gelu", DType.F16),
    "gelu_tanh.f32": ("gelu_tanh", DType.F32),
    "clamp_gelu.f32": ("gelu clamp(-1.0, 1.5) gelu", DType.F32),
    "gelu_rounded.f32": ("gelu~f32", DType.F32),
    "mul_gelu_rounded.bf16": ("mul(0.5)~bf16 gelu~bf16", DType.BF16),
    "gate.bf16": ("silu mul(z1)", DType.BF16),
    "residual_sum.f16": ("v0 = gelu; v0 mul(col0:f32) add(mat0), v0 col_sum", DType.F16),
    "masked.bf16": ("where(mat0:bool, _, 0.0), z", DType.BF16),
    "rope.bf16": ("v0 = rot64 mul(mat1); mul(mat0) add(v0)", DType.BF16),
    "rope_part.bf16": (
        "v0 = rot40of80 mul(mat1); mul(mat0) add(v0) where(first40of80, _, z)",
        DType.BF16,
    ),
    "empty.f64": ("", DType.F64),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    """Written anew where FUSEPASS_WRITE_GOLDEN is set."""
    text, dtype = GOLDEN[name]
    emitted = emit(Epilogue.parse(text), dtype)
    file = Path(__file__).parent / "golden" / f"{name}.cuh"
    if os.environ.get("FUSEPASS_WRITE_GOLDEN"):
        file.write_text(emitted)
    assert emitted == file.read_text()


@pytest.mark.parametrize(
    ("text", "dtype", "key"),
    [
        ("mul(0.5) clamp(-2.0, 2.0) gelu", DType.BF16, "mul(#) clamp(#, #) gelu_half_within_1"),
        ("mul(0.7) clamp(-1.0, 2.0) gelu", DType.F16, "mul(#) clamp(#, #) gelu_half_within_1"),
        ("mul(0.5) clamp(-2.0, 2.0000002) gelu", DType.BF16, "mul(#) clamp(#, #) gelu_half"),
        ("mul(0.5) clamp(-2.0, 2.0) gelu", DType.F32, "mul(#) clamp(#, #) gelu_within_2"),
        (
            "mul(0.5)~f32 clamp(-2.0, 2.0)~f32 gelu~f32",
            DType.F32,
            "mul(#)~f32 clamp(#, #)~f32 gelu~f32",
        ),
        ("mul(0.5) gelu", DType.F32, "mul(#) gelu"),
        ("mul(0.5)~bf16 gelu~bf16", DType.BF16, "mul(#)~bf16 gelu~bf16"),
        ("clamp(0.0, inf)", DType.F32, "maximum(#)"),
        ("div(3.0)", DType.BF16, "mul(#)"),
        ("div(3.0)", DType.F32, "div(#)"),
        ("softplus(1.0, 20.0)", DType.F16, "softplus_1"),
        ("softcap(30.0)", DType.BF16, "mul(#) tanh mul(#)"),
    ],
)
def test_what_a_build_depends_on(text: str, dtype: DType, key: str) -> None:
    assert build_key(Epilogue.parse(text), dtype) == f"{dtype.value}: {key}"


def test_models_that_differ_in_numbers_share_a_build() -> None:
    texts = ("mul(0.5) add(mat0) leaky_relu(0.1)", "mul(-7.0) add(mat0) leaky_relu(0.3)")
    first, second = (emit(Epilogue.parse(t), DType.BF16) for t in texts)
    assert first == second


def test_a_long_operation_is_cut_in_three_and_two_are_spread_over_the_parts() -> None:
    for text, crossing in (("tanh", 2), ("gelu tanh", 2), ("mul(2.0) clamp(0.0, 1.0)", 0)):
        parts = emit(Epilogue.parse(text), DType.BF16).split("__device__ static void ")[2:]
        assert [p.split("(")[0] for p in parts] == ["begin", "middle", "end"]
        assert sum("FUSEPASS_EACH" in p for p in parts) == 1 + crossing, text
