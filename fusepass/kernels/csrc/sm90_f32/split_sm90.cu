// Kernels of float32's pre-pass (split_sm90.cuh): for matrices stored by rows, where a warp holds its rows
// (split_sm90_warps.cuh), or a CTA keeps its row in registers or reads it twice, the second time from
// cache; and for matrices stored [k, rows] (split_sm90_columns.cuh). Where K is split in parts, one more
// puts together what they know of rows (split_sm90_join.cuh). They may start before the kernel ahead has
// ended, and let the GEMM do so.
#include "sm90/gemm_sm90_ptx.cuh"
#include "split_sm90.cuh"
#include "split_sm90_columns.cuh"
#include "split_sm90_join.cuh"
#include "split_sm90_strips.cuh"
#include "split_sm90_warps.cuh"

namespace fusepass {
namespace {

constexpr int kThreads = kSplitThreads;

// The sum or maximum over a row, known to all threads.
template <class F>
__device__ __forceinline__ float reduce(float v, float* shared, F combine) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = combine(v, __shfl_xor_sync(~0u, v, d));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = shared[0];
  for (int i = 1; i < kThreads / 32; ++i) v = combine(v, shared[i]);
  return v;
}

// Elements of hi and lo between k and the pitch are written as 0. A thread keeps kHeld quads of its
// row, which is no longer; 0: it reads them twice.
template <int kHeld>
__device__ __forceinline__ void split_rows(const Split90Both& both) {
  __shared__ float shared[kThreads / 32];
  grid_dependency_wait();
  grid_dependents_launch();
  const int block = blockIdx.x;
  const bool is_w = block >= both.x_blocks;
  const Split90Rows args = is_w ? both.w : both.x;
  const int row = block - (is_w ? both.x_blocks : 0), thread = threadIdx.x;
  const int quads = static_cast<int>(args.pitch / 4);
  const float* src = args.src + row * args.ld;

  // Four elements from 4 * q on, 0 beyond k.
  const auto read = [&](int q) {
    if (args.quads && 4 * q + 4 <= args.k) return *reinterpret_cast<const float4*>(src + 4 * q);
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (4 * q < args.k) v.x = src[4 * q];
    if (4 * q + 1 < args.k) v.y = src[4 * q + 1];
    if (4 * q + 2 < args.k) v.z = src[4 * q + 2];
    if (4 * q + 3 < args.k) v.w = src[4 * q + 3];
    return v;
  };

  float4 held[kHeld + 1];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) held[i] = read(thread + i * kThreads);
  const auto each = [&](auto f) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (thread + i * kThreads < quads) f(thread + i * kThreads, held[i]);
      }
    } else {
#pragma unroll 4
      for (int q = thread; q < quads; q += kThreads) f(q, read(q));
    }
  };

  float largest = 0.0f;
  each([&](int, float4 v) {
    largest = max_or_nan(largest, max_or_nan(max_or_nan(fabsf(v.x), fabsf(v.y)),
                                             max_or_nan(fabsf(v.z), fabsf(v.w))));
  });
  largest = reduce(largest, shared, max_or_nan);

  const bool finite = is_finite(largest);
  const float scale = scale_of(largest);
  RowSums sums;
  uint2* hi = reinterpret_cast<uint2*>(args.hi + row * args.pitch);
  uint2* lo = reinterpret_cast<uint2*>(args.lo + row * args.pitch);
  each([&](int q, float4 v) {
    if (!finite) v = {0.0f, 0.0f, 0.0f, 0.0f};
    const float all[4] = {v.x, v.y, v.z, v.w};
    const float scaled[4] = {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
    split_quad<0>(all, scaled, hi + q, lo + q, &sums);
  });
  sums.norm = reduce(sums.norm, shared, add);
  sums.loss = reduce(sums.loss, shared, add);
  sums.count = reduce(sums.count, shared, add);
  if (thread == 0) describe(args, row, largest, sums);
}

}  // namespace
}  // namespace fusepass

// Rows of row-major matrices: a warp a row of up to kSplitShorter or kSplitShort, a CTA a row of up to
// kSplitLong, a CTA a row of any length.
extern "C" __global__ void __launch_bounds__(256, fusepass::kSplitShorterBlocks)
    fusepass_split_shorter(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_by_warps<fusepass::kSplitShorter / 4 / 32>(both);
}

extern "C" __global__ void __launch_bounds__(256, fusepass::kSplitShortBlocks)
    fusepass_split_short(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_by_warps<fusepass::kSplitShort / 4 / 32>(both);
}

extern "C" __global__ void __launch_bounds__(256)
    fusepass_split_long(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_rows<fusepass::kSplitLong / 4 / 256>(both);
}

extern "C" __global__ void __launch_bounds__(256)
    fusepass_split_longer(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_rows<0>(both);
}

// Matrices stored [k, rows], by clusters.
extern "C" __global__ void __launch_bounds__(512, 2)
    fusepass_split_columns(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_columns<fusepass::kSplitColumnThreads>(both);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    fusepass_split_few_columns(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_columns<2 * fusepass::kSplitColumnThreads>(both);
}

extern "C" __global__ void __launch_bounds__(fusepass::kSplitThreads)
    fusepass_join_parts(const __grid_constant__ fusepass::Split90JoinBoth both) {
  fusepass::join_parts(both);
}

extern "C" __global__ void __launch_bounds__(32 * fusepass::kStripsBelow)
    fusepass_add_strips(const __grid_constant__ fusepass::Float32Sum sum) {
  fusepass::add_strips(sum);
}
