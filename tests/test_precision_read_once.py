"""What kernel a float32 call takes is decided by one look at torch's TF32 setting."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch_headers import CXX_STANDARD, cuda_macros

from fusepass.kernels.build import build, toolchain

pytestmark = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs CUDA's headers")

# The binding's own headers, where torch's context turns the setting over each time it is looked at,
# as another thread may. What of CUDA is named, is not called.
_PROGRAM = r"""
#define globalContext turning_context
#include "binding/binding_split.h"
#undef globalContext
#include <cstdio>

namespace at {
TORCH_API Context& globalContext();
static int looks = 0;
Context& turning_context() {
  Context& context = globalContext();
  const bool tf32 = context.float32Precision(Float32Backend::CUDA, Float32Op::MATMUL) ==
                    Float32Precision::TF32;
  if (looks++ > 0) {
    context.setFloat32Precision(Float32Backend::CUDA, Float32Op::MATMUL,
                                tf32 ? Float32Precision::IEEE : Float32Precision::TF32);
  }
  return context;
}
}  // namespace at

namespace fusepass {
static const char* asked = "";
const char* gemm90_unsupported(const GemmProblem&) { return asked = "16-bit", nullptr; }
const char* tf32_unsupported(const GemmProblem&) { return asked = "tf32", nullptr; }
const char* split90_unsupported(const GemmProblem&) { return asked = "split", nullptr; }
const char* few_rows_unsupported(const GemmProblem&) { return "not asked about"; }
}  // namespace fusepass

int main() {
  using namespace fusepass;
  GemmProblem p{};
  p.dtype = DType::kFloat32;
  p.m = p.n = p.k = 64;
  const EpilogueInfo info{};
  // Plans are known for both settings; the number of multiprocessors says which one was found.
  for (const int32_t dtype : {static_cast<int32_t>(DType::kFloat32), kPlanTf32}) {
    PlanKey key{};
    key.epilogue = &info;
    key.m = key.n = key.k = 64;
    key.dtype = dtype;
    GemmKernel kernel;
    kernel.num_sms = dtype;
    plans().known.emplace(key, kernel);
  }
  for (const bool tf32 : {false, true}) {
    at::looks = 0;
    at::globalContext().setFloat32Precision(
        at::Float32Backend::CUDA, at::Float32Op::MATMUL,
        tf32 ? at::Float32Precision::TF32 : at::Float32Precision::IEEE);
    const GemmKernel found = fused_kernel(info, p, 0, nullptr);
    std::printf("%d %s %d %d\n", tf32, asked, found.num_sms, at::looks);
  }
}
"""


def test_the_setting_is_looked_at_once_a_call(host_compiler: str, tmp_path: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths

    nvcc = toolchain.find_nvcc()
    assert nvcc is not None
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(_PROGRAM)
    headers = [*include_paths(), toolchain.cuda_home(nvcc) / "include", cuda_macros(tmp_path)]
    libraries = [f for p in library_paths() for f in (f"-L{p}", f"-Wl,-rpath,{p}")]
    command = [host_compiler, CXX_STANDARD, "-w", "-fno-pie", f"-I{build.SOURCES}"]
    command += [f"-isystem{p}" for p in headers]
    command += [str(source), "-o", str(program), *libraries, "-ltorch_cpu", "-lc10"]
    # Of CUDA nothing is called here, so nothing need be there.
    toolchain.run([*command, "-no-pie", "-Wl,--unresolved-symbols=ignore-all"])
    printed = toolchain.run([str(program)])
    tf32 = 4  # the plans' number of it; float32's is 0
    assert printed.splitlines() == ["0 split 0 1", f"1 tf32 {tf32} 1"]
