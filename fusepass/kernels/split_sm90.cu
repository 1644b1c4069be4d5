// Kernels of float32's pre-pass (split_sm90.cuh): for matrices stored by rows, where a group of
// threads keeps its row in registers or reads it twice, the second time from cache; and for [k, n]
// weights, which become K-major on the way. They may start before the kernel ahead has ended, and
// let the GEMM do so.
#include "gemm_sm90_ptx.cuh"
#include "split_sm90.cuh"

namespace fusepass {
namespace {

constexpr int kThreads = kSplitThreads;

// The sum or maximum over the kGroup threads of a row, known to all of them.
template <int kGroup, class F>
__device__ __forceinline__ float reduce(float v, float* shared, F combine) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = combine(v, __shfl_xor_sync(~0u, v, d));
  if (kGroup == 32) return v;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = shared[0];
  for (int i = 1; i < kThreads / 32; ++i) v = combine(v, shared[i]);
  return v;
}

__device__ __forceinline__ float add(float a, float b) { return a + b; }

__device__ __forceinline__ uint2 pack4(uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
  return {a | uint32_t{b} << 16, c | uint32_t{d} << 16};
}

// Rows are 16-byte aligned. Elements of hi and lo between k and the pitch are written as 0. A thread
// keeps kHeld quads of its row, which is no longer; 0: it reads them twice.
template <int kGroup, int kHeld>
__device__ __forceinline__ void split_rows(const Split90Both& both) {
  __shared__ float shared[kThreads / 32];
  grid_dependency_wait();
  grid_dependents_launch();
  const int block = blockIdx.x;
  const bool is_w = block >= both.x_blocks;
  const Split90Rows args = is_w ? both.w : both.x;
  const int row = (block - (is_w ? both.x_blocks : 0)) * (kThreads / kGroup) + threadIdx.x / kGroup;
  if (row >= args.rows) return;  // a whole group
  const int lane = threadIdx.x % kGroup, quads = static_cast<int>(args.pitch / 4);
  const float* src = args.src + row * args.ld;

  // Four elements from 4 * q on, 0 beyond k.
  const auto read = [&](int q) {
    if (4 * q + 4 <= args.k) return *reinterpret_cast<const float4*>(src + 4 * q);
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (4 * q < args.k) v.x = src[4 * q];
    if (4 * q + 1 < args.k) v.y = src[4 * q + 1];
    if (4 * q + 2 < args.k) v.z = src[4 * q + 2];
    return v;
  };

  float4 held[kHeld + 1];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) held[i] = read(lane + i * kGroup);
  const auto each = [&](auto f) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (lane + i * kGroup < quads) f(lane + i * kGroup, held[i]);
      }
    } else {
#pragma unroll 4
      for (int q = lane; q < quads; q += kGroup) f(q, read(q));
    }
  };

  float largest = 0.0f;
  each([&](int, float4 v) {
    largest = max_or_nan(largest, max_or_nan(max_or_nan(fabsf(v.x), fabsf(v.y)),
                                             max_or_nan(fabsf(v.z), fabsf(v.w))));
  });
  largest = reduce<kGroup>(largest, shared, max_or_nan);

  const bool finite = is_finite(largest);
  const Scale scale(kSplitTop - (finite ? exponent_of(largest) : 0));
  RowSums sums;
  uint2* hi = reinterpret_cast<uint2*>(args.hi + row * args.pitch);
  uint2* lo = reinterpret_cast<uint2*>(args.lo + row * args.pitch);
  each([&](int q, float4 v) {
    if (!finite) v = {0.0f, 0.0f, 0.0f, 0.0f};
    const Pieces a = split(v.x, scale, sums), b = split(v.y, scale, sums);
    const Pieces c = split(v.z, scale, sums), d = split(v.w, scale, sums);
    hi[q] = pack4(a.hi, b.hi, c.hi, d.hi);
    lo[q] = pack4(a.lo, b.lo, c.lo, d.lo);
  });
  sums.norm = reduce<kGroup>(sums.norm, shared, add);
  sums.loss = reduce<kGroup>(sums.loss, shared, add);
  sums.count = reduce<kGroup>(sums.count, shared, add);
  if (lane == 0) describe(args, row, largest, sums);
}

constexpr int kStrip = 32;  // columns of a [k, n] weight a CTA takes, from the first k to the last
constexpr int kDepth = 64;  // of k it turns over at a time

struct ColumnsShared {
  float warp[kSplitColumnThreads / 32][kStrip];
  uint16_t hi[kStrip][kDepth + 2], lo[kStrip][kDepth + 2];  // odd pitch in words: no bank conflict
};

// The sum or maximum over the rows of the CTA, for each column; known to all threads of a column.
template <class F>
__device__ __forceinline__ float reduce_rows(float v, ColumnsShared& shared, F combine) {
  const int column = threadIdx.x % kStrip, warp = threadIdx.x / kStrip;
  __syncthreads();
  shared.warp[warp][column] = v;
  __syncthreads();
  v = shared.warp[0][column];
  for (int i = 1; i < kSplitColumnThreads / kStrip; ++i) v = combine(v, shared.warp[i][column]);
  return v;
}

// args.rows counts columns of the [k, n] source, rows `ld` apart; they become rows of the pieces.
__device__ __forceinline__ void split_columns(const Split90Rows& args) {
  __shared__ ColumnsShared shared;
  grid_dependency_wait();
  grid_dependents_launch();
  constexpr int kRows = kSplitColumnThreads / kStrip;
  const int column = threadIdx.x % kStrip, first = threadIdx.x / kStrip;
  const int n = blockIdx.x * kStrip + column;
  const float* src = args.src + n;
  const bool inside = n < args.rows;

  float largest = 0.0f;
#pragma unroll 8
  for (int k = first; k < args.k; k += kRows) {
    if (inside) largest = max_or_nan(largest, fabsf(src[k * args.ld]));
  }
  largest = reduce_rows(largest, shared, max_or_nan);

  const bool read = inside && is_finite(largest);
  const Scale scale(kSplitTop - (is_finite(largest) ? exponent_of(largest) : 0));
  RowSums sums;
  for (int k0 = 0; k0 < args.pitch; k0 += kDepth) {
#pragma unroll
    for (int i = first; i < kDepth; i += kRows) {
      const int k = k0 + i;
      const Pieces p = split(read && k < args.k ? src[k * args.ld] : 0.0f, scale, sums);
      shared.hi[column][i] = p.hi;
      shared.lo[column][i] = p.lo;
    }
    __syncthreads();
    // A warp writes 64 k of one column: 128 bytes of each piece.
    const int k = 2 * (threadIdx.x % 32);
    for (int c = threadIdx.x / 32; c < kStrip; c += kSplitColumnThreads / 32) {
      const int64_t row = int64_t{blockIdx.x} * kStrip + c;
      if (row < args.rows && k0 + k < args.pitch) {
        const int64_t at = row * args.pitch + k0 + k;
        *reinterpret_cast<uint32_t*>(args.hi + at) =
            *reinterpret_cast<const uint32_t*>(&shared.hi[c][k]);
        *reinterpret_cast<uint32_t*>(args.lo + at) =
            *reinterpret_cast<const uint32_t*>(&shared.lo[c][k]);
      }
    }
    __syncthreads();
  }
  sums.norm = reduce_rows(sums.norm, shared, add);
  sums.loss = reduce_rows(sums.loss, shared, add);
  sums.count = reduce_rows(sums.count, shared, add);
  if (inside && first == 0) describe(args, n, largest, sums);
}

}  // namespace
}  // namespace fusepass

// Rows of row-major matrices: a warp a row of up to kSplitShort, a CTA a row of up to kSplitLong, a
// CTA a row of any length.
extern "C" __global__ void __launch_bounds__(256)
    fusepass_split_short(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_rows<32, fusepass::kSplitShort / 4 / 32>(both);
}

extern "C" __global__ void __launch_bounds__(256)
    fusepass_split_long(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_rows<256, fusepass::kSplitLong / 4 / 256>(both);
}

extern "C" __global__ void __launch_bounds__(256)
    fusepass_split_longer(const __grid_constant__ fusepass::Split90Both both) {
  fusepass::split_rows<256, 0>(both);
}

// Columns of a row-major matrix, 32 a CTA.
extern "C" __global__ void __launch_bounds__(1024)
    fusepass_split_columns(fusepass::Split90Rows args) {
  fusepass::split_columns(args);
}
