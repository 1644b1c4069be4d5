// A consumer warpgroup of the float32 split kernel: mainloop and epilogue of its 64 rows.
#pragma once
#include "gemm_sm90_f32_exact.cuh"
#include "gemm_sm90_f32_producer.cuh"
#include "gemm_sm90_f32_store.cuh"
#include "gemm_sm90_wgmma.cuh"

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

// Scales the sum z back and adds the bias. `columns` holds undo, then bias; `room` is sum_tile's. All
// four warps take part.
__device__ __forceinline__ void finish(const Split90Args& args, Fragment& z, const float* columns,
                                       double* room, int first_row, int column, int barrier,
                                       int thread) {
  const int lane = thread % 32, row = first_row + thread / 32 * 16 + lane / 4;
  const float2* undo = reinterpret_cast<const float2*>(columns) + lane % 4;
  const float2* bias = reinterpret_cast<const float2*>(columns + kTileN) + lane % 4;
  float row_undo[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) row_undo[h] = args.x.undo[min(row + 8 * h, args.m - 1)];

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

  const bool unsafe = suspect && unscale_and_judge(args, z, row, column, lane);
  if (barrier_any(barrier, 128, unsafe)) {
    sum_tile(args, z, columns + kTileN, room, first_row, column, barrier, thread);
    return;
  }
#pragma unroll
  for (int u = 0; u < kTileN / 8; ++u) {
    const float2 c = undo[4 * u], b = bias[4 * u];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* v = z + 4 * u + 2 * h;
      v[0] = __fmaf_rn(v[0], suspect ? 1.0f : fabsf(row_undo[h] * c.x), b.x);
      v[1] = __fmaf_rn(v[1], suspect ? 1.0f : fabsf(row_undo[h] * c.y), b.y);
    }
  }
}

// undo and bias of a tile's columns.
__device__ __forceinline__ void load_columns(const Split90Args& args, float* columns, int first,
                                             int thread) {
  const int mine = first + thread;
  const bool inside = mine < args.gemm.n;
  const float* bias = static_cast<const float*>(args.gemm.bias[0]);
  if (thread >= kTileN) return;
  columns[thread] = inside ? args.w.undo[mine] : 0.0f;
  columns[kTileN + thread] = inside && bias != nullptr ? bias[mine] : 0.0f;
}

// The tile's 64 rows from first_row on: from the sum of their products to the output.
__device__ __forceinline__ void finish_and_store(const Split90Args& args, Fragment& z,
                                                 const float* columns, double* room, int first_row,
                                                 int column, int barrier, int thread) {
  const int lane = thread % 32, row = first_row + thread / 32 * 16 + lane / 4;
  finish(args, z, columns, room, first_row, column, barrier, thread);
  float scalars[Epilogue::kScalars + 1];
  Epilogue::load(scalars, GemmScalars{args.gemm});
  const Float32Store store(args.out, args.preact, args.m, args.gemm.n, row, column, lane);
  store.write<8>(z, scalars);
}

// Where the sums of a segment of these 64 rows and a tile's columns lie: kFragment / 4 times 128.
__device__ __forceinline__ float4* partial_at(const Split90Args& args, int segment, int first_row,
                                              int column) {
  const int64_t groups = int64_t{(args.m + 63) / 64} * args.gemm.tiles_n;
  const int64_t group = int64_t{first_row / 64} * args.gemm.tiles_n + column / kTileN;
  return reinterpret_cast<float4*>(args.partial) + (segment * groups + group) * (kFragment / 4 * 128);
}

__device__ __forceinline__ void consume(const Split90Args& args, uint32_t shared, uint8_t* generic,
                                        uint32_t rank, int consumer) {
  const int tiles = args.gemm.clusters_m * args.gemm.tiles_n, clusters = gridDim.x / kCluster;
  const int units = kSegments ? tiles * args.segments : tiles;
  Ring ring;
  for (int t = blockIdx.x / kCluster; t < units; t += clusters) {
    int k_blocks = args.gemm.k_blocks;
    if (kSegments) k_blocks = min(args.segment_blocks, k_blocks - t / tiles * args.segment_blocks);
    Fragment z;
    multiply(z, shared, ring, k_blocks, consumer, threadIdx.x % 32);

    // Opaque, so that nothing derived from it takes a register during the mainloop.
    int thread = threadIdx.x % 128;
    asm volatile("" : "+r"(thread));
    const Tile tile(args.gemm, kSegments ? t % tiles : t, rank);
    const int first_row = tile.row + consumer * 64;
    if (kSegments) {
      if (first_row >= args.m) continue;
      float4* const to = partial_at(args, t / tiles, first_row, tile.column) + thread;
#pragma unroll
      for (int i = 0; i < kFragment; i += 4) to[i * 32] = {z[i], z[i + 1], z[i + 2], z[i + 3]};
      continue;
    }
    float* const columns = reinterpret_cast<float*>(generic + SplitShared::kColumns) +
                           consumer * 2 * kTileN;
    double* const room = reinterpret_cast<double*>(generic + SplitShared::kRoom +
                                                   consumer * kSumBytes);
    const int barrier = kConsumerBarrier + consumer;
    barrier_sync(barrier, 128);  // the previous tile's columns are read
    load_columns(args, columns, tile.column, thread);
    barrier_sync(barrier, 128);
    finish_and_store(args, z, columns, room, first_row, tile.column, barrier, thread);
  }
}

constexpr int kAdders = split_adders(kTileN);

// The second kernel where K is cut: a block puts 64 rows of a tile together. Each of its warpgroups
// adds some of the segments in order, the first all that the others have: they wait for memory side
// by side.
__device__ __forceinline__ void sum_segments(const Split90Args& args, uint8_t* memory, int block) {
  __shared__ float columns[2 * kTileN];
  double* const sums = reinterpret_cast<double*>(memory);  // [adder][kFragment][128]
  const int thread = threadIdx.x % 128, adder = threadIdx.x / 128;
  const int first_row = block / args.gemm.tiles_n * 64;
  const int column = block % args.gemm.tiles_n * kTileN;
  const float4* const partial = partial_at(args, 0, first_row, column) + thread;
  const int64_t step = partial_at(args, 1, 0, 0) - partial_at(args, 0, 0, 0);
  const int first = args.segments * adder / kAdders;
  const int end = args.segments * (adder + 1) / kAdders;
  constexpr int kQuads = 8;  // in flight, and of the next segment as many
#pragma unroll
  for (int i = 0; i < kFragment / 4; i += kQuads) {
    double sum[kQuads][4] = {};
#pragma unroll 2
    for (int s = first; s < end; ++s) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const float4 v = partial[s * step + (i + q) * 128];
        sum[q][0] += v.x, sum[q][1] += v.y, sum[q][2] += v.z, sum[q][3] += v.w;
      }
    }
#pragma unroll
    for (int e = 0; e < 4 * kQuads; ++e) {
      sums[(adder * kFragment + 4 * i + e) * 128 + thread] = sum[e / 4][e % 4];
    }
  }
  if (adder == 0) load_columns(args, columns, column, thread);
  __syncthreads();
  if (adder > 0) return;
  Fragment z;
#pragma unroll
  for (int e = 0; e < kFragment; ++e) {
    double sum = sums[e * 128 + thread];
#pragma unroll
    for (int a = 1; a < kAdders; ++a) sum += sums[(a * kFragment + e) * 128 + thread];
    z[e] = static_cast<float>(sum);
  }
  // A tile that is summed from its operands takes the same memory: all have met at a barrier by then.
  finish_and_store(args, z, columns, sums, first_row, column, kConsumerBarrier, thread);
}

}  // namespace fusepass
