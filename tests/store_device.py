"""float32's way through an epilogue to memory (gemm_sm90_f32_store.cuh), on the host.

The kernel's own source with the include that ``ir.emit`` writes; a host thread stands for each of
the device's 128 that have 64 rows of a tile.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from host_half import HALF
from torch import Tensor

from fusepass.ir import DType, Epilogue
from fusepass.ir.emit import emit
from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES

CODES = {
    torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.bool: 4,
}  # fmt: skip

_SHIM = (
    """
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#define __device__
#define __forceinline__ inline
#define FUSEPASS_EACH _Pragma("GCC unroll 32") for (int i = 0; i < kWidth; ++i)
using std::max, std::min;
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct Index { int x; };
static thread_local Index threadIdx;
struct Warp {
  std::barrier<> all{32};
  float lanes[32];
};
static thread_local Warp* warp;
inline void __syncwarp() { warp->all.arrive_and_wait(); }
inline float __shfl_xor_sync(unsigned, float v, int d) {
  const int lane = threadIdx.x % 32;
  warp->lanes[lane] = v;
  __syncwarp();
  v = warp->lanes[lane ^ d];
  __syncwarp();
  return v;
}
template <class T> T __ldg(const T* p) { return *p; }
inline float mul_rn(float a, float b) { return a * b; }
inline float add_rn(float a, float b) { return a + b; }
inline void prefetch_line(const void*) {}
template <class T> void store_if(T* at, T v, int column, int columns) {
  if (column < columns) *at = v;
}
inline void store_pair_if(float* at, float a, float b, int column, int columns) {
  if (column < columns) at[0] = a, at[1] = b;
}
static uint8_t* shared_memory;
inline void load_shared_64(uint32_t address, uint32_t& a, uint32_t& b) {
  memcpy(&a, shared_memory + address, 4);
  memcpy(&b, shared_memory + address + 4, 4);
}
"""
    + HALF
    + """inline uint16_t bfloat_bits(float v) {
  uint32_t b;
  memcpy(&b, &v, 4);
  return (b + 0x7FFF + (b >> 16 & 1)) >> 16;
}
inline float __uint_as_float(uint32_t b) { float v; memcpy(&v, &b, 4); return v; }
constexpr bool kStorePreact = false;
"""
)

_CALL = """
using namespace fusepass;
constexpr uint32_t kStages = 1024, kStageBytes = 65536;  // where they lie

uint8_t* line_of(int stage, int box, int row) {
  return shared_memory + kStages + stage * kStageBytes + box * kStagedBox + row * 128;
}

// Boxes of a tile's mats as TMA writes them: 0 beyond the edge.
void bring(const Float32Outputs& to, int32_t staged, int first_row, int column, int columns) {
  int stage = 0;
  each_staged<Epilogue>(staged, [&](int j) {
    const float* const from = static_cast<const float*>(to.mat[j].data);
    for (int r = 0; r < kSplitTile; ++r) {
      for (int c = 0; c < columns; ++c) {
        const int m = first_row + r, n = column + c, quad = c % 32 / 4 ^ r % 8;
        const float v = m < to.m && n < to.n ? from[m * to.mat[j].row_stride + n] : 0.0f;
        memcpy(line_of(stage, c / 32, r) + quad * 16 + c % 4 * 4, &v, 4);
      }
    }
    ++stage;
  });
}

// Every 64 x kColumns part of z, as the GEMM's consumers have it.
template <bool kOdd, int kColumns>
void run(const Float32Outputs& to, const float* z, int32_t mats) {
  std::vector<uint8_t> memory(kStages + kMostStagedMats * kStageBytes, 0xFF);  // NaN
  shared_memory = memory.data();
  for (int first_row = 0; first_row < to.m; first_row += 64) {
    for (int column = 0; column < to.n; column += kColumns) {
      std::vector<Warp> warps(4);
      bring(to, mats, first_row / kSplitTile * kSplitTile, column, kColumns);
      std::vector<std::thread> threads;
      for (int thread = 0; thread < 128; ++thread) {
        threads.emplace_back([&, thread] {
          threadIdx.x = thread;
          warp = &warps[thread / 32];
          const int lane = thread % 32, row = first_row + thread / 32 * 16 + lane / 4;
          float mine[kColumns / 2];
          for (int i = 0; i < kColumns / 2; ++i) {
            const int r = row + 8 * (i / 2 % 2), c = column + 8 * (i / 4) + lane % 4 * 2 + i % 2;
            mine[i] = r < to.m && c < to.n ? z[int64_t{r} * to.n + c] : NAN;
          }
          const float scalars[1] = {};
          const Float32Store<kOdd> store(to, row, column, lane);
          if (!mats) return store.template write<8>(mine, scalars);
          const int below = first_row % kSplitTile + thread / 32 * 16;
          StagedMats at;
          int stages = 0;
          each_staged<Epilogue>(mats, [&](int j) {
            at.at[j] = StagedMats::place(kStages + stages++ * kStageBytes, below + lane / 4, lane);
          });
          store.template write<8>(mine, scalars, at, [&] {
            __syncwarp();
            for (int i = lane; i < 16 * stages * kColumns / 32; i += 32) {
              memset(line_of(i / 16 % stages, i / 16 / stages, below + i % 16), 0xFF, 128);
            }
          });
        });
      }
      for (auto& thread : threads) thread.join();
    }
  }
}

extern "C" void call(int columns, int32_t mats, const GemmProblem* p, float* strips, int64_t ld,
                     const float* z) {
  Float32Outputs to{};
  Float32Whole whole(*p);
  whole.n = ld;
  fill_outputs(*p, strips, whole, &to);
  if (columns == 64) {
    ld % 2 ? run<true, 64>(to, z, mats) : run<false, 64>(to, z, mats);
  } else {
    ld % 2 ? run<true, 128>(to, z, mats) : run<false, 128>(to, z, mats);
  }
}
extern "C" int32_t mats(const GemmProblem* p) { return staged_mats(*p); }
extern "C" int64_t size() { return sizeof(GemmProblem); }
extern "C" void problem(GemmProblem* p, int m, int n) { *p = GemmProblem{}, p->m = m, p->n = n; }
extern "C" void output(GemmProblem* p, int i, void* data, int dtype, bool sum) {
  p->out[i] = {data, static_cast<DType>(dtype), sum};
}
extern "C" void operand(GemmProblem* p, int kind, int i, const void* data, int dtype, int64_t inner,
                        int64_t outer_stride, int64_t row_stride, int64_t column_stride) {
  Operand* const of[] = {p->col, p->row, p->mat};
  of[kind][i] = {data, static_cast<DType>(dtype), inner, outer_stride, row_stride, column_stride};
}
"""


def _on_the_host(name: str) -> str:
    text = (SOURCES / name).read_text().replace("#pragma once", "")
    text = re.sub(r'#include "[^"]*"', "", text)
    text = text.replace('asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));', "r = half_bits(v);")
    text = text.replace('asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));', "r = bfloat_bits(v);")
    text = re.sub(
        r'asm\("cvt.f32.f16 %0, %1;" : "=f"\(r\) : "h"\((.*)\)\);', r"r = half_value(\1);", text
    )
    return text.replace("prefetch(", "prefetch_line(").replace("ceil_div", "ceiling")


class Store:
    """The store of one program, compiled into ``folder``."""

    def __init__(self, compiler: str, folder: Path, text: str) -> None:
        self.program = Epilogue.parse(text)
        source, library = folder / "store.cpp", folder / "store.so"
        include = emit(self.program, DType.F32).replace("#pragma once", "")
        include = include.replace('#include "common/epilogue_math.cuh"', "")
        own = (
            "sm90_f32/gemm_sm90_f32_operands.cuh",
            "sm90_f32/gemm_sm90_f32_store.cuh",
            "sm90_f32/gemm_sm90_f32_outputs.h",
        )
        parts = [
            _SHIM,
            '#include "sm90_f32/gemm_sm90_f32_args.h"',
            "namespace fusepass {",
            "inline int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }",
            "}",
            _on_the_host("common/scalars.cuh"),
            include,
            *map(_on_the_host, own),
            _CALL,
        ]
        source.write_text("\n".join(parts))
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", f"-I{SOURCES}"]
        toolchain.run([compiler, *flags, str(source), "-o", str(library)])
        self._library = ctypes.CDLL(str(library))
        self._library.size.restype = ctypes.c_int64

    def __call__(
        self, z: Tensor, operands: Sequence[Tensor], dtypes: Sequence[torch.dtype], columns: int,
        mats: int | None = 0, beside: int = 0,
    ) -> list[Tensor]:  # fmt: skip
        """The program's outputs for z [M, N], which are full of NaN before.

        Args:
            operands: in the order of ``Epilogue.operands``, as fusepass::gemm takes them; a row or
                a mat may be [B, S, ...], M being B times S, and a col [B, 1, N].
            dtypes: of the outputs.
            columns: of a tile, 64 or 128.
            mats: bits of those that have come through the ring; None: as the host says.
            beside: columns of the outputs beside these, which are returned, too.
        """
        (m, n), library = z.shape, self._library
        problem = ctypes.create_string_buffer(library.size())
        library.problem(problem, m, n)
        for operand, value in zip(self.program.operands, operands, strict=True):
            self._operand(problem, operand.kind, operand.index, value, m)
        if mats is None:
            mats = library.mats(problem)
        self.mats = mats
        outputs, strips = [], torch.full((4, -(-m // 16), n), float("nan"))
        for i, output in enumerate(self.program.outputs):
            is_sum = output.kind == "col_sum"
            out = torch.full((m, n + beside), float("nan")).to(dtypes[i])
            outputs.append(
                strips[sum(o.kind == "col_sum" for o in self.program.outputs[:i])]
                if is_sum
                else out
            )
            library.output(problem, i, ctypes.c_void_p(out.data_ptr()), CODES[dtypes[i]], is_sum)
        library.call(
            columns, mats, problem, ctypes.c_void_p(strips.data_ptr()),
            ctypes.c_int64(n + beside), ctypes.c_void_p(z.data_ptr()),
        )  # fmt: skip
        return outputs

    def _operand(self, problem: object, kind: str, index: int, value: Tensor, m: int) -> None:
        inner, outer, row = m, 0, 0
        if kind != "col":
            inner = value.shape[-2]
            outer = value.stride(0) if value.dim() == 3 else 0
            row = value.stride(-2)
        elif value.dim() == 3:
            inner, outer = m // len(value), value.stride(0)
        column = 0 if kind == "row" else value.stride(-1)
        self._library.operand(
            problem, ("col", "row", "mat").index(kind), index, ctypes.c_void_p(value.data_ptr()),
            CODES[value.dtype], *map(ctypes.c_int64, (inner, outer, row, column)),
        )  # fmt: skip
