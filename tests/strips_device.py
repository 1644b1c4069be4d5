"""The sums of a few rows' strips (few_rows_strips.cuh), on the host: the kernel's own source.

The lanes of a warp go one after another; what each hands to the tensor cores is kept, and
multiplied when all have. Shared memory is the host's, of each block of a cluster, NaN to begin with
and as large as the plan says. What is asked into the L2 cache is noted. The order of the calls is
the kernel's.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch
from torch import Tensor

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES
from fusepass.kernels.plan.few import Config, shared_bytes

_SHIM = """
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <vector>
#define __device__
#define __forceinline__ inline
#define FUSEPASS_EACH for (int i = 0; i < kWidth; ++i)
#include "few_rows/few_rows_args.h"
using std::max, std::min;
struct uint4 { uint32_t x, y, z, w; };
static struct { int x; } threadIdx, blockIdx;
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t which) {
  const uint64_t both = a | uint64_t{b} << 32;
  uint32_t v = 0;
  for (int i = 0; i < 4; ++i) v |= (both >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
  return v;
}
struct Product { float* d; uint32_t a[4], b[2]; };
static std::vector<Product> products[32];  // of a warp's lanes
inline void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                uint32_t b1) {
  products[threadIdx.x % 32].push_back({d, {a0, a1, a2, a3}, {b0, b1}});
}
constexpr uint32_t kMemory = 1 << 20;
static uint32_t most;   // bytes of shared memory that a block was given
static const uint8_t* ends[3][2];  // of x and the weights
static int outside;
inline uint32_t inside_shared(uint32_t address, uint32_t bytes) {
  outside += address % kMemory + bytes > most || address % bytes != 0;
  return address;
}
inline const void* inside_global(const void* p, size_t bytes) {
  bool found = false;
  for (auto& [from, to] : ends) found |= p >= from && static_cast<const uint8_t*>(p) + bytes <= to;
  outside += !found || reinterpret_cast<uintptr_t>(p) % 16 != 0 || bytes % 16 != 0;
  return p;
}
static std::vector<uint8_t> memory(8 * kMemory);  // of a cluster's blocks
inline uint32_t shared_of(uint32_t rank, uint32_t address) {
  return rank * kMemory + address % kMemory;
}
inline uint4 load_shared_16_bytes(uint32_t address) {
  uint4 v;
  std::memcpy(&v, &memory[inside_shared(address, 16)], 16);
  return v;
}
inline void load_shared(uint32_t address, float (&v)[4]) {
  std::memcpy(v, &memory[inside_shared(address, 16)], 16);
}
inline void store_sum(uint32_t address, float v) {
  std::memcpy(&memory[inside_shared(address, 4)], &v, 4);
}
inline void store_sums(uint32_t address, float a, float b, float c, float d) {
  const float v[4] = {a, b, c, d};
  std::memcpy(&memory[inside_shared(address, 16)], v, 16);
}
inline void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t) {
  inside_shared(to, 16), inside_shared(to + bytes - 16, 16);
  std::memcpy(&memory[to], inside_global(from, bytes), bytes);
}
static std::set<uintptr_t> loaded, asked;  // lines of memory
inline uintptr_t line(const void* p) { return reinterpret_cast<uintptr_t>(p) / 128; }
inline void prefetch(const void* p) { asked.insert(line(inside_global(p, 16))); }
inline uint4 load_streaming(const void* p) {
  uint4 v;
  std::memcpy(&v, inside_global(p, 16), 16);
  loaded.insert(line(p));
  return v;
}
namespace fusepass {
template <int kWidth> struct Places {
  int row[kWidth], column[kWidth];
  bool inside[kWidth];
};
constexpr int kWeights = FUSEPASS_WEIGHTS;
inline int uniform(int v) { return v; }
}  // namespace fusepass
"""

_CALL = """
namespace fusepass {
inline float half_of(uint32_t pair, int which) {
  const uint32_t bits = which ? pair & 0xFFFF0000u : pair << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

// Lane 4 g + t has of A, 16 by 16, rows g and g + 8 and columns 2t, 2t + 1, and those 8 on; of B,
// 16 by 8, these rows and column g; of D rows g and g + 8 and columns 2t, 2t + 1.
void multiply_warp() {
  for (size_t at = 0; at < products[0].size(); ++at) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Product& of = products[lane][at];
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 8; ++i) {
        a[g + 8 * (i / 2 % 2)][2 * t + i % 2 + 8 * (i / 4)] = half_of(of.a[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i) b[2 * t + i % 2 + 8 * (i / 2)][g] = half_of(of.b[i / 2], i % 2);
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        double sum = products[lane][at].d[i];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        products[lane][at].d[i] = sum;
      }
    }
  }
  for (auto& lane : products) lane.clear();
}

// Up to the sums of its warps; the lines that are loaded at first or asked for, and not both.
int run_block(const FewRowsArgs& args, uint32_t shared) {
  loaded.clear(), asked.clear();
  for (threadIdx.x = 0; threadIdx.x < 32 * kWarps; ++threadIdx.x) {
    const Lane lane(args, shared);
    lane.prefetch_weights(), lane.copy_x();
  }
  for (int warp = 0; warp < kWarps; ++warp) {
    Sums sums[32] = {};
    const int steps = Lane(args, shared).steps;
    for (int step = 0; step < steps; ++step) {
      for (int i = 0; i < 32; ++i) {
        threadIdx.x = warp * 32 + i;
        const Lane lane(args, shared);
        Group group;
        const auto before = loaded;
        lane.load(group, step);
        if (step > 0) loaded = before;
        lane.multiply(sums[i], group, step);
      }
      multiply_warp();
    }
    for (int i = 0; i < 32; ++i) {
      threadIdx.x = warp * 32 + i;
      Lane(args, shared).hand_over(sums[i]);
    }
  }
  int unlike = 0;
  for (uintptr_t at : loaded) unlike += !asked.count(at);
  for (uintptr_t at : asked) unlike += !loaded.count(at);
  return unlike;
}
}  // namespace fusepass

extern "C" int sums(const uint16_t* x, int ldx, const uint16_t* w0, const uint16_t* w1, int ldw,
                    int m, int n, int k, float* out, int shared_bytes, int* misplaced) {
  using namespace fusepass;
  const auto span = [](int which, const uint16_t* from, size_t rows, size_t columns, size_t ld) {
    ends[which][0] = reinterpret_cast<const uint8_t*>(from);
    ends[which][1] = reinterpret_cast<const uint8_t*>(from + (rows - 1) * ld + columns);
  };
  span(0, x, m, k, ldx);
  for (int i = 0; i < 2; ++i) span(1 + i, i ? w1 : w0, kWIsKN ? k : n, kWIsKN ? n : k, ldw);
  most = shared_bytes, outside = 0;
  FewRowsArgs args{};
  args.x = x, args.w[0] = w0, args.w[1] = w1, args.ldx = ldx, args.ldw[0] = args.ldw[1] = ldw;
  args.m = m, args.n = n, args.k = k;
  const int strips = (n + kStrip - 1) / kStrip;
  int unlike = 0;
  for (int strip = 0; strip < strips; ++strip) {
    std::fill(memory.begin(), memory.end(), 255);
    for (int rank = 0; rank < kSplit; ++rank) {
      blockIdx.x = strip * kSplit + rank;
      unlike += run_block(args, rank * kMemory);
    }
    for (int rank = kSplit - 1; rank >= 0; --rank) {
      blockIdx.x = strip * kSplit + rank;
      for (threadIdx.x = 0; threadIdx.x < 32 * kWarps; ++threadIdx.x) {
        const Lane lane(args, rank * kMemory);
        if (lane.row() >= m) continue;
        float sum[kWeights][kWidth];
        add_warps(sum, lane);
        if (rank == 0) add_blocks(sum, lane);
        const auto at = lane.places();
        for (int w = 0; w < kWeights; ++w) {
          if (rank > 0) {
            const uint32_t to = inside_shared(shared_of(0, sent(lane, rank, w)), 16);
            std::memcpy(&memory[to], sum[w], 16);
          }
          for (int i = 0; i < kWidth && rank == 0; ++i) {
            if (at.inside[i]) out[(w * m + at.row[i]) * n + at.column[i]] = sum[w][i];
          }
        }
      }
    }
  }
  *misplaced = outside;
  return unlike;
}
"""


class StripSums:
    """A build's, compiled into ``folder``."""

    def __init__(self, compiler: str, folder: Path, config: Config, weights: int = 1) -> None:
        name = f"{config}_{config.w_is_kn}_{weights}".replace(" ", "_")
        source, library = folder / f"{name}.cpp", folder / f"{name}.so"
        kernel = (SOURCES / "few_rows/few_rows_strips.cuh").read_text()
        own = re.sub(r'#pragma once|#include ".*?"', "", kernel)
        source.write_text(_SHIM + own + _CALL)
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-I{SOURCES}"]
        defines = config.defines(True) | {"FUSEPASS_WEIGHTS": weights}
        flags += [f"-D{name}={value}" for name, value in defines.items()]
        toolchain.run([compiler, *flags, str(source), "-o", str(library)])
        self._call = ctypes.CDLL(str(library)).sums
        self._weights, self._config = weights, config

    def __call__(self, x: Tensor, weights: list[Tensor]) -> tuple[list[Tensor], int]:
        """x [m, k] times each w [n, k] transposed, bfloat16, and how many lines of the weights are
        either loaded at first or asked for, and not both; rows may lie apart."""
        (m, k), n = x.shape, len(weights[0])
        stored = [w.t() if self._config.w_is_kn else w for w in weights]
        assert all(t.stride(1) == 1 and t.dtype == torch.bfloat16 for t in (x, *stored))
        out = torch.full((len(weights), m, n), float("nan"))
        w0, w1 = (ctypes.c_void_p(t.data_ptr()) for t in (stored[0], stored[-1]))
        misplaced = ctypes.c_int()
        shared = shared_bytes(self._config, k, self._weights)
        unlike = self._call(
            ctypes.c_void_p(x.data_ptr()), x.stride(0), w0, w1, stored[0].stride(0), m, n, k,
            ctypes.c_void_p(out.data_ptr()), shared, ctypes.byref(misplaced),
        )  # fmt: skip
        assert misplaced.value == 0, f"{misplaced.value} accesses are beyond what is there"
        return list(out), unlike
