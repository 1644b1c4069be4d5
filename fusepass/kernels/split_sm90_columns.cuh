// The pre-pass of a matrix stored [k, rows], whose pieces stay in that order: a cluster of CTAs takes
// kStrip columns from the first k to the last, each CTA a share of k. Reads are whole lines of memory,
// writes half lines.
//
// A thread keeps its elements in registers between the search for the largest and the split, or
// reads them twice: then backwards, so that what was read last is still in the cache.
#pragma once
#include "gemm_sm90_ptx.cuh"
#include "split_sm90.cuh"

namespace fusepass {

constexpr int kStrip = kSplitStrip;
constexpr int kStripQuads = kStrip / 4;                      // a thread's elements are one of a row
constexpr int kStripRows = kSplitThreads / kStripQuads;      // of k a CTA takes at a time
constexpr int kStripWarps = kSplitThreads / 32;
static_assert(kStripRows * kSplitHeld == kSplitShare);

// Warps' results, then the CTA's, then, in the cluster's first CTA, those of all.
struct StripShared {
  float warp[kStripWarps][kStrip];
  float largest[kStrip];
  float sums[3][kSplitMostShares][kStrip];
};

// The number at the same place in the shared memory of CTA `rank` of the cluster.
__device__ inline uint32_t remote_address(const float* p, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(p))), "r"(rank));
  return remote;
}

__device__ inline float load_remote(const float* p, uint32_t rank) {
  float v;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(remote_address(p, rank))
               : "memory");
  return v;
}

__device__ inline void store_remote(float* p, uint32_t rank, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote_address(p, rank)), "f"(v) : "memory");
}

// The sum or maximum over the CTA for each column: known to thread `column` of the first kStrip. All
// threads take part.
template <class F>
__device__ __forceinline__ float reduce_strip(const float (&v)[4], StripShared& shared, F combine) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // what was here is read
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    float mine = v[c];
#pragma unroll
    for (int d = kStripQuads; d < 32; d *= 2) mine = combine(mine, __shfl_xor_sync(~0u, mine, d));
    if (lane < kStripQuads) shared.warp[warp][4 * lane + c] = mine;
  }
  __syncthreads();
  if (threadIdx.x >= kStrip) return 0.0f;
  float all = shared.warp[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < kStripWarps; ++w) all = combine(all, shared.warp[w][threadIdx.x]);
  return all;
}

// args.rows counts the columns of the source, whose rows of them are `ld` apart.
template <int kHeld>
__device__ __forceinline__ void split_columns(const Split90Both& both) {
  __shared__ StripShared shared;
  grid_dependency_wait();
  grid_dependents_launch();
  const bool is_w = blockIdx.x >= both.x_blocks;
  const Split90Rows args = is_w ? both.w : both.x;
  const int shares = both.shares, block = blockIdx.x - (is_w ? both.x_blocks : 0);
  const int rank = block % shares, strip = block / shares * kStrip;
  const int column = strip + threadIdx.x % kStripQuads * 4;
  const int inside = args.rows - column;  // columns of the thread, if positive
  const bool whole = inside >= 4 && args.ld % 4 == 0;
  const int share = (args.k + shares - 1) / shares;
  const int begin = rank * share + threadIdx.x / kStripQuads, end = min(args.k, (rank + 1) * share);
  const float* src = args.src + column;

  const auto read = [&](int k) {
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (k >= end) return v;
    const float* from = src + k * args.ld;
    if (whole) return *reinterpret_cast<const float4*>(from);
    if (inside > 0) v.x = from[0];
    if (inside > 1) v.y = from[1];
    if (inside > 2) v.z = from[2];
    if (inside > 3) v.w = from[3];
    return v;
  };

  float4 held[kHeld + 1];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) held[i] = read(begin + i * kStripRows);

  float top[4] = {};
  const auto look = [&](float4 v) {
    top[0] = max_or_nan(top[0], fabsf(v.x));
    top[1] = max_or_nan(top[1], fabsf(v.y));
    top[2] = max_or_nan(top[2], fabsf(v.z));
    top[3] = max_or_nan(top[3], fabsf(v.w));
  };
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) look(held[i]);
  } else {
#pragma unroll 8
    for (int k = begin; k < end; k += kStripRows) look(read(k));
  }
  float largest = reduce_strip(top, shared, max_or_nan);
  if (threadIdx.x < kStrip) shared.largest[threadIdx.x] = largest;
  cluster_sync();
  if (threadIdx.x < kStrip) {
    for (int r = 0; r < shares; ++r) {
      largest = max_or_nan(largest, load_remote(&shared.largest[threadIdx.x], r));
    }
    shared.warp[0][threadIdx.x] = largest;
  }
  __syncthreads();
  const float* const mine = &shared.warp[0][threadIdx.x % kStripQuads * 4];
  float scale[4][2];
  bool finite[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    finite[c] = is_finite(mine[c]);
    const Scale s(kSplitTop - (finite[c] ? exponent_of(mine[c]) : 0));
    scale[c][0] = s.first;
    scale[c][1] = s.second;
  }

  RowSums sums[4];
  const auto write = [&](int k, float4 v) {
    if (k >= end || inside <= 0) return;
    const float all[4] = {v.x, v.y, v.z, v.w};
    Pieces p[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const Scale s(scale[c][0], scale[c][1]);
      p[c] = split(finite[c] ? all[c] : 0.0f, s, sums[c]);
    }
    const int64_t at = k * args.pitch + column;
    *reinterpret_cast<uint2*>(args.hi + at) = pack4(p[0].hi, p[1].hi, p[2].hi, p[3].hi);
    *reinterpret_cast<uint2*>(args.lo + at) = pack4(p[0].lo, p[1].lo, p[2].lo, p[3].lo);
  };
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) write(begin + i * kStripRows, held[i]);
  } else {
    const int steps = max(0, end - begin + kStripRows - 1) / kStripRows;
#pragma unroll 4
    for (int i = steps - 1; i >= 0; --i) write(begin + i * kStripRows, read(begin + i * kStripRows));
  }

  // To the cluster's first CTA, which adds them in order.
  float part[3][4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    part[0][c] = sums[c].norm;
    part[1][c] = sums[c].loss;
    part[2][c] = sums[c].count;
  }
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const float all = reduce_strip(part[i], shared, add);
    if (threadIdx.x < kStrip) store_remote(&shared.sums[i][rank][threadIdx.x], 0, all);
  }
  cluster_sync();
  const int row = strip + threadIdx.x;
  if (rank > 0 || threadIdx.x >= kStrip || row >= args.rows) return;
  RowSums total;
  for (int r = 0; r < shares; ++r) {
    total.norm += shared.sums[0][r][threadIdx.x];
    total.loss += shared.sums[1][r][threadIdx.x];
    total.count += shared.sums[2][r][threadIdx.x];
  }
  describe(args, row, largest, total);
}

}  // namespace fusepass
