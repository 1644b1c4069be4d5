// A consumer warpgroup: mainloop and epilogue of its tiles.
#pragma once
#include "gemm_sm90_epilogue.cuh"
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"
#include "gemm_sm90_wgmma.cuh"

namespace fusepass {

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

// One output's way from a warp's registers to global memory: chunks of 16 rows x kChunk columns.
struct Stream {
  const TensorMap* map;
  uint32_t staging;  // of this warp
  int lane;

  // Units `unit` - 1 and `unit` of a chunk, or `unit` alone where it is the last of an odd number.
  __device__ __forceinline__ void put(uint32_t buffer, int unit, const uint32_t (&packed)[4]) const {
    // Lanes 0-15 point at the rows of the first unit of 8 columns, 16-31 of the second.
    const uint32_t line = lane & 15;
    const uint32_t row = buffer + line * (kChunk * 2);
    if (unit % 2) {
      const uint32_t mine = unit - 1 + (lane >> 4);
      stmatrix_x4(row + 16 * (kSwizzled ? mine ^ (line & 7) : mine), packed);
    } else {
      stmatrix_x2(row + 16 * unit, packed);
    }
  }
  // Until at most `kPending` earlier chunks are still being read.
  template <int kPending>
  __device__ __forceinline__ void acquire() const {
    if (lane == 0) tma_store_wait<kPending>();
    __syncwarp();
  }
  __device__ __forceinline__ void store(uint32_t buffer, int row, int column) const {
    fence_async_shared();
    __syncwarp();
    if (lane == 0) tma_store(map, column, row, buffer);
  }
};

// The compiler may move no instruction across this (it ends a basic block: the exit is never
// taken, `never` being no negative number).
__device__ __forceinline__ void schedule_boundary(int never) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %0, 0;\n@p exit;\n}" ::"r"(never));
}

__device__ __forceinline__ void add_bias(Batch<4>& b, const float* acc, float2 bias) {
  b.v[0] = acc[0] + bias.x;
  b.v[1] = acc[1] + bias.y;
  b.v[2] = acc[2] + bias.x;
  b.v[3] = acc[3] + bias.y;
}

// Everything after the mainloop, unit of 8 columns by unit, as a pipeline of three steps: add the
// bias and begin; middle; end and store. One tick runs each step on another unit.
__device__ __forceinline__ void epilogue(const Accumulators& acc, const float* scalars,
                                         const float2* bias, const Stream& out,
                                         const Stream& preact, int row, int column, int never) {
  constexpr int kUnits = kTileN / 8, kTotal = kBlocks * kUnits;
  Batch<4> batch[3];
  uint32_t packed[4] = {}, packed_preact[4] = {};
#pragma unroll
  for (int tick = 0; tick < kTotal + 2; ++tick) {
    float2 unit_bias = {};
    if (tick < kTotal) unit_bias = bias[4 * (tick % kUnits)];  // early: it takes a while to come
    if (tick >= 2) {
      const int unit = tick - 2, in_chunk = unit % kChunkUnits, chunk = unit / kChunkUnits;
      const uint32_t buffer = out.staging + (kStorePreact ? 1 : chunk % 2) * kChunkBytes;
      Batch<4>& b = batch[unit % 3];
      Epilogue::end(b);
      packed[in_chunk % 2 * 2] = pack2(b.v[0], b.v[1]);
      packed[in_chunk % 2 * 2 + 1] = pack2(b.v[2], b.v[3]);
      const bool last = in_chunk == kChunkUnits - 1;
      if (in_chunk == 0) out.acquire<kStorePreact ? 0 : 1>();
      if (in_chunk % 2 || last) out.put(buffer, in_chunk, packed);
      if (last) {
        out.store(buffer, row + unit / kUnits * 64,
                  column + chunk % (kUnits / kChunkUnits) * kChunk);
      }
    }
    if (tick >= 1 && tick <= kTotal) Epilogue::middle(batch[(tick - 1) % 3]);
    if (tick < kTotal) {
      const int in_chunk = tick % kChunkUnits;
      Batch<4>& b = batch[tick % 3];
      add_bias(b, acc[tick / kUnits] + 4 * (tick % kUnits), unit_bias);
      if (kStorePreact) {
        packed_preact[in_chunk % 2 * 2] = pack2(b.v[0], b.v[1]);
        packed_preact[in_chunk % 2 * 2 + 1] = pack2(b.v[2], b.v[3]);
        const bool last = in_chunk == kChunkUnits - 1;
        if (in_chunk == 0) preact.acquire<1>();
        if (in_chunk % 2 || last) preact.put(preact.staging, in_chunk, packed_preact);
        if (last) {
          preact.store(preact.staging, row + tick / kUnits * 64,
                       column + tick % kUnits / kChunkUnits * kChunk);
        }
      }
      Epilogue::begin(b, scalars);
    }
    schedule_boundary(never);
  }
}

__device__ __forceinline__ void consume(const Gemm90Args& args, uint32_t shared, uint8_t* generic,
                                        uint32_t rank, int consumer) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  float scalars[Epilogue::kScalars + 1];
#pragma unroll
  for (int i = 0; i < Epilogue::kScalars; ++i) scalars[i] = load_scalar(args, i);

  float* bias = reinterpret_cast<float*>(generic + SharedLayout::kBias) + consumer * kTileN;
  const float2* lane_bias = reinterpret_cast<const float2*>(bias) + lane % 4;
  const uint32_t staging =
      shared + SharedLayout::kStaged + (consumer * 4 + warp) * kStaging * kChunkBytes;
  const Stream out{&args.out, staging, lane}, preact{&args.preact, staging, lane};
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

    epilogue(acc, scalars, lane_bias, out, preact, tile.row + first_row + warp * 16, tile.column,
             args.k_blocks);
  }
  if (lane == 0) tma_store_wait<0>();
  __syncwarp();
}

}  // namespace fusepass
