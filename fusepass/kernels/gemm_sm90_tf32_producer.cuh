// The producer of the TF32 kernel, its argument and its shared memory.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"

namespace fusepass {

struct Tf32Shared {
  static constexpr int kColumns = kRing * kBytesStage;  // bias, for each consumer
  static constexpr int kFull = kColumns + kConsumers * kTileN * 4;
  static constexpr int kEmpty = kFull + kRing * 8;
  static constexpr int kTotal = kEmpty + kRing * 8;
};
static_assert(Tf32Shared::kTotal == tf32_shared_bytes(kTileM, kTileN, kRing),
              "the host asks for another size");

__device__ __forceinline__ void produce(const Tf32Args& args, uint32_t shared, uint32_t rank) {
  tma_prefetch_map(&args.gemm.x);
  tma_prefetch_map(&args.gemm.w);
  // In a cluster each CTA loads half of w's tile into both.
  constexpr int kShare = kTileN / kCluster;
  Ring ring;
  const int tiles = args.gemm.clusters_m * args.gemm.tiles_n;
  for (int t = blockIdx.x / kCluster; t < tiles; t += gridDim.x / kCluster) {
    const Tile tile(args.gemm, t, rank);
    const int column = tile.column + rank * kShare;
    for (int k_block = 0; k_block < args.gemm.k_blocks; ++k_block) {
      const uint32_t full = shared + Tf32Shared::kFull + 8 * ring.stage;
      const uint32_t stage = shared + ring.stage * kBytesStage;
      const uint32_t w_stage = stage + kBytesX + rank * kShare * kRowBytes;
      mbarrier_wait(shared + Tf32Shared::kEmpty + 8 * ring.stage, ring.phase ^ 1);
      mbarrier_expect(full, kBytesStage);
      tma_load(stage, &args.gemm.x, k_block * kTf32TileK, tile.row, full);
      if (kCluster > 1) {
        tma_load_multicast(w_stage, &args.gemm.w, k_block * kTf32TileK, column, full, 3);
      } else {
        tma_load(w_stage, &args.gemm.w, k_block * kTf32TileK, column, full);
      }
      ring.next();
    }
  }
}

}  // namespace fusepass
