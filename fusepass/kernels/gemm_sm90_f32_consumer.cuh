// A consumer warpgroup of the float32 split kernel: mainloop and epilogue of its 64 rows.
#pragma once
#include "gemm_sm90_f32_exact.cuh"
#include "gemm_sm90_f32_producer.cuh"
#include "gemm_sm90_f32_stages.cuh"
#include "gemm_sm90_wgmma.cuh"

namespace fusepass {
constexpr int kChain = 2;            // steps of 16 K that the tensor cores add before float32 does
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

// total + 2^-11 * correction is the sum of a tile's products; both are complete on return.
__device__ __forceinline__ void multiply(Fragment& total, Fragment& correction, uint32_t shared,
                                         Ring& ring, int k_blocks, int consumer, int lane) {
  Fragment chain;
#pragma unroll
  for (int i = 0; i < kFragment; ++i) total[i] = correction[i] = 0.0f;
  uint32_t previous = 0;
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    const uint32_t stage = uniform(shared + ring.stage * kSplitStage);
    mbarrier_wait(shared + SplitShared::kFull + 8 * ring.stage, ring.phase);
    constexpr uint32_t kLowX = kBytesX >> 4, kLowW = kBytesW >> 4;  // from hi, in a descriptor
    const uint32_t x = descriptor_low(stage + consumer * 64 * kRowBytes, 16);
    const uint32_t w = descriptor_low(stage + 2 * kBytesX, 16);
#pragma unroll
    for (int first = 0; first < kTileK / 16; first += kChain) {
      settle(chain);
      wgmma_fence();
#pragma unroll
      for (int step = first; step < first + kChain; ++step) {
        wgmma(chain, descriptor(x + 2 * step), descriptor(w + 2 * step), step - first);
      }
      wgmma_commit();
      wgmma_wait<1>();  // the corrections before
      if (first == 0 && k_block > 0) release(previous, lane);
      settle(correction);
      wgmma_fence();
#pragma unroll
      for (int step = first; step < first + kChain; ++step) {
        wgmma(correction, descriptor(x + 2 * step), descriptor(w + kLowW + 2 * step), 1);
        wgmma(correction, descriptor(x + kLowX + 2 * step), descriptor(w + 2 * step), 1);
      }
      wgmma_commit();
      wgmma_wait<1>();  // the chain; the corrections are in flight behind it
      settle(chain);
#pragma unroll
      for (int i = 0; i < kFragment; ++i) total[i] = __fadd_rn(total[i], chain[i]);
    }
    previous = shared + SplitShared::kEmpty + 8 * ring.stage;
    ring.next();
  }
  wgmma_wait<0>();
  settle(correction);
  release(previous, lane);
}

// Scales back and adds the bias: z, from total and correction. `columns` holds undo, then bias;
// `room` is sum_tile's. All four warps of the consumer take part.
__device__ __forceinline__ void finish(const Split90Args& args, Fragment& z,
                                       const Fragment& correction, const float* columns,
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

#pragma unroll
  for (int i = 0; i < kFragment; ++i) {
    z[i] = __fmaf_rn(correction[i], 1.0f / (1 << kSplitLow), z[i]);
  }
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

__device__ __forceinline__ void consume(const Split90Args& args, uint32_t shared, uint8_t* generic,
                                        uint32_t rank, int consumer) {
  using full::Epilogue;
  const int tiles = args.gemm.clusters_m * args.gemm.tiles_n, clusters = gridDim.x / kCluster;
  Ring ring;
  for (int t = blockIdx.x / kCluster; t < tiles; t += clusters) {
    Fragment z, correction;
    multiply(z, correction, shared, ring, args.gemm.k_blocks, consumer, threadIdx.x % 32);

    // Opaque, so that nothing derived from it takes a register during the mainloop.
    int thread = threadIdx.x % 128;
    asm volatile("" : "+r"(thread));
    const int lane = thread % 32;
    const Tile tile(args.gemm, t, rank);
    float* const columns = reinterpret_cast<float*>(generic + SplitShared::kColumns) +
                           consumer * 2 * kTileN;
    double* const room = reinterpret_cast<double*>(generic + SplitShared::kRoom +
                                                   consumer * kSumBytes);
    const int barrier = kConsumerBarrier + consumer;
    const int mine = tile.column + thread;
    const bool inside = mine < args.gemm.n;
    const float* bias = static_cast<const float*>(args.gemm.bias);
    barrier_sync(barrier, 128);  // the previous tile's columns are read
    if (thread < kTileN) {
      columns[thread] = inside ? args.w.undo[mine] : 0.0f;
      columns[kTileN + thread] = inside && bias != nullptr ? bias[mine] : 0.0f;
    }
    barrier_sync(barrier, 128);

    const int first_row = tile.row + consumer * 64, row = first_row + thread / 32 * 16 + lane / 4;
    finish(args, z, correction, columns, room, first_row, tile.column, barrier, thread);
    float scalars[Epilogue::kScalars + 1];
#pragma unroll
    for (int i = 0; i < Epilogue::kScalars; ++i) {
      scalars[i] = load_scalar<kOperands, false>(args.gemm, i);
    }
    const Float32Store store(args.out, args.preact, args.m, args.gemm.n, row, tile.column, lane);
    store.write<8>(z, [&](auto& v) { Epilogue::apply(v, scalars); });
  }
}

}  // namespace fusepass
