// The pre-pass of rows that a warp can hold: it takes some of them one after the other, and reads the next
// while it splits one. What is known of a row is kept by a lane, so that all are described at once, in
// whole lines of memory.
#pragma once
#include "sm90/gemm_sm90_ptx.cuh"
#include "split_sm90.cuh"

namespace fusepass {

constexpr int kMostRowsOfWarp = 32;  // a lane each

template <int kHeld>
struct HeldRow {
  float4 v[kHeld];  // quads lane, lane + 32, ...; 0 beyond k

  __device__ __forceinline__ void read(const Split90Rows& args, int row, bool whole, int lane) {
    const float* const src = args.src + row * args.ld;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int k = 4 * (lane + 32 * i);
      v[i] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (whole) {
        if (k < args.k) v[i] = *reinterpret_cast<const float4*>(src + k);
      } else {
        if (k < args.k) v[i].x = src[k];
        if (k + 1 < args.k) v[i].y = src[k + 1];
        if (k + 2 < args.k) v[i].z = src[k + 2];
        if (k + 3 < args.k) v[i].w = src[k + 3];
      }
    }
  }

  // Over the warp; NaN if there is one.
  __device__ __forceinline__ float largest() const {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      most = max_or_nan(most, max_or_nan(max_or_nan(fabsf(v[i].x), fabsf(v[i].y)),
                                         max_or_nan(fabsf(v[i].z), fabsf(v[i].w))));
    }
    // As integers, magnitudes are in the same order, and NaN is above all.
    return __int_as_float(
        static_cast<int>(__reduce_max_sync(~0u, static_cast<unsigned>(__float_as_int(most)))));
  }
};

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

template <int kHeld>
__device__ __forceinline__ void split_by_warps(const Split90Both& both) {
  grid_dependency_wait();
  grid_dependents_launch();
  const bool is_w = blockIdx.x >= both.x_blocks;
  const Split90Rows args = is_w ? both.w : both.x;
  const int lane = threadIdx.x % 32, block = blockIdx.x - (is_w ? both.x_blocks : 0);
  const int first = (block * (kSplitThreads / 32) + threadIdx.x / 32) * both.each;
  const int end = min(first + both.each, args.rows);
  if (first >= end) return;
  const int quads = static_cast<int>(args.pitch / 4);
  const bool whole = args.quads && args.k % 4 == 0;

  float mine = 0.0f;  // of row first + lane: its largest, and
  RowSums facts;
  HeldRow<kHeld> held, next;
  next.read(args, first, whole, lane);
#pragma unroll 1
  for (int row = first; row < end; ++row) {
    held = next;
    if (row + 1 < end) next.read(args, row + 1, whole, lane);
    const float largest = held.largest(), scale = scale_of(largest);
    const bool finite = is_finite(largest);
    RowSums sums;
    uint2* const hi = reinterpret_cast<uint2*>(args.hi + row * args.pitch);
    uint2* const lo = reinterpret_cast<uint2*>(args.lo + row * args.pitch);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int q = lane + 32 * i;
      if (q >= quads) continue;
      const float4 v = finite ? held.v[i] : float4{0.0f, 0.0f, 0.0f, 0.0f};
      const float all[4] = {v.x, v.y, v.z, v.w};
      const float scaled[4] = {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
      split_quad<0>(all, scaled, hi + q, lo + q, &sums);
    }
    sums.norm = warp_sum(sums.norm);
    if (__any_sync(~0u, sums.loss != 0.0f)) sums.loss = warp_sum(sums.loss);
    const unsigned count = __reduce_add_sync(~0u, static_cast<unsigned>(sums.count));
    if (lane == row - first) {
      mine = largest;
      facts = sums;
      facts.count = static_cast<float>(count);
    }
  }
  if (first + lane < end) describe(args, first + lane, mine, facts);
}

}  // namespace fusepass
