// A consumer warpgroup: mainloop and epilogue of its tiles.
#pragma once
#include "gemm_sm90_epilogue.cuh"
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"
#include "gemm_sm90_wgmma.cuh"

namespace fusepass {

// Elements that go through the epilogue side by side.
constexpr int kWide = 4;
using Accumulators = float[kBlocks * kAccumulators];

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
        wgmma(*reinterpret_cast<float(*)[kAccumulators]>(acc + b * kAccumulators),
              descriptor(x + ((b * 64 * kRowBytes + step * 32) >> 4)),
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

// One output's way from a warp's registers to global memory, a group of 16 rows x kGroupUnits * 8
// columns at a time.
struct Stream {
  const TensorMap* map;
  uint32_t staging;
  int lane;

  // Adds two numbers of unit `unit` of the group: of the upper rows (half 0) or the lower (half 1).
  // Every fourth call writes two units.
  __device__ __forceinline__ void put(uint32_t (&packed)[4], float v0, float v1, int unit,
                                      int half) const {
    const int in_box = unit % kBoxUnits, odd = in_box % 2;
    packed[2 * odd + half] = pack2(v0, v1);
    if (half == 0 || (odd == 0 && in_box != kBoxUnits - 1)) return;
    // Lanes 0-15 point at the rows of the first unit, 16-31 of the second.
    const uint32_t line = lane & 15;
    const uint32_t row = staging + unit / kBoxUnits * kBoxBytes + line * (kBoxUnits * 16);
    if (odd) {
      uint32_t mine = in_box - 1 + (lane >> 4);
      if (kBoxUnits == 8) mine ^= line & 7;
      if (kBoxUnits == 4) mine ^= line >> 1 & 3;
      stmatrix_x4(row + 16 * mine, packed);
    } else {
      stmatrix_x2(row + 16 * in_box, packed);
    }
  }

  __device__ __forceinline__ void store(int row, int column) const {
#pragma unroll
    for (int box = 0; box < kGroupUnits / kBoxUnits; ++box) {
      tma_store(map, column + box * kBoxUnits * 8, row, staging + box * kBoxBytes);
    }
    tma_store_commit();
  }
};

// The compiler may move no instruction across this while it still decides the order (it ends a
// basic block: the exit is never taken, `never` being no negative number).
__device__ __forceinline__ void schedule_boundary(int never) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %0, 0;\n@p exit;\n}" ::"r"(never));
}

struct Epilogues {
  const float* scalars;
  const float2* bias;   // of this lane's columns: unit u at 4 * u
  Stream out, preact;
  uint32_t other = kGroupBytes;  // from the buffer in use to the other one; one output's only

  __device__ __forceinline__ void put(const Stream& stream, uint32_t (&packed)[4],
                                      const float (&v)[kWide], int tick) const {
#pragma unroll
    for (int i = 0; i < kWide; i += 2) {
      stream.put(packed, v[i], v[i + 1], (kWide * tick + i) / 4, (kWide * tick + i) / 2 % 2);
    }
  }

  // One group as a pipeline of three steps, add the bias and begin; middle; end and put. One tick
  // runs each step on another kWide elements. Left to itself the compiler, short of registers, would finish
  // one element after the other and wait out every instruction's latency.
  __device__ __forceinline__ void group(const float* acc, const float2* group_bias, int row,
                                        int column, int never) {
    if (out.lane == 0) tma_store_wait<kStorePreact ? 0 : 1>();
    __syncwarp();
    Batch<kWide> batch[3];
    uint32_t packed[4] = {}, packed_preact[4] = {};
    constexpr int kUnitTicks = 4 / kWide, kTicks = kGroupUnits * kUnitTicks;
    float2 b = {};
#pragma unroll
    for (int tick = 0; tick < kTicks + 2; ++tick) {
      const int unit = tick / kUnitTicks;
      if (tick < kTicks && tick % kUnitTicks == 0) b = group_bias[4 * unit];  // early: it takes long
      if (tick >= 2) {
        Epilogue::end(batch[(tick - 2) % 3]);
        put(out, packed, batch[(tick - 2) % 3].v, tick - 2);
      }
      if (tick >= 1 && tick <= kTicks) Epilogue::middle(batch[(tick - 1) % 3]);
      if (tick < kTicks) {
        float(&v)[kWide] = batch[tick % 3].v;
#pragma unroll
        for (int i = 0; i < kWide; ++i) v[i] = acc[kWide * tick + i] + (i % 2 ? b.y : b.x);
        if (kStorePreact) put(preact, packed_preact, v, tick);
        Epilogue::begin(batch[tick % 3], scalars);
      }
      schedule_boundary(never);
    }
    fence_async_shared();
    __syncwarp();
    if (out.lane == 0) {
      if (kStorePreact) preact.store(row, column);
      out.store(row, column);
    }
    if (!kStorePreact) {
      out.staging += other;
      other = -other;
    }
  }

  // The whole tile, pass by pass. Registers have no run-time index, so the next pass's accumulators
  // move to where the first one's were.
  __device__ __forceinline__ void tile(float (&acc)[kBlocks * kAccumulators], int row, int column,
                                       int never) {
    constexpr int kBlockGroups = FUSEPASS_UNITS / kGroupUnits, kPass = 4 * kPassGroups * kGroupUnits;
#pragma unroll 1
    for (int first = 0; first < kGroups; first += kPassGroups) {
#pragma unroll
      for (int g = 0; g < kPassGroups; ++g) {
        const int block = (first + g) / kBlockGroups;
        const int unit = (first + g) % kBlockGroups * kGroupUnits;
        group(acc + 4 * g * kGroupUnits, bias + 4 * unit, row + block * 64, column + 8 * unit,
              never);
      }
#pragma unroll
      for (int i = 0; i + kPass < kBlocks * kAccumulators; ++i) acc[i] = acc[i + kPass];
    }
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
  const uint32_t staging =
      shared + SharedLayout::kStaged + (consumer * 4 + warp) * kStaging * kGroupBytes;
  Epilogues epilogue{scalars,
                     lane_bias,
                     {&args.out, staging, lane},
                     {&args.preact, staging + kGroupBytes, lane}};
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
    epilogue.tile(acc, tile.row + first_row + warp * 16, tile.column, args.k_blocks);
  }
  if (lane == 0) tma_store_wait<0>();
  __syncwarp();
}

}  // namespace fusepass
