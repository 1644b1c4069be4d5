"""What an epilogue is said to cost, beside what nvcc makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusepass.ir import DType, Epilogue
from fusepass.ir.cost import instructions, traffic
from fusepass.ir.emit import emit
from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES

M, N = 1000, 300


@pytest.mark.parametrize(
    ("text", "read", "written"),
    [
        ("", 0, 2 * M * N),
        ("gelu", 0, 2 * M * N),
        ("mul($0) add(col0:f32) mul(row0)", 2 + 4 * N + 2 * M, 2 * M * N),
        ("add(mat0)", 2 * M * N, 2 * M * N),
        ("where(mat0:bool, _, 0.0)", M * N, 2 * M * N),
        ("z, gelu store:f32", 0, 6 * M * N),
        ("mul(mat0), col_sum:f32", 2 * M * N, 2 * M * N + 4 * N),
        ("silu mul(z1)", 0, 2 * M * N),
    ],
)
def test_traffic(text: str, read: int, written: int) -> None:
    assert traffic(Epilogue.parse(text), DType.BF16, M, N) == read + written


def test_cheaper_texts_are_cheaper() -> None:
    def cost(text: str, dtype: DType = DType.BF16) -> int:
        return instructions(Epilogue.parse(text), dtype)

    assert cost("") == 0 < cost("mul(2.0)") < cost("clamp(-1.0, 1.0)") < cost("gelu")
    assert cost("mul(0.5) clamp(-2.0, 2.0) gelu") < cost("mul(0.5) clamp(-3.0, 3.0) gelu")
    assert cost("gelu") < cost("gelu", DType.F32) < cost("gelu", DType.F64)
    assert cost("clamp(0.0, inf)") < cost("clamp(0.0, 1.0)")
    assert cost("gelu mul($0)") == cost("gelu mul(2.0)")


# Loads, stores and addresses of an element in the kernel below.
OVERHEAD = 6
TEXTS = ("mul(2.0) add(1.0)", "gelu", "gelu_tanh", "silu", "tanh", "mish", "elu(1.0)", "hardswish",
         "mul(0.5) clamp(-2.0, 2.0) gelu", "logsigmoid", "sigmoid mul(2.0) add(z)")  # fmt: skip
_KERNEL = """
{include}
struct From {{
  const float* numbers;
  __device__ float number(int i) const {{ return numbers[i]; }}
  __device__ float operand(int i) const {{ return numbers[i]; }}
}};
extern "C" __global__ void k(const float* z, float* out, From from) {{
  using fusepass::Epilogue;
  float s[Epilogue::kScalars + 1];
  Epilogue::load(s, from);
  Epilogue::Batch<8> b;
  for (int i = 0; i < 8; ++i) b.z[i] = z[threadIdx.x * 8 + i];
  Epilogue::begin(b, s);
  Epilogue::middle(b, s);
  Epilogue::end(b, s);
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = b.out[0][i];
}}
"""


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("text", TEXTS)
def test_instructions_are_about_what_nvcc_makes(text: str, tmp_path: Path) -> None:
    """Within a third: special functions and bounds count twice here, once in the listing."""
    from disassembly import disassembled

    epilogue = Epilogue.parse(text)
    source, cubin = tmp_path / "k.cu", tmp_path / "k.cubin"
    source.write_text(_KERNEL.format(include=emit(epilogue, DType.BF16)))
    flags = ["-std=c++17", "-O3", "-cubin", "-gencode=arch=compute_90a,code=sm_90a"]
    nvcc = str(toolchain.find_nvcc())
    toolchain.run([nvcc, *flags, f"-I{SOURCES}", str(source), "-o", str(cubin)])
    lines = [line for line in disassembled(cubin).splitlines() if line.strip().startswith("/*0")]
    lines = [line for line in lines if "NOP" not in line and "BRA" not in line]
    slow = sum("MUFU" in line or "FMNMX" in line for line in lines)
    measured = (len(lines) + slow) / 8
    assert abs(measured - OVERHEAD / 2 - instructions(epilogue, DType.BF16)) <= 3 + measured / 4
