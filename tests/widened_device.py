"""The kernel of widened batches (batches/widened.cu) on the host: its own source, blocks in turn.

A block's 128 threads are fibers that take turns: each runs to the next instruction that a warp or
the block has in common. A tensor core is ``split_model.py``'s: addends cut two bits below the
largest one's last place, the sum cut to float32.
"""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES

_SHIM = r"""
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __grid_constant__
#define __launch_bounds__(threads, blocks)
#define __shared__
using std::fmaf, std::fabs, std::copysign;
inline float fabsf(float v) { return std::fabs(v); }
inline float copysignf(float a, float b) { return std::copysign(a, b); }
struct float4 { float x, y, z, w; };
static struct { int x; } threadIdx, blockIdx;
inline float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
constexpr int kFibers = 128;
static ucontext_t fibers[kFibers], home;
static char shared[1 << 18];
inline uint64_t __cvta_generic_to_shared(const void* p) {
  return static_cast<const char*>(p) - shared;
}

// The other fibers run to the same place before this one goes on.
inline void together() {
  const int me = threadIdx.x, next = (me + 1) % kFibers;
  threadIdx.x = next;
  swapcontext(&fibers[me], &fibers[next]);
  threadIdx.x = me;
}
inline void __syncthreads() { together(); }

inline double value_of(uint32_t bits) {
  const uint16_t half = static_cast<uint16_t>(bits);
  return __uint_as_float(uint32_t{half} << 16);
}

// c + the eight products, as a tensor core adds them.
inline float added(float c, const double (&products)[8]) {
  double largest = std::fabs(c), plain = c;
  for (const double p : products) largest = std::max(largest, std::fabs(p)), plain += p;
  if (!std::isfinite(plain) || largest == 0) return static_cast<float>(plain);
  int exponent;
  std::frexp(largest, &exponent);
  const int place = exponent - 26;
  double sum = std::trunc(std::ldexp(c, -place));
  for (const double p : products) sum += std::trunc(std::ldexp(p, -place));
  const double mantissa = std::frexp(sum, &exponent);
  const double cut = std::trunc(std::ldexp(mantissa, 24));
  return static_cast<float>(std::ldexp(cut, exponent - 24 + place));
}

namespace fusepass {
struct Fragment { uint32_t v[4]; };
static uint32_t given[kFibers][3];

inline Fragment load_fragment(uint32_t address) {
  const int warp = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
  given[threadIdx.x][0] = address;
  together();
  Fragment f;
  for (int i = 0; i < 4; ++i) {
    std::memcpy(&f.v[i], shared + given[warp + 8 * i + lane / 4][0] + lane % 4 * 4, 4);
  }
  together();
  return f;
}

inline void multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, const float (&c)[4]) {
  const int warp = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
  const uint32_t mine[3] = {a0, a1, b};
  std::copy_n(mine, 3, given[threadIdx.x]);
  together();
  float sums[4];
  for (int e = 0; e < 4; ++e) {
    const int column = lane % 4 * 2 + e % 2;  // of rows lane / 4 and that + 8
    double products[8];
    for (int k = 0; k < 8; ++k) {
      const uint32_t x = given[warp + lane / 4 * 4 + k / 2][e / 2] >> k % 2 * 16;
      products[k] = value_of(x) * value_of(given[warp + column * 4 + k / 2][2] >> k % 2 * 16);
    }
    sums[e] = added(c[e], products);
  }
  together();
  std::copy_n(sums, 4, d);
}

inline void copy_async(uint32_t to, const void* from, bool whole) {
  if (to % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) std::abort();
  if (whole) std::memcpy(shared + to, from, 16); else std::memset(shared + to, 0, 16);
}
inline void end_copies() {}
inline void await_copies() {}
inline void store_vector(float* to, const float4& v) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) std::abort();
  std::memcpy(to, &v, 16);
}
}  // namespace fusepass
"""

_CALL = r"""
static fusepass::WidenedArgs call;
static void fiber() {
  fusepass_widened(call);
  together();  // the first to end is the first to begin
}

extern "C" void run(const fusepass::WidenedArgs* args, int blocks) {
  call = *args;
  call.pitch = widened_pitch(call.k);
  std::vector<std::vector<char>> stacks(kFibers, std::vector<char>(1 << 16));
  for (int block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    std::memset(shared, 0xff, sizeof shared);  // NaN
    for (int i = 0; i < kFibers; ++i) {
      getcontext(&fibers[i]);
      fibers[i].uc_stack.ss_sp = stacks[i].data(), fibers[i].uc_stack.ss_size = stacks[i].size();
      fibers[i].uc_link = &home;
      makecontext(&fibers[i], fiber, 0);
    }
    threadIdx.x = 0;
    swapcontext(&home, &fibers[0]);
  }
}
"""


class _Matrices(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("data", "outer", "inner", "row")]


class _Args(ctypes.Structure):
    """``WidenedArgs``."""

    _fields_ = [
        *((name, _Matrices) for name in "xw"),
        ("out", ctypes.c_int64),
        *((n, ctypes.c_int32) for n in ("m", "n", "k", "inner", "pitch", "tiles")),
        *((name, ctypes.c_int32) for name in ("row_blocks", "column_blocks")),
        *((name, ctypes.c_float) for name in ("scale", "scale_rest", "root")),
    ]


class Widened:
    """The kernel, compiled into ``folder``."""

    def __init__(self, compiler: str, folder: Path) -> None:
        source, library = folder / "widened.cpp", folder / "widened.so"
        read = [
            (SOURCES / "batches" / name).read_text() for name in ("widened_args.h", "widened.cu")
        ]
        text = re.sub(r'#pragma (once|unroll.*)|#include ".*?"', "", "\n".join(read))
        text = text.replace("extern __shared__ __align__(16) char shared[];", "")
        source.write_text(_SHIM + text + "using namespace fusepass;" + _CALL)
        flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-w", "-shared", "-fPIC"]
        toolchain.run([compiler, *flags, str(source), "-o", str(library)])
        self._run = ctypes.CDLL(str(library)).run

    def __call__(self, x: Tensor, w: Tensor, scale: float, tiles: int = 8) -> Tensor:
        """The op's result of x [B, H, M, K] and w [B, H, N, K], blocks of so many ``tiles``."""
        assert x.dtype == w.dtype == torch.bfloat16
        (outer, inner, m, k), n = x.shape, w.shape[2]
        room = torch.full((outer * inner * m * n + 8,), math.nan)
        skip = -room.data_ptr() % 16 // 4
        out = room[skip : skip + outer * inner * m * n]
        column_blocks = -(-n // (64 * tiles))
        row_blocks = -(-m // 128)
        high = ctypes.c_float(scale).value
        places = [_Matrices(t.data_ptr(), *t.stride()[:3]) for t in (x, w)]
        sizes = (m, n, k, inner, 0, tiles, row_blocks, column_blocks)
        args = _Args(*places, out.data_ptr(), *sizes, high, scale - high, math.sqrt(abs(scale)))
        self._run(ctypes.byref(args), outer * inner * row_blocks * column_blocks)
        assert room[:skip].isnan().all() and room[skip + len(out) :].isnan().all()
        return out.view(outer, inner, m, n)
