"""The sums of float32's few rows (few_rows_f32.cu), on the host: the kernel's own source.

The four lanes of a group are host threads, which exchange their sums; groups and warps go one after
another. What is not the source's is the last step, which adds the warps' sums in float64, in their
order.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch
from torch import Tensor

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES
from fusepass.kernels.plan.few import Config

_SHIM = """
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#define __device__
#define __forceinline__ inline
using std::fmaf, std::min;
struct uint4 { uint32_t x, y, z, w; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static thread_local struct { int x; } threadIdx, blockIdx;
static struct { int x; } gridDim;
inline float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
static std::barrier<> together{4};
static float given[4];
inline float __shfl_xor_sync(unsigned, float mine, int partner) {
  const int member = threadIdx.x % 4;
  given[member] = mine;
  together.arrive_and_wait();
  const float theirs = given[member ^ partner];
  together.arrive_and_wait();
  return theirs;
}
namespace fusepass {
template <int kWidth> struct Places {
  int row[kWidth], column[kWidth];
  bool inside[kWidth];
};
constexpr int kWeights = 1;
inline int uniform(int v) { return v; }
uint32_t load_shared(uint32_t);
void mbarrier_init(uint32_t, int), mbarrier_wait(uint32_t, int), mbarrier_arrive(uint32_t);
void grid_dependents_launch();
}  // namespace fusepass
"""

# What asks the device's memory for 16 bytes.
_LOAD = re.compile(r"(load_streaming\(const void\* p, bool inside\) \{).*?\n\}", re.DOTALL)
_LOADED = r"\1 uint4 v{}; if (inside) std::memcpy(&v, p, 16); return v; }"

_CALL = """
extern "C" void sums(const float* x, const float* w, int m, int n, int k, float* out) {
  using namespace fusepass;
  FewRowsArgs args{};
  args.x = x, args.w[0] = w, args.ldx = k, args.ldw[0] = kWIsKN ? n : k;
  args.m = m, args.n = n, args.k = k, args.batches = (n + kBatch - 1) / kBatch;
  std::vector<double> total(m * n);
  const auto lane_sums = [&](int member) {
    for (int at = 0; at < args.batches * kWarps * 8; ++at) {  // batch, warp, group
      const int batch = at / (kWarps * 8);
      threadIdx.x = at % (kWarps * 8) * 4 + member;
      const Lane lane(args);
      ProductsF32::Sums sums = {};
      for (int step = 0; step * kStepK < k; ++step) {
        Step of;
        lane.load(of, batch, step);
        ProductsF32::multiply(lane, sums, of, step);
      }
      ProductsF32::share(lane, sums);
      for (int job = 0; job < ProductsF32::kJobs; ++job) {
        float v[ProductsF32::kWidth];
        ProductsF32::collect(sums, 0, job, v);
        const auto to = ProductsF32::places(lane, batch, job);
        for (int i = 0; i < ProductsF32::kWidth; ++i) {
          if (to.inside[i]) total[to.row[i] * n + to.column[i]] += v[i];
        }
      }
    }
  };
  std::vector<std::thread> lanes;
  for (int member = 0; member < 4; ++member) lanes.emplace_back(lane_sums, member);
  for (auto& lane : lanes) lane.join();
  std::copy(total.begin(), total.end(), out);
}
"""


class FewRowsSums:
    """A build's, compiled into ``folder``."""

    def __init__(self, compiler: str, folder: Path, config: Config) -> None:
        name = str(config).replace(" ", "_")
        source, library = folder / f"{name}.cpp", folder / f"{name}.so"
        kernel = _before("few_rows_f32.cu", "FUSEPASS_FEW_ROWS_KERNEL")
        head, own = kernel.split('#include "few_rows_walk.cuh"')
        walk = _before("few_rows_walk.cuh", "template <class Products>\n__device__") + "}\n"
        parts = [_SHIM, head, _before("few_rows_args.h"), walk, own]
        text = re.sub(r'#pragma once|#include "(?!common/gemm).*?"', "", "\n".join(parts))
        source.write_text(_LOAD.sub(_LOADED, text) + _CALL)
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", f"-I{SOURCES}"]
        flags += [f"-D{name}={value}" for name, value in config.defines(False).items()]
        toolchain.run([compiler, *flags, str(source), "-o", str(library)])
        self._call = ctypes.CDLL(str(library)).sums

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        """x [m, k] times w [n, k] transposed: float32, contiguous, as the result."""
        (m, k), n = x.shape, len(w)
        assert x.dtype == w.dtype == torch.float32 and x.is_contiguous() and w.is_contiguous()
        out = torch.full((m, n), float("nan"))
        self._call(*(ctypes.c_void_p(t.data_ptr()) for t in (x, w)), m, n, k,
                   ctypes.c_void_p(out.data_ptr()))  # fmt: skip
        return out


def _before(name: str, end: str = "\0") -> str:
    return (SOURCES / "few_rows" / name).read_text().partition(end)[0]
