// The pre-pass of a matrix stored [k, rows], whose pieces stay in that order: a cluster of CTAs takes
// kStrip columns from the first k to the last, each CTA a share of k. Reads are whole lines of memory,
// writes half lines.
//
// A share is read twice, to find the largest and to split, the second time backwards: what the CTAs
// in flight have read last is still in the cache, for k up to some 10,000 all of it.
#pragma once
#include "sm90/gemm_sm90_ptx.cuh"
#include "split_sm90.cuh"
#include "split_sm90_list.cuh"

namespace fusepass {

constexpr int kStrip = kSplitStrip;
constexpr int kStripQuads = kStrip / 4;  // a thread's elements are one of a row
constexpr int kStripMostWarps = 2 * kSplitColumnThreads / 32;
constexpr int kStripBatch = 4;           // quads a thread reads before it looks at one

// Of rows of few elements: which they are, what each warp found of one, and where.
struct FewStrip {
  uint32_t marks;
  int found[kStripMostWarps];
  int list[kStripMostWarps][kSplitListed];
};

// Warps' results, then the CTA's, then, in the cluster's first CTA, those of all.
struct StripShared {
  float warp[kStripMostWarps][kStrip];
  float largest[kStrip];
  float sums[3][kSplitMostShares][kStrip];
  FewStrip few;
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
template <int kThreads, class F>
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
  for (int w = 1; w < kThreads / 32; ++w) all = combine(all, shared.warp[w][threadIdx.x]);
  return all;
}

// A thread's share of k, every kRows-th from `begin` on, of a quad of columns.
template <int kThreads>
struct Share {
  static constexpr int kRows = kThreads / kStripQuads;  // of k that the CTA takes at a time

  const float* src;
  int64_t ld;
  int begin, end;
  int inside;  // columns within the matrix
  bool whole;  // a quad is one read

  template <bool kWhole>
  __device__ __forceinline__ float4 read(int64_t k) const {
    const float* from = src + k * ld;
    if (kWhole) return *reinterpret_cast<const float4*>(from);
    float4 v = {from[0], 0.0f, 0.0f, 0.0f};
    if (inside > 1) v.y = from[1];
    if (inside > 2) v.z = from[2];
    if (inside > 3) v.w = from[3];
    return v;
  }

  // f(k, quad) for all of the share, `step` apart from `first` on, kStripBatch reads in flight.
  template <bool kWhole, class F>
  __device__ __forceinline__ void each(int first, int step, F f) const {
    int k = first, left = begin < end ? (end - 1 - begin) / kRows + 1 : 0;
    for (; left >= kStripBatch; left -= kStripBatch, k += kStripBatch * step) {
      float4 v[kStripBatch];
#pragma unroll
      for (int i = 0; i < kStripBatch; ++i) v[i] = read<kWhole>(k + i * step);
#pragma unroll
      for (int i = 0; i < kStripBatch; ++i) f(k + i * step, v[i]);
    }
#pragma unroll 1
    for (; left > 0; --left, k += step) f(k, read<kWhole>(k));
  }
  template <class F>
  __device__ __forceinline__ void forwards(F f) const {
    whole ? each<true>(begin, kRows, f) : each<false>(begin, kRows, f);
  }
  template <class F>
  __device__ __forceinline__ void backwards(F f) const {
    const int last = begin + max(0, end - 1 - begin) / kRows * kRows;
    whole ? each<true>(last, -kRows, f) : each<false>(last, -kRows, f);
  }
};

// Lists the elements of those columns of the strip that have few: `few` of the thread of that number.
template <int kThreads>
__device__ __forceinline__ void list_few(const Split90Rows& args, FewStrip& shared, int strip,
                                         bool few) {
  constexpr int kWarps = kThreads / 32;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  if (warp == 0) {
    const uint32_t marks = __ballot_sync(~0u, few);
    if (lane == 0) shared.marks = marks;
  }
  __syncthreads();
  for (uint32_t rest = shared.marks; rest != 0; rest &= rest - 1) {
    const int row = strip + __ffs(static_cast<int>(rest)) - 1;
    const int mine = list_row<kWarps>(args.src + row, args.ld, args.k, shared.list[warp], thread);
    if (lane == 0) shared.found[warp] = mine;
    if (lane == 0 && warp == 0) {
      for (int w = kWarps; w < kStripMostWarps; ++w) shared.found[w] = 0;
    }
    __syncthreads();
    const Found found(shared.found, warp, kSplitListed);
    if (found.fits && found.all <= kSplitListed) {
      int32_t* const to = args.list + int64_t{row} * kSplitListed + found.before;
      if (lane < mine) to[lane] = shared.list[warp][lane];
      if (thread == 0) args.detail[row].kind |= found.all << kSplitCount;
    }
    __syncthreads();  // the lists are read
  }
}

// rows counts the columns of the source, whose rows of them are `ld` apart.
template <int kThreads>
__device__ __forceinline__ void split_columns(const Split90Both& both) {
  __shared__ StripShared shared;
  grid_dependency_wait();
  grid_dependents_launch();
  const bool is_w = blockIdx.x >= both.x_blocks;
  const Split90Rows args = is_w ? both.w : both.x;
  const int shares = both.shares, block = blockIdx.x - (is_w ? both.x_blocks : 0);
  const int rank = block % shares, strip = block / shares * kStrip;
  const int column = strip + threadIdx.x % kStripQuads * 4;
  const int depth = (args.k + shares - 1) / shares;
  Share<kThreads> share;
  share.src = args.src + column;
  share.ld = args.ld;
  share.begin = rank * depth + threadIdx.x / kStripQuads;
  share.inside = args.rows - column;
  share.end = share.inside > 0 ? min(args.k, (rank + 1) * depth) : 0;
  share.whole = share.inside >= 4 && args.quads;

  float top[4] = {};
  share.forwards([&](int, float4 v) {
    top[0] = max_or_nan(top[0], fabsf(v.x));
    top[1] = max_or_nan(top[1], fabsf(v.y));
    top[2] = max_or_nan(top[2], fabsf(v.z));
    top[3] = max_or_nan(top[3], fabsf(v.w));
  });
  float largest = reduce_strip<kThreads>(top, shared, max_or_nan);
  if (threadIdx.x < kStrip) shared.largest[threadIdx.x] = largest;
  cluster_sync();
  if (threadIdx.x < kStrip) {
    for (int r = 0; r < shares; ++r) {
      largest = max_or_nan(largest, load_remote(&shared.largest[threadIdx.x], r));
    }
    shared.warp[0][threadIdx.x] = largest;
  }
  __syncthreads();
  float scale[4];
  bool finite[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const float mine = shared.warp[0][threadIdx.x % kStripQuads * 4 + c];
    finite[c] = is_finite(mine);
    scale[c] = scale_of(mine);
  }

  RowSums sums[4];
  share.backwards([&](int k, float4 quad) {
    float v[4] = {quad.x, quad.y, quad.z, quad.w}, scaled[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (!finite[c]) v[c] = 0.0f;
      scaled[c] = v[c] * scale[c];
    }
    const int64_t at = k * args.pitch + column;
    split_quad<1>(v, scaled, reinterpret_cast<uint2*>(args.hi + at),
                  reinterpret_cast<uint2*>(args.lo + at), sums);
  });

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
    const float all = reduce_strip<kThreads>(part[i], shared, add);
    if (threadIdx.x < kStrip) store_remote(&shared.sums[i][rank][threadIdx.x], 0, all);
  }
  cluster_sync();
  if (rank > 0) return;
  const int row = strip + threadIdx.x;
  bool few = false;
  if (threadIdx.x < kStrip && row < args.rows) {
    RowSums total;
    for (int r = 0; r < shares; ++r) {
      total.norm += shared.sums[0][r][threadIdx.x];
      total.loss += shared.sums[1][r][threadIdx.x];
      total.count += shared.sums[2][r][threadIdx.x];
    }
    few = describe(args, row, largest, total) & kSplitFew;
  }
  list_few<kThreads>(args, shared.few, strip, few);
}

}  // namespace fusepass
