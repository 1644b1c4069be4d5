// Where the split is not good enough: which elements, and their float32 sums on the CUDA cores.
//
// An element is computed again, with all others of its warp's 16 x 128, if what splitting may have
// lost reaches its own last place; if one product may outweigh all others, or there are only a few,
// for then a plain FMA chain is exact to half a place and three products of pieces are not; if
// intermediate sums may overflow, since inf - inf is NaN and must be; or if x or w is not finite.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "split_sm90.cuh"

namespace fusepass {

constexpr int kFragment = kSplitTile / 2;  // elements of a 64 x 128 tile a thread holds
using Fragment = float[kFragment];         // [unit of 8 columns][row + 8 h][column pair]

constexpr int kSumDepth = 128;  // of K that one float32 chain sums
constexpr int kSumUnits = 4;    // units of columns summed at a time: all of them would need too many
                                // registers

// Four elements from k on, 0 from `end` on. Rows are 16-byte aligned where they are contiguous.
__device__ __forceinline__ float4 quad(const float* row, int64_t step, int k, int end) {
  if (step == 1 && k + 4 <= end) return *reinterpret_cast<const float4*>(row + k);
  const auto one = [&](int i) { return k + i < end ? row[(k + i) * step] : 0.0f; };
  return {one(0), one(1), one(2), one(3)};
}

__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  sum = __fmaf_rn(a.x, b.x, sum);
  sum = __fmaf_rn(a.y, b.y, sum);
  sum = __fmaf_rn(a.z, b.z, sum);
  return __fmaf_rn(a.w, b.w, sum);
}

// Units kFirst to kFirst + kSumUnits - 1 of a thread's share of x w^T: rows `row` and row + 8.
template <int kFirst>
__device__ __forceinline__ void sum_units(const Split90Args& args, Fragment& z, int row,
                                          int column) {
  const float* x0 = args.x.raw + min(row, args.m - 1) * args.x.row_step;
  const float* x1 = args.x.raw + min(row + 8, args.m - 1) * args.x.row_step;
  const float* w[2 * kSumUnits];
#pragma unroll
  for (int c = 0; c < 2 * kSumUnits; ++c) {
    const int n = column + 8 * (kFirst + c / 2) + c % 2;
    w[c] = args.w.raw + min(n, args.gemm.n - 1) * args.w.row_step;
  }
  float* total = z + 4 * kFirst;
#pragma unroll
  for (int i = 0; i < 4 * kSumUnits; ++i) total[i] = 0.0f;
  for (int k0 = 0; k0 < args.k; k0 += kSumDepth) {
    float chain[4 * kSumUnits] = {};
#pragma unroll 1
    for (int k = k0; k < min(k0 + kSumDepth, args.k); k += 4) {
      const float4 a0 = quad(x0, 1, k, args.k), a1 = quad(x1, 1, k, args.k);
#pragma unroll
      for (int c = 0; c < 2 * kSumUnits; ++c) {
        const float4 b = quad(w[c], args.w.k_step, k, args.k);
        const int i = 4 * (c / 2) + c % 2;
        chain[i] = dot(a0, b, chain[i]);
        chain[i + 2] = dot(a1, b, chain[i + 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4 * kSumUnits; ++i) total[i] = __fadd_rn(total[i], chain[i]);
  }
}

// `total` is the scaled sum of products.
__device__ __forceinline__ bool is_unsafe(const SplitRow& x, const SplitRow& w, float x_undo,
                                          float w_undo, float total) {
  if (x.few != 0 || w.few != 0 || (x_undo < 0.0f && w_undo < 0.0f)) return true;
  const float bound = x.loss * w.norm + x.norm * w.loss;
  if (!(fabsf(total) >= bound * 0x1p24f)) return true;  // NaN too
  const int size = exponent_of(x.norm) + exponent_of(w.norm) + 2;
  return size + x.exponent + w.exponent - 2 * kSplitTop >= 126;
}

__device__ __forceinline__ void finish_exactly(const Split90Args& args, Fragment& z,
                                               const float2* bias, int row, int tile_column,
                                               int lane) {
  const int column = tile_column + 2 * (lane % 4);
  const int rows[2] = {min(row, args.m - 1), min(row + 8, args.m - 1)};
  const SplitRow x[2] = {args.x.detail[rows[0]], args.x.detail[rows[1]]};
  const float x_undo[2] = {args.x.undo[rows[0]], args.x.undo[rows[1]]};
  bool unsafe = false;
#pragma unroll
  for (int i = 0; i < kSplitTile / 4; ++i) {
    const int n = column + 8 * (i / 2) + i % 2, inside = min(n, args.gemm.n - 1);
    const SplitRow w = args.w.detail[inside];
    const float w_undo = args.w.undo[inside];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& v = z[4 * (i / 2) + 2 * h + i % 2];
      // Rows and columns beyond the edge hold another's sums: they decide nothing.
      if (row + 8 * h < args.m && n < args.gemm.n) {
        unsafe |= is_unsafe(x[h], w, x_undo[h], w_undo, v);
      }
      v = Scale(max(x[h].exponent + w.exponent - 2 * kSplitTop, -250))(v);
    }
    asm volatile("" ::: "memory");  // one column at a time: fewer registers
  }
  if (__any_sync(~0u, unsafe)) {
    sum_units<0>(args, z, row, column);
    sum_units<kSumUnits>(args, z, row, column);
    sum_units<2 * kSumUnits>(args, z, row, column);
    sum_units<3 * kSumUnits>(args, z, row, column);
  }
#pragma unroll
  for (int u = 0; u < kSplitTile / 8; ++u) {
    const float2 b = bias[4 * u];
    z[4 * u] += b.x;
    z[4 * u + 1] += b.y;
    z[4 * u + 2] += b.x;
    z[4 * u + 3] += b.y;
  }
}

}  // namespace fusepass
