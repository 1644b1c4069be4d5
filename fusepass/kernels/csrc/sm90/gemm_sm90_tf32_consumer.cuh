// A consumer warpgroup of the TF32 kernel: mainloop and epilogue of its tiles.
#pragma once
#include "sm90_f32/gemm_sm90_f32_store.cuh"
#include "gemm_sm90_tf32_producer.cuh"
#include "gemm_sm90_wgmma.cuh"

#define FUSEPASS_WGMMA_TF32(UNITS, A, B, ACCUMULATE)                                              \
  asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, "                               \
               FUSEPASS_JOIN(FUSEPASS_QUAD_, UNITS)(FUSEPASS_FLAG) ", 0;\n"                        \
               "wgmma.mma_async.sync.aligned.m64n" FUSEPASS_TEXT(FUSEPASS_TILE_N) "k8"             \
               ".f32.tf32.tf32 {" FUSEPASS_JOIN(FUSEPASS_ALL_NAMES_, UNITS) "}, "                  \
               FUSEPASS_JOIN(FUSEPASS_QUAD_, UNITS)(FUSEPASS_INPUTS) ", 1, 1;\n}"                  \
               : FUSEPASS_JOIN(FUSEPASS_ALL_SLOTS_, UNITS)                                         \
               : "l"(A), "l"(B), "r"(ACCUMULATE))

namespace fusepass {

using Accumulators = float[kBlocks][kAccumulators];
constexpr int kStep = 8;  // elements that go through the epilogue in step

// Named barriers; 0 is __syncthreads.
constexpr int kTurn = 1;   // + consumer: its turn in the mainloop (ping-pong)
constexpr int kGroup = 3;  // + consumer: its four warps

__device__ __forceinline__ void wgmma_tf32(float (&acc)[kAccumulators], uint64_t a, uint64_t b,
                                           uint32_t accumulate) {
  FUSEPASS_WGMMA_TF32(FUSEPASS_UNITS, a, b, accumulate);
}

__device__ __forceinline__ void release(uint32_t empty, int lane) {
  if (kCluster > 1) {
    if (lane < kCluster) mbarrier_arrive_remote(empty, lane);
  } else {
    if (lane == 0) mbarrier_arrive(empty);
  }
}

// Multiplies one tile; one group of wgmma stays in flight, so a stage is given back one step late.
// On return the last group is still in flight, and `ring` is past the tile.
__device__ __forceinline__ uint32_t multiply(Accumulators& acc, uint32_t shared, Ring& ring,
                                             int k_blocks, int first_row, int lane) {
  uint32_t previous = 0;
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    mbarrier_wait(shared + Tf32Shared::kFull + 8 * ring.stage, ring.phase);
    const uint32_t stage = shared + ring.stage * kBytesStage;
    const uint32_t x = descriptor_low(stage + first_row * kRowBytes, 16);
    const uint32_t w = descriptor_low(stage + kBytesX, 16);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {  // of 8 K, 32 bytes
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        wgmma_tf32(acc[b], descriptor(x + ((b * 64 * kRowBytes) >> 4) + 2 * step),
                   descriptor(w + 2 * step), step == 0 ? k_block : 1);
      }
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (k_block > 0) release(previous, lane);
    previous = shared + Tf32Shared::kEmpty + 8 * ring.stage;
    ring.next();
  }
  return previous;
}

// Waits for the last group; nothing of it is read before.
__device__ __forceinline__ void settle(Accumulators& acc) {
  wgmma_wait<0>();
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) asm volatile("" : "+f"(acc[b][i])::"memory");
  }
}

__device__ __forceinline__ void add_bias(Accumulators& acc, const float* columns, int lane) {
  const float2* bias = reinterpret_cast<const float2*>(columns) + lane % 4;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int i = 0; i < kAccumulators; i += 4) {
      const float2 v = bias[i];
      acc[b][i] += v.x;
      acc[b][i + 1] += v.y;
      acc[b][i + 2] += v.x;
      acc[b][i + 3] += v.y;
    }
  }
}

__device__ __forceinline__ void consume(const Tf32Args& args, uint32_t shared, uint8_t* generic,
                                        uint32_t rank, int consumer) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  float scalars[Epilogue::kScalars + 1];
  Epilogue::load(scalars, GemmScalars{args.gemm});

  float* columns = reinterpret_cast<float*>(generic + Tf32Shared::kColumns) + consumer * kTileN;
  const float* bias = static_cast<const float*>(args.gemm.bias[0]);
  const int first_row = kPingpong ? 0 : consumer * kBlocks * 64;
  const int tiles = args.gemm.clusters_m * args.gemm.tiles_n, clusters = gridDim.x / kCluster;

  Ring ring;
  if (kPingpong && consumer == 1) {
    ring.skip(args.gemm.k_blocks);
    barrier_arrive(kTurn + 0, 256);
  }
  Accumulators acc;
  for (int t = blockIdx.x / kCluster + (kPingpong ? consumer * clusters : 0); t < tiles;
       t += clusters * (kPingpong ? kConsumers : 1)) {
    const Tile tile(args.gemm, t, rank);
    // Asked for before the mainloop, needed after it.
    float add[(kTileN + 127) / 128];
#pragma unroll
    for (int i = 0; i * 128 < kTileN; ++i) {
      const int column = tile.column + i * 128 + thread;
      add[i] = bias != nullptr && column < args.gemm.n ? bias[column] : 0.0f;
    }
    barrier_sync((kPingpong ? kTurn : kGroup) + consumer, kPingpong ? 256 : 128);
    const uint32_t last = multiply(acc, shared, ring, args.gemm.k_blocks, first_row, lane);
    if (kPingpong) {
      barrier_arrive(kTurn + 1 - consumer, 256);
      ring.skip(args.gemm.k_blocks);
    }
#pragma unroll
    for (int i = 0; i * 128 < kTileN; ++i) {
      if (i * 128 + thread < kTileN) columns[i * 128 + thread] = add[i];
    }
    settle(acc);
    release(last, lane);
    barrier_sync(kGroup + consumer, 128);

    add_bias(acc, columns, lane);
    const int row = tile.row + first_row + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const Float32Store<false> store(args.outputs, row + 64 * b, tile.column, lane);
      store.write<kStep>(acc[b], scalars);
    }
  }
}

}  // namespace fusepass
