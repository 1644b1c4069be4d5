// A consumer warpgroup of the float32 split kernel: mainloop and epilogue of its 64 rows.
#pragma once
#include "gemm_sm90_f32_exact.cuh"
#include "gemm_sm90_f32_producer.cuh"
#include "gemm_sm90_f32_store.cuh"
#include "sm90/gemm_sm90_wgmma.cuh"

namespace fusepass {
constexpr int kChain = 2;            // steps of 16 K that the tensor cores add before float32 does
constexpr bool kTwoSums = kTileN <= 64;  // a narrow tile leaves registers for a sum of sums
constexpr int kSpan = 8;                 // steps of kTileK that go into one of them
constexpr int kConsumerBarrier = 1;  // + consumer: a named barrier of its four warps

__device__ __forceinline__ void release(uint32_t empty, int lane) {
  if (kCluster > 1) {
    if (lane < kCluster) mbarrier_arrive_remote(empty, lane);
  } else {
    if (lane == 0) mbarrier_arrive(empty);
  }
}

// What a wgmma left in flight may still be writing is read only behind this.
__device__ __forceinline__ void settle(Fragment& acc) {
#pragma unroll
  for (int i = 0; i < kFragment; ++i) asm volatile("" : "+f"(acc[i])::"memory");
}

// The sum of a tile's totals to twice float32's digits: high + low.
struct Sums {
  Fragment high, low;

  // Adds `total` and starts the next from 0. The error of the addition is exact in any order of the
  // two (Knuth's TwoSum).
  __device__ __forceinline__ void take(Fragment& total) {
#pragma unroll
    for (int i = 0; i < kFragment; ++i) {
      const float sum = __fadd_rn(high[i], total[i]);
      const float part = __fsub_rn(sum, high[i]);
      const float error = __fadd_rn(__fsub_rn(high[i], __fsub_rn(sum, part)),
                                    __fsub_rn(total[i], part));
      low[i] = __fadd_rn(low[i], error);
      high[i] = sum;
      total[i] = 0.0f;
    }
  }
};

// total becomes the sum of k_blocks steps of a tile's products, still scaled.
__device__ __forceinline__ void multiply(Fragment& total, uint32_t shared, Ring& ring, int k_blocks,
                                         int consumer, int lane) {
  Fragment chain, correction;
  Sums sums;
#pragma unroll
  for (int i = 0; i < kFragment; ++i) total[i] = correction[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < kFragment; ++i) sums.high[i] = sums.low[i] = 0.0f;
  uint32_t previous = 0;
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    const uint32_t stage = uniform(shared + ring.stage * kSplitStage);
    mbarrier_wait(shared + SplitShared::kFull + 8 * ring.stage, ring.phase);
    // In a descriptor: from hi to lo, and 16 of K: 32 bytes of a row, or 16 rows.
    constexpr uint32_t kLowX = kBytesX >> 4, kLowW = kBytesW >> 4;
    constexpr uint32_t kStepX = (FUSEPASS_X_IS_KM ? 16 * kRowBytes : 32) >> 4;
    constexpr uint32_t kStepW = (FUSEPASS_W_IS_KN ? 16 * kRowBytes : 32) >> 4;
    const uint32_t x = descriptor_low(stage + consumer * 64 * kRowBytes, kTileK * kRowBytes);
    const uint32_t w = descriptor_low(stage + 2 * kBytesX, kTileK * kRowBytes);
#pragma unroll
    for (int first = 0; first < kTileK / 16; first += kChain) {
      settle(chain);
      wgmma_fence();
#pragma unroll
      for (int step = first; step < first + kChain; ++step) {
        wgmma(chain, descriptor(x + kStepX * step), descriptor(w + kStepW * step), step - first);
      }
      wgmma_commit();
      wgmma_wait<1>();  // the corrections before
      if (first == 0 && k_block > 0) release(previous, lane);
      settle(correction);
      wgmma_fence();
#pragma unroll
      for (int step = first; step < first + kChain; ++step) {
        const uint32_t x_step = x + kStepX * step, w_step = w + kStepW * step;
        wgmma(correction, descriptor(x_step), descriptor(w_step + kLowW), 1);
        wgmma(correction, descriptor(x_step + kLowX), descriptor(w_step), 1);
      }
      wgmma_commit();
      wgmma_wait<1>();  // the chain; the corrections are in flight behind it
      settle(chain);
#pragma unroll
      for (int i = 0; i < kFragment; ++i) total[i] = __fadd_rn(total[i], chain[i]);
    }
    if (kTwoSums && k_block % kSpan == kSpan - 1) sums.take(total);
    previous = shared + SplitShared::kEmpty + 8 * ring.stage;
    ring.next();
  }
  wgmma_wait<0>();
  settle(correction);
  release(previous, lane);
  if (kTwoSums) sums.take(total);
#pragma unroll
  for (int i = 0; i < kFragment; ++i) {
    const float rest = kTwoSums ? sums.low[i] : total[i];
    total[i] = __fmaf_rn(correction[i], 1.0f / (1 << kSplitLow), rest);
    if (kTwoSums) total[i] = __fadd_rn(sums.high[i], total[i]);
  }
}

// What the outputs of 64 rows of a tile are finished with, in shared memory: undo and bias of its
// columns, undo of the rows.
constexpr int kFacts = split_facts(kTileN);
constexpr int kBiasAt = kTileN, kRowsAt = 2 * kTileN;

// Starts their copy, for which a tile's products leave time; 0 beyond the edge, and for no bias.
__device__ __forceinline__ void fetch_facts(const Split90Args& args, float* facts, int first_row,
                                            int column, int thread) {
  const uint32_t to = shared_address(facts + thread);
  const float* const bias = static_cast<const float*>(args.gemm.bias[0]);
  const int n = min(column + thread, args.gemm.n - 1);
  const uint32_t inside = column + thread < args.gemm.n ? 4 : 0;
  if (thread < kTileN) {
    copy_async_4(to, args.w.undo + n, inside);
    copy_async_4(to + 4 * kBiasAt, bias != nullptr ? bias + n : args.w.undo,
                 bias != nullptr ? inside : 0);
  }
  if (thread < kSumRows) {
    copy_async_4(to + 4 * kRowsAt, args.x.undo + min(first_row + thread, args.m - 1), 4);
  }
}

// The sum z of a thread's elements before the bias.
struct Judged {
  bool suspect;  // the warp has scaled z back, because it had to look at each element
  int verdict;
};

__device__ __forceinline__ Judged judge_sums(const Split90Args& args, Fragment& z,
                                             const float* facts, int first_row, int column,
                                             int thread) {
  const int lane = thread % 32, below = thread / 32 * 16 + lane / 4;
  const float2* undo = reinterpret_cast<const float2*>(facts) + lane % 4;
  const float row_undo[2] = {facts[kRowsAt + below], facts[kRowsAt + below + 8]};
  float sum = row_undo[0] + row_undo[1], least = 0.0f;
#pragma unroll
  for (int u = 0; u < kTileN / 8; ++u) {
    const float2 c = undo[4 * u];
    sum += c.x + c.y;
    least = fminf(least, fminf(c.x, c.y));
  }
  const bool dominated_x = __any_sync(~0u, fminf(row_undo[0], row_undo[1]) < 0.0f);
  const bool dominated_w = __any_sync(~0u, least < 0.0f);
  const bool suspect = __any_sync(~0u, isnan(sum)) || (dominated_x && dominated_w);
  return {suspect, suspect ? unscale_and_judge(args, z, first_row + below, column, lane) : kKeep};
}

// Scales z back, unless the warp has, and adds the bias.
__device__ __forceinline__ void scale_back(Fragment& z, const float* facts, bool is_scaled,
                                           int thread) {
  const int lane = thread % 32, below = thread / 32 * 16 + lane / 4;
  const float2* undo = reinterpret_cast<const float2*>(facts) + lane % 4;
  const float2* bias = reinterpret_cast<const float2*>(facts + kBiasAt) + lane % 4;
  const float row_undo[2] = {facts[kRowsAt + below], facts[kRowsAt + below + 8]};
#pragma unroll
  for (int u = 0; u < kTileN / 8; ++u) {
    const float2 c = undo[4 * u], b = bias[4 * u];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* v = z + 4 * u + 2 * h;
      v[0] = __fmaf_rn(v[0], is_scaled ? 1.0f : fabsf(row_undo[h] * c.x), b.x);
      v[1] = __fmaf_rn(v[1], is_scaled ? 1.0f : fabsf(row_undo[h] * c.y), b.y);
    }
  }
}

// From the sum of products to z. `room` is kSumBytes of the consumer's own; its four warps take part.
__device__ __forceinline__ void finish(const Split90Args& args, Fragment& z, const float* facts,
                                       uint8_t* room, int first_row, int column, int barrier,
                                       int thread) {
  using Few = FewShared<4, kTileN>;
  static_assert(sizeof(Few) <= kSumBytes);
  Few& few = *reinterpret_cast<Few*>(room);
  const Judged judged = judge_sums(args, z, facts, first_row, column, thread);
  const bool mended = barrier_any(barrier, 128, judged.verdict != kKeep);
  if (mended) {
    const auto sync = [=] { barrier_sync(barrier, 128); };
    if (barrier_any(barrier, 128, judged.verdict == kSumAgain) ||
        !mend(args, few, facts + kBiasAt, first_row, column, thread, sync)) {
      double total[kFragment];
      sum_products(args, total, facts + kBiasAt, reinterpret_cast<double*>(room), first_row, column,
                   0, args.k, barrier, thread);
#pragma unroll
      for (int e = 0; e < kFragment; ++e) z[e] = static_cast<float>(total[e]);
      return;
    }
  }
  scale_back(z, facts, judged.suspect, thread);
  if (mended) take_mended(z, few, thread);
}

// The finished z of 64 rows of a tile from first_row on, through the epilogue, by 128 threads.
// all_read() is called when nothing of `staged` is needed any more.
template <class AllRead>
__device__ __forceinline__ void store(const Split90Args& args, const Fragment& z, int first_row,
                                      int column, int thread, const StagedMats& staged,
                                      AllRead all_read) {
  const int lane = thread % 32, row = first_row + thread / 32 * 16 + lane / 4;
  float scalars[Epilogue::kScalars + 1];
  Epilogue::load(scalars, GemmScalars{args.gemm});
  const Float32Store<FUSEPASS_ODD_N> to(args.outputs, row, column, lane);
  to.write<8>(z, scalars, staged, all_read);
}

// Waits for those mats of the tile that come through the ring behind its products.
__device__ __forceinline__ StagedMats wait_for_mats(const Split90Args& args, uint32_t shared,
                                                    Ring& ring, int consumer, int thread) {
  const int lane = thread % 32, row = consumer * 64 + thread / 32 * 16 + lane / 4;
  StagedMats mats;
  each_staged<Epilogue>(args.staged_mats, [&](int j) {
    mbarrier_wait(shared + SplitShared::kFull + 8 * ring.stage, ring.phase);
    mats.at[j] = StagedMats::place(shared + ring.stage * kSplitStage, row, lane);
    ring.next();
  });
  return mats;
}

// Gives their stages back, the first of which is `ring`'s.
__device__ __forceinline__ void release_mats(const Split90Args& args, uint32_t shared, Ring ring,
                                             int lane) {
  each_staged<Epilogue>(args.staged_mats, [&](int) {
    __syncwarp();  // all lanes have read
    release(shared + SplitShared::kEmpty + 8 * ring.stage, lane);
    ring.next();
  });
}

// Where the sums of a segment of a group, 64 rows of a tile, lie: kFragment / 4 times 128. Groups are
// numbered by rows.
__device__ __forceinline__ float4* partial_of(const Split90Args& args, int segment, int group) {
  const int64_t groups = int64_t{(args.m + 63) / 64} * args.gemm.tiles_n;
  return reinterpret_cast<float4*>(args.partial) + (segment * groups + group) * (kFragment / 4 * 128);
}

__device__ __forceinline__ void consume(const Split90Args& args, uint32_t shared, uint8_t* generic,
                                        uint32_t rank, int consumer) {
  const int tiles = args.gemm.clusters_m * args.gemm.tiles_n, clusters = gridDim.x / kCluster;
  const int units = kSegments ? tiles * args.segments : tiles;
  const int barrier = kConsumerBarrier + consumer;
  Ring ring;
  for (int t = blockIdx.x / kCluster; t < units; t += clusters) {
    const Tile tile(args.gemm, kSegments ? t % tiles : t, rank);
    const int first_row = tile.row + consumer * 64;
    // Opaque, so that nothing derived from it takes a register during the mainloop.
    int thread = threadIdx.x % 128;
    asm volatile("" : "+r"(thread));
    float* const facts = reinterpret_cast<float*>(generic + SplitShared::kFacts) + consumer * kFacts;
    int k_blocks = args.gemm.k_blocks;
    if (kSegments) {
      k_blocks = min(args.segment_blocks, k_blocks - t / tiles * args.segment_blocks);
    } else {
      barrier_sync(barrier, 128);  // the previous tile's facts are read
      fetch_facts(args, facts, first_row, tile.column, thread);
      prefetch_mats<Epilogue>(args.outputs, args.staged_mats, first_row, tile.column, kTileN, thread);
    }
    Fragment z;
    multiply(z, shared, ring, k_blocks, consumer, threadIdx.x % 32);

    asm volatile("" : "+r"(thread));
    if (kSegments) {
      if (first_row >= args.m) continue;
      const int group = first_row / 64 * args.gemm.tiles_n + tile.column / kTileN;
      float4* const to = partial_of(args, t / tiles, group) + thread;
#pragma unroll
      for (int i = 0; i < kFragment; i += 4) to[i * 32] = {z[i], z[i + 1], z[i + 2], z[i + 3]};
      continue;
    }
    copy_async_wait();
    barrier_sync(barrier, 128);
    uint8_t* const room = generic + SplitShared::kRoom + consumer * kSumBytes;
    finish(args, z, facts, room, first_row, tile.column, barrier, thread);
    const Ring mats = ring;
    const StagedMats staged = wait_for_mats(args, shared, ring, consumer, thread);
    store(args, z, first_row, tile.column, thread, staged,
          [&] { release_mats(args, shared, mats, thread % 32); });
  }
}

}  // namespace fusepass
