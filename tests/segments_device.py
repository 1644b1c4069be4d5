"""The sum of segments whose parts of K have scales of their own, on the host.

The kernel's own source, gemm_sm90_f32_sum.cuh.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES

TILE_N = 64
_ADDERS = 3

_SHIM = f"""
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include "sm90_f32/gemm_sm90_f32_args.h"
#define __device__
#define __forceinline__ inline
using std::fma, std::min;
struct float4 {{ float x, y, z, w; }};
inline double __hiloint2double(int high, int) {{
  const uint64_t bits = uint64_t{{uint32_t(high)}} << 32;
  double r;
  memcpy(&r, &bits, 8);
  return r;
}}
namespace fusepass {{
constexpr int kTileN = {TILE_N}, kFragment = kTileN / 2, kAdders = {_ADDERS};
using Adders = double[kAdders][kFragment][128];
"""

_CALL = """
}
using namespace fusepass;
// z [m, n]: every group's sums as the block of its number has them.
extern "C" void call(int m, int n, int segments, int of_part, const float* partial,
                     const SplitRow* x_parts, const SplitRow* x, const SplitRow* w_parts,
                     const SplitRow* w, double* z) {
  Split90Args args{};
  args.m = m, args.gemm.n = n, args.gemm.tiles_n = (n + kTileN - 1) / kTileN;
  args.segments = segments, args.segments_of_part = of_part;
  args.partial = const_cast<float*>(partial);
  args.x.detail = x, args.w.detail = w;
  args.x_parts = {x_parts, m}, args.w_parts = {w_parts, n};
  const int groups = (m + 63) / 64 * args.gemm.tiles_n;
  const auto sums = std::make_unique<Adders[]>(1);
  for (int group = 0; group < groups; ++group) {
    for (int i = 0; i < 128 * kAdders; ++i) {
      add_segments<true>(args, sums[0], group, i / 128, i % 128);
    }
    for (int thread = 0; thread < 128; ++thread) {
      for (int e = 0; e < kFragment; ++e) {
        const int row = group / args.gemm.tiles_n * 64 + thread / 32 * 16 + thread % 32 / 4;
        const int r = row + 8 * (e / 2 % 2);
        const int c = group % args.gemm.tiles_n * kTileN + 8 * (e / 4) + thread % 4 * 2 + e % 2;
        if (r >= m || c >= n) continue;
        z[r * n + c] = 0.0;
        for (int a = 0; a < kAdders; ++a) z[r * n + c] += sums[0][a][e][thread];
      }
    }
  }
}
"""


def _between(name: str, first: str, end: str) -> str:
    text = (SOURCES / name).read_text()
    return text[text.index(first) : text.index(end)]


def arranged(sums: np.ndarray) -> np.ndarray:
    """Sums [segments, m, n] as the GEMM's consumers write them, NaN beyond the edges."""
    segments, m, n = sums.shape
    rows, tiles = -(-m // 64), -(-n // TILE_N)
    padded = np.full((segments, rows * 64, tiles * TILE_N), np.nan, np.float32)
    padded[:, :m, :n] = sums
    # [segment, rows, warp, half, row, tile, unit, pair of lanes, column]
    v = padded.reshape(segments, rows, 4, 2, 8, tiles, TILE_N // 8, 4, 2)
    return np.ascontiguousarray(v.transpose(0, 1, 5, 6, 2, 4, 7, 3, 8))


class Segments:
    """Compiled into ``folder``."""

    def __init__(self, compiler: str, folder: Path) -> None:
        source, library = folder / "sum.cpp", folder / "sum.so"
        own = (
            _between("sm90_f32/split_sm90.cuh", "__device__ __forceinline__ double power_of_two_64",
                     "// floor(log2(v))"),
            _between("sm90_f32/gemm_sm90_f32_consumer.cuh", "// Where the sums of a segment",
                     "__device__ __forceinline__ void consume"),
            _between("sm90_f32/gemm_sm90_f32_sum.cuh", "// The scales of a thread's two rows",
                     "// z, bias included"),
        )  # fmt: skip
        text = re.sub(r"#pragma unroll.*", "", "\n".join(own))
        source.write_text("\n".join((_SHIM, text, _CALL)))
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-I{SOURCES}"]
        toolchain.run([compiler, *flags, str(source), "-o", str(library)])
        self._call = ctypes.CDLL(str(library)).call

    def __call__(
        self,
        sums: np.ndarray,
        of_part: int,
        x: tuple[np.ndarray, np.ndarray],
        w: tuple[np.ndarray, np.ndarray],
    ) -> np.ndarray:
        """z [m, n], float64, scaled as all of K is.

        Args:
            sums: float32 [segments, m, n], scaled as their parts are.
            of_part: segments of a part.
            x, w: SplitRow of each part and of all, int32 [parts, rows, 4] and [rows, 4].
        """
        segments, m, n = sums.shape
        partial, z = arranged(sums), np.full((m, n), np.nan)
        arrays = [np.ascontiguousarray(a) for a in (partial, *x, *w)]
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (*arrays, z)]
        self._call(m, n, segments, of_part, *pointers)
        return z
