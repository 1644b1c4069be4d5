"""The binding without CUDA: it compiles against torch's headers without a warning, every kernel has
its op's schema, texts are understood, what the driver does not load is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch_headers import CXX_STANDARD, cuda_macros

from fusepass.kernels.build import build, toolchain

pytestmark = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs CUDA's headers")

# CUDA's functions are bound when they are first called: one is, of a driver that has none of what
# is asked for. The allocator is data.
_MORE = r"""
#include <c10/cuda/CUDACachingAllocator.h>
#include <cstring>
namespace c10::cuda::CUDACachingAllocator { std::atomic<CUDAAllocator*> allocator; }

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char*, void**, unsigned,
                                                        unsigned long long,
                                                        cudaDriverEntryPointQueryResult*) {
  return cudaErrorUnknown;
}

// Whether a kernel that Python has built comes to run: the GEMM's, the pointwise one.
extern "C" bool runs(const char* text, bool pointwise) {
  using namespace fusepass;
  const auto& info = epilogue_info(text, DType::kBFloat16);
  if (pointwise) return load_pointwise(info, false, 0, 0).function != nullptr;
  return plan_kernel(info, GemmProblem{}, 2, 0).fused;
}

// Asks which kernel a product of bf16 has that adds a bias.
extern "C" void asks_with_bias(const char* text) {
  using namespace fusepass;
  GemmProblem p{};
  p.bias[0] = text;
  plan_kernel(epilogue_info(text, DType::kBFloat16), p, 2, 0);
}

extern "C" void described(const char* text, int dtype, bool with_preact, char* out) {
  const auto site = static_cast<fusepass::DType>(dtype);
  const auto& info = fusepass::epilogue_info(text, site, with_preact);
  std::string all = info.planned;
  for (const int fact : {int{info.with_preact}, int{info.reads_z1}, info.num_scalars, info.num_cols,
                         info.num_rows, info.num_mats, info.num_outputs, info.num_computed,
                         info.num_sums, int{info.is_linear(with_preact)}}) {
    all += " " + std::to_string(fact);
  }
  for (int i = 0; i < info.num_mats; ++i) all += " mat" + std::to_string(int(info.mat[i]));
  for (int i = 0; i < info.num_outputs; ++i) {
    const auto& o = info.out[i];
    all += " out" + std::to_string(int(o.dtype)) + (o.column_sum ? "s" : "") +
           std::to_string(o.of_gemm);
  }
  std::strcpy(out, all.c_str());
}

// Where cols and mats of a call lie: inner and the three strides of each, and how many were copied.
extern "C" int placed(const at::Tensor* x, const at::Tensor* w, const at::Tensor* operands,
                      int count, const char* text, int64_t* out) {
  using namespace fusepass;
  const auto& info = epilogue_info(text, dtype_of(*x));
  const Call c{*x, {w, nullptr}, {nullptr, nullptr}, text, TensorList(operands, count), "accurate"};
  if (!valid(c, info)) return -1;
  GemmProblem p{};
  c10::SmallVector<Tensor, 1> copies;
  place_operands(c, info, &p, &copies);
  const auto list = [&](const Operand* some, int number) {
    for (const Operand* o = some; o < some + number; ++o) {
      for (auto v : {o->inner, o->outer_stride, o->row_stride, o->column_stride}) *out++ = v;
    }
  };
  list(p.col, info.num_cols), list(p.mat, info.num_mats);
  return static_cast<int>(copies.size());
}

// The same of tensors that Python has no address of.
extern "C" int placed_case(int which, int64_t* out) {
  const auto x = at::empty({3, 5, 7, 8}), w = at::empty({16, 8});
  const at::Tensor mats[] = {
      at::empty({3, 5, 7, 16}),
      at::empty({3, 1, 1, 16}).expand({3, 5, 7, 16}),
      at::empty({16, 3, 5, 7}).permute({1, 2, 3, 0}),
      at::empty({3, 10, 7, 16}).slice(1, 0, 10, 2),
      at::empty({6, 10, 14, 16}).slice(0, 0, 6, 2).slice(1, 0, 10, 2).slice(2, 0, 14, 2),
      at::empty({3, 5, 7, 15}),
  };
  return placed(&x, &w, &mats[which], 1, "add(mat0)", out);
}

// And of those with a number a column.
extern "C" int placed_col(int which, int64_t* out) {
  const auto x = at::empty({3, 5, 7, 8}), w = at::empty({16, 8});
  const at::Tensor cols[] = {
      at::empty({32}).slice(0, 0, 32, 2),
      at::empty({1, 1, 1, 16}),
      at::empty({3, 1, 1, 16}),
      at::empty({3, 5, 1, 48}).slice(3, 16, 32),
      at::empty({3, 5, 7, 16}),
      at::empty({1, 1, 1, 16}).expand({3, 1, 1, 16}),
      at::empty({3, 10, 1, 16}).slice(1, 0, 5),
      at::empty({1, 5, 1, 16}),
      at::empty({3, 1, 7, 16}),
      at::empty({3, 1, 16}),
      at::empty({3, 1, 1, 15}),
  };
  return placed(&x, &w, &cols[which], 1, "mul(col0)", out);
}
"""

_CHECK = """
import ctypes, os, sys
import torch
import fusepass.kernels
import fusepass.op.linear
from fusepass.kernels.plan.problem import Problem
library = ctypes.CDLL(sys.argv[1], mode=os.RTLD_LAZY)
names = "linear linear.constant linear.split linear_with_preact linear_with_preact.constant split"
for name in [*names.split(), "gemm", "gemm.constant", "linears", "bmm_widened"]:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fusepass::" + name, "CUDA"), name
out = ctypes.create_string_buffer(1000)
chain = "mul(0.5) gelu"
for text, dtype, preact in (
    (chain, 2, False), (chain, 2, True), (chain + ", z", 2, False), ("", 0, True),
    ("silu mul(z1) add(mat0:bool), z, mul($0) col_sum:f64", 1, False),
):
    library.described(text.encode(), dtype, preact, out)
    print(out.value.decode())
few = "few rows8 batch16 warps16 depth2 blocks1"
fusepass.kernels.plan_kernel = lambda *problem: few + "|/nowhere.cubin|fusepass_few_rows"
fusepass.kernels.pointwise_kernel = lambda *program: ("/nowhere.cubin", False, [])
library.runs.restype = ctypes.c_bool
for pointwise in (False, True, False, True):
    assert not library.runs(b"gelu", pointwise)
asked = []
fusepass.kernels.plan_kernel = lambda *problem: asked.append(Problem(*problem[:-1])) or "hybrid"
library.runs(b"", False), library.asks_with_bias(b""), library.asks_with_bias(b"gelu")
assert [problem.biased for problem in asked] == [False, True, False], asked
numbers = (ctypes.c_int64 * 4)()
for case in range(6):
    print(library.placed_case(case, numbers), *numbers)
for case in range(11):
    print(library.placed_col(case, numbers), *numbers)
"""

_EXPECTED = """\
mul(0.5) gelu 0 0 0 0 0 0 1 1 0 1 out20
mul(0.5) gelu 1 0 0 0 0 0 2 1 0 1 out20 out21
mul(0.5) gelu 1 0 0 0 0 0 2 1 0 0 out20 out21
 1 0 0 0 0 0 2 1 0 1 out01 out00
silu mul(z1) add(mat0:bool), z, mul($0) col_sum:f64 0 1 1 0 0 1 3 2 1 0 mat4 out10 out11 out3s0
0 105 0 16 1
0 35 16 0 1
0 105 0 1 105
0 7 224 16 1
1 105 0 16 1
-1 105 0 16 1
0 105 0 0 2
0 105 0 0 1
0 35 16 0 1
0 7 48 0 1
0 1 16 0 1
0 105 0 0 1
1 7 16 0 1
-1 7 16 0 1
-1 7 16 0 1
-1 7 16 0 1
-1 7 16 0 1
"""


def test_the_binding_loads(host_compiler: str, tmp_path: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths

    nvcc = toolchain.find_nvcc()
    assert nvcc is not None
    source, library = tmp_path / "main.cpp", tmp_path / "binding.so"
    included = "".join(f'#include "{name}"\n' for name in build.BINDING_SOURCES)
    source.write_text(included + _MORE)
    headers = [*include_paths(), toolchain.cuda_home(nvcc) / "include", cuda_macros(tmp_path)]
    flags = [CXX_STANDARD, "-O0", "-shared", "-fPIC", "-Wall", "-Werror"]
    flags += [f"-I{build.SOURCES}"]
    flags += [f"-isystem{h}" for h in headers] + [f"-L{p}" for p in library_paths()]
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]
    toolchain.run([host_compiler, *flags, str(source), "-o", str(library), *libraries])
    command = [sys.executable, "-c", _CHECK, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == _EXPECTED
    for instead in ("GEMM and epilogue run as two kernels", "epilogues run as torch's own"):
        assert done.stderr.count(f"fusepass: {instead}") == 1, done.stderr
