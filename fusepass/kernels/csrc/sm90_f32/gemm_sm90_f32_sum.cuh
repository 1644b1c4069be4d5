// The second kernel where K is cut: a block puts 64 rows of a tile together, the sums of their segments.
//
// Where these must be summed again, all of the block's warpgroups take a share of K each; and so do the
// blocks of a cluster, which the host makes as large as leaves each a multiprocessor: a weight gradient
// of few tiles has a long K. Until then the blocks of a cluster do the same.
#pragma once
#include "gemm_sm90_f32_consumer.cuh"

namespace fusepass {

constexpr int kAdders = split_adders(kTileN);
using Adders = double[kAdders][kFragment][128];
static_assert(sizeof(Adders) == split_adders_bytes(kTileN) && kAdders * kSumBytes <= sizeof(Adders));

__device__ inline uint32_t cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
  return size;
}

__device__ inline double load_cluster(uint32_t address) {
  double v;
  asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(v) : "r"(address) : "memory");
  return v;
}

// The scales of a thread's two rows and of its columns in kQuads units of 8, as powers of two.
template <int kQuads>
struct ScalesOfQuads {
  int row[2], column[kQuads][2];

  __device__ __forceinline__ void read(const Split90Args& args, const SplitRow* x, const SplitRow* w,
                                       int group, int first, int thread) {
    const int lane = thread % 32;
    const int r = group / args.gemm.tiles_n * 64 + thread / 32 * 16 + lane / 4;
    const int c = group % args.gemm.tiles_n * kTileN + first * 8 + 2 * (lane % 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) row[h] = x[min(r + 8 * h, args.m - 1)].exponent;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        column[q][i] = w[min(c + 8 * q + i, args.gemm.n - 1)].exponent;
      }
    }
  }

  // 2^(sign * both scales) of a quad's element.
  __device__ __forceinline__ double power(int quad, int element, int sign) const {
    return power_of_two_64(sign * (row[element / 2] + column[quad][element % 2]));
  }
};

// Adds the adder's segments in order: they wait for memory side by side. kParts: each part of K has its
// own scales, and the sums get those of all of K; float64 holds them without any.
template <bool kParts>
__device__ __forceinline__ void add_segments(const Split90Args& args, Adders& sums, int group,
                                             int adder, int thread) {
  const float4* const partial = partial_of(args, 0, group) + thread;
  const int64_t step = partial_of(args, 1, 0) - partial_of(args, 0, 0);
  const int first = args.segments * adder / kAdders;
  const int end = args.segments * (adder + 1) / kAdders;
  constexpr int kQuads = kParts ? 4 : 8;  // in flight
#pragma unroll
  for (int i = 0; i < kFragment / 4; i += kQuads) {
    double sum[kQuads][4] = {};
    ScalesOfQuads<kQuads> scales;
#pragma unroll 1
    for (int s = first; s < end; ++s) {
      if constexpr (kParts) {
        const int part = s / args.segments_of_part;
        scales.read(args, args.x_parts.detail + part * args.x_parts.step,
                    args.w_parts.detail + part * args.w_parts.step, group, i, thread);
      }
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const float4 v = partial[s * step + (i + q) * 128];
        if constexpr (kParts) {
          sum[q][0] = fma(double{v.x}, scales.power(q, 0, 1), sum[q][0]);
          sum[q][1] = fma(double{v.y}, scales.power(q, 1, 1), sum[q][1]);
          sum[q][2] = fma(double{v.z}, scales.power(q, 2, 1), sum[q][2]);
          sum[q][3] = fma(double{v.w}, scales.power(q, 3, 1), sum[q][3]);
        } else {
          sum[q][0] += v.x, sum[q][1] += v.y, sum[q][2] += v.z, sum[q][3] += v.w;
        }
      }
    }
    if constexpr (kParts) {
      scales.read(args, args.x.detail, args.w.detail, group, i, thread);
#pragma unroll
      for (int e = 0; e < 4 * kQuads; ++e) sum[e / 4][e % 4] *= scales.power(e / 4, e % 4, -1);
    }
#pragma unroll
    for (int e = 0; e < 4 * kQuads; ++e) sums[adder][4 * i + e][thread] = sum[e / 4][e % 4];
  }
}

// z, bias included, in the first adder of the cluster's first block. All threads of the cluster take
// part, and `sums` is theirs.
__device__ __forceinline__ void sum_again(const Split90Args& args, Fragment& z, const float* bias,
                                          Adders& sums, int first_row, int column, int adder,
                                          int thread) {
  const int rank = cluster_rank(), blocks = cluster_size();
  const int parts = blocks * kAdders, part = rank * kAdders + adder;
  const int depth = (args.k / parts / kSumSpan + 1) * kSumSpan;
  const int first = static_cast<int>(min(int64_t{part} * depth, int64_t{args.k}));
  const int end = min(first + depth, args.k);
  double* const room = reinterpret_cast<double*>(reinterpret_cast<uint8_t*>(sums) + adder * kSumBytes);
  double total[kFragment];
  sum_products(args, total, part == 0 ? bias : nullptr, room, first_row, column, first, end,
               kConsumerBarrier + adder, thread);
  __syncthreads();  // the rooms have been read
#pragma unroll
  for (int e = 0; e < kFragment; ++e) sums[adder][e][thread] = total[e];
  cluster_sync();
  if (part == 0) {
#pragma unroll
    for (int e = 0; e < kFragment; ++e) {
      double sum = sums[0][e][thread];
#pragma unroll 1
      for (int p = 1; p < parts; ++p) {
        sum += load_cluster(shared_of(p / kAdders, shared_address(&sums[p % kAdders][e][thread])));
        overflow(sum);
      }
      z[e] = static_cast<float>(sum);
    }
  }
  cluster_sync();  // a block's shared memory lives until it has been read
}

__device__ __forceinline__ void sum_segments(const Split90Args& args, uint8_t* memory) {
  using Few = FewShared<4 * kAdders, kTileN>;
  static_assert(sizeof(Few) <= sizeof(Adders));
  __shared__ float facts[kFacts];
  Adders& sums = *reinterpret_cast<Adders*>(memory);
  Few& few = *reinterpret_cast<Few*>(memory);
  // Opaque, so that nothing derived from it takes a register while segments are added.
  int group = blockIdx.x / cluster_size();
  const int thread = threadIdx.x % 128, adder = threadIdx.x / 128;
  if (Epilogue::kMats > 0 && adder == 0 && cluster_rank() == 0) {
    const int first_row = group / args.gemm.tiles_n * 64;
    const int column = group % args.gemm.tiles_n * kTileN;
    prefetch_mats<Epilogue>(args.outputs, 0, first_row, column, kTileN, thread);
  }
  if (args.segments_of_part > 0) {
    add_segments<true>(args, sums, group, adder, thread);
  } else {
    add_segments<false>(args, sums, group, adder, thread);
  }
  asm volatile("" : "+r"(group));
  const int first_row = group / args.gemm.tiles_n * 64;
  const int column = group % args.gemm.tiles_n * kTileN;
  const bool is_first = cluster_rank() == 0 && adder == 0;  // writes the outputs
  if (adder == 0) fetch_facts(args, facts, first_row, column, thread);
  copy_async_wait();
  __syncthreads();
  Fragment z;
  Judged judged{false, kKeep};
  if (adder == 0) {
#pragma unroll
    for (int e = 0; e < kFragment; ++e) {
      double sum = sums[0][e][thread];
#pragma unroll
      for (int a = 1; a < kAdders; ++a) sum += sums[a][e][thread];
      z[e] = static_cast<float>(sum);
    }
    judged = judge_sums(args, z, facts, first_row, column, thread);
  }
  const bool mended = __syncthreads_or(judged.verdict != kKeep);
  if (mended) {
    if (__syncthreads_or(judged.verdict == kSumAgain) ||
        !mend(args, few, facts + kBiasAt, first_row, column, threadIdx.x, [] { __syncthreads(); })) {
      sum_again(args, z, facts + kBiasAt, sums, first_row, column, adder, thread);
      if (is_first) store(args, z, first_row, column, thread, StagedMats{}, [] {});
      return;
    }
  }
  if (!is_first) return;
  scale_back(z, facts, judged.suspect, thread);
  if (mended) take_mended(z, few, thread);
  store(args, z, first_row, column, thread, StagedMats{}, [] {});
}

}  // namespace fusepass
