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

// Adds the adder's segments in order: they wait for memory side by side.
__device__ __forceinline__ void add_segments(const Split90Args& args, Adders& sums, int group,
                                             int adder, int thread) {
  const float4* const partial = partial_of(args, 0, group) + thread;
  const int64_t step = partial_of(args, 1, 0) - partial_of(args, 0, 0);
  const int first = args.segments * adder / kAdders;
  const int end = args.segments * (adder + 1) / kAdders;
  constexpr int kQuads = 8;  // in flight
#pragma unroll
  for (int i = 0; i < kFragment / 4; i += kQuads) {
    double sum[kQuads][4] = {};
#pragma unroll 1
    for (int s = first; s < end; ++s) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const float4 v = partial[s * step + (i + q) * 128];
        sum[q][0] += v.x, sum[q][1] += v.y, sum[q][2] += v.z, sum[q][3] += v.w;
      }
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
  add_segments(args, sums, group, adder, thread);
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
      if (is_first) store(args, z, memory, first_row, column, thread, StagedMats{}, [] {});
      return;
    }
  }
  if (!is_first) return;
  scale_back(z, facts, judged.suspect, thread);
  if (mended) {
    take_mended(z, few, thread);
    barrier_sync(kConsumerBarrier, 128);  // the memory is free
  }
  store(args, z, memory, first_row, column, thread, StagedMats{}, [] {});
}

}  // namespace fusepass
