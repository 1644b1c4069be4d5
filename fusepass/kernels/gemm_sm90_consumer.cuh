// A consumer warpgroup: mainloop and epilogue of its tiles.
#pragma once
#include "gemm_sm90_epilogue.cuh"
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"
#include "gemm_sm90_wgmma.cuh"

namespace fusepass {

using Epilogue = decltype(Chain<>{} | FUSEPASS_STAGES);
using Accumulators = float[kBlocks][kAccumulators];

// Named barriers; 0 is __syncthreads.
constexpr int kTurn = 1;   // + consumer: its turn in the mainloop (ping-pong)
constexpr int kGroup = 3;  // + consumer: its four warps

// Gives a stage back to the producers that fill it: one arrival a warp and CTA of the cluster.
__device__ __forceinline__ void release(uint32_t empty, int lane) {
  if (kCluster > 1) {
    if (lane < kCluster) mbarrier_arrive_remote(empty, lane);
  } else {
    if (lane == 0) mbarrier_arrive(empty);
  }
}

// Multiplies one tile; one group of wgmma stays in flight, so a stage is given back one step late.
// On return the last group is still in flight, and `ring` is past the tile.
__device__ __forceinline__ uint32_t mainloop(Accumulators& acc, uint32_t shared, Ring& ring,
                                             int k_blocks, int first_row, int lane) {
  uint32_t previous = 0;
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    mbarrier_wait(shared + SharedLayout::kFull + 8 * ring.stage, ring.phase);
    const uint32_t stage = shared + ring.stage * kBytesStage;
    const uint32_t x = descriptor_low(stage + first_row * kRowBytes, 16);
    const uint32_t w = descriptor_low(stage + kBytesX, kTileK * kRowBytes);
    // 16 of K are 32 bytes of a row, or 16 rows.
    constexpr int kStepW = (FUSEPASS_W_IS_KN ? 16 * kRowBytes : 32) >> 4;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        wgmma(acc[b], descriptor(x + ((b * 64 * kRowBytes + step * 32) >> 4)),
              descriptor(w + step * kStepW), k_block + step);
      }
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (k_block > 0) release(previous, lane);
    previous = shared + SharedLayout::kEmpty + 8 * ring.stage;
    ring.next();
  }
  return previous;
}

// Stages and stores what `f` makes of a warp's accumulators, 16 rows x kChunk columns a time.
struct Store {
  uint32_t staging;  // this warp's two buffers
  uint32_t toggle = 0;
  int lane;

  template <class F>
  __device__ __forceinline__ void chunk(const float* acc, const float2* bias,
                                        const TensorMap* map, int row, int column, F f) {
    if (lane == 0) tma_store_wait<kStaging - 1>();
    __syncwarp();
    const uint32_t buffer = staging + toggle * kChunkBytes;
    toggle ^= 1;
    // Lanes 0-15 point at the rows of the first unit of 8 columns, 16-31 of the second.
    const uint32_t line = lane & 15;
    const uint32_t base = buffer + line * (kChunk * 2);
#pragma unroll
    for (int u = 0; u < kChunkUnits; u += 2) {
      uint32_t r[4] = {0, 0, 0, 0};
#pragma unroll
      for (int v = 0; v < 2 && u + v < kChunkUnits; ++v) {
        const float* a = acc + 4 * (u + v);
        const float2 b = bias[4 * (u + v)];
        r[2 * v] = pack2(f(a[0] + b.x), f(a[1] + b.y));
        r[2 * v + 1] = pack2(f(a[2] + b.x), f(a[3] + b.y));
      }
      const uint32_t unit = u + (lane >> 4);
      if (u + 1 < kChunkUnits) {
        stmatrix_x4(base + 16 * (kSwizzled ? unit ^ (line & 7) : unit), r);
      } else {
        stmatrix_x2(base + 16 * u, r);
      }
    }
    fence_async_shared();
    __syncwarp();
    if (lane == 0) tma_store(map, column, row, buffer);
  }
};

__device__ __forceinline__ void consume(const Gemm90Args& args, uint32_t shared, uint8_t* generic,
                                        uint32_t rank, int consumer) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  float scalars[Epilogue::kScalars + 1];
#pragma unroll
  for (int i = 0; i < Epilogue::kScalars; ++i) scalars[i] = load_scalar(args, i);

  float* bias = reinterpret_cast<float*>(generic + SharedLayout::kBias) + consumer * kTileN;
  const float2* lane_bias = reinterpret_cast<const float2*>(bias) + lane % 4;
  Store store{shared + SharedLayout::kStaged + (consumer * 4 + warp) * kStaging * kChunkBytes, 0,
              lane};
  const int first_row = kPingpong ? 0 : consumer * kBlocks * 64;
  const int tiles = args.clusters_m * args.tiles_n, clusters = gridDim.x / kCluster;

  Ring ring;
  if (kPingpong && consumer == 1) {
    ring.skip(args.k_blocks);
    barrier_arrive(kTurn + 0, 256);
  }
  Accumulators acc;
  for (int t = blockIdx.x / kCluster + (kPingpong ? consumer * clusters : 0); t < tiles;
       t += clusters * (kPingpong ? kConsumers : 1)) {
    const Tile tile(args, t, rank);
    // Asked for before the mainloop, needed after it.
    uint16_t bias_bits[(kTileN + 127) / 128];
#pragma unroll
    for (int i = 0; i * 128 < kTileN; ++i) {
      const int column = tile.column + i * 128 + thread;
      bias_bits[i] = 0;
      if (args.bias != nullptr && column < args.n) {
        asm volatile("ld.global.nc.u16 %0, [%1];"
                     : "=h"(bias_bits[i])
                     : "l"(static_cast<const uint16_t*>(args.bias) + column));
      }
    }
    barrier_sync((kPingpong ? kTurn : kGroup) + consumer, kPingpong ? 256 : 128);
    const uint32_t last = mainloop(acc, shared, ring, args.k_blocks, first_row, lane);
    if (kPingpong) {
      barrier_arrive(kTurn + 1 - consumer, 256);
      ring.skip(args.k_blocks);
    }
#pragma unroll
    for (int i = 0; i * 128 < kTileN; ++i) {
      if (i * 128 + thread < kTileN) bias[i * 128 + thread] = unpack(bias_bits[i]);
    }
    wgmma_wait<0>();
    release(last, lane);
    barrier_sync(kGroup + consumer, 128);

    const int row = tile.row + first_row + warp * 16;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int c = 0; c < kTileN / kChunk; ++c) {
        const float* part = acc[b] + c * (kChunk / 2);
        const float2* part_bias = lane_bias + c * (kChunk / 2);
        const int column = tile.column + c * kChunk;
        if (kStorePreact) {
          store.chunk(part, part_bias, &args.preact, row + b * 64, column,
                      [](float v) { return v; });
        }
        store.chunk(part, part_bias, &args.out, row + b * 64, column,
                    [&](float v) { return Epilogue::apply(v, scalars); });
      }
    }
  }
  if (lane == 0) tma_store_wait<0>();
  __syncwarp();
}

}  // namespace fusepass
