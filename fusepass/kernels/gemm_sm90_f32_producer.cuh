// The producer of the float32 split kernel, and the shared memory it fills.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"

namespace fusepass {

// A stage: hi and lo of x's rows, then hi and lo of w's.
constexpr int kPiece = kSplitTile * kRowBytes;
constexpr int kSplitStage = 4 * kPiece;
static_assert(kTileM == kSplitTile && kTileN == kSplitTile);

struct SplitShared {
  static constexpr int kColumns = kRing * kSplitStage;  // undo and bias, for each consumer
  static constexpr int kFull = kColumns + kConsumers * 2 * kSplitTile * 4;
  static constexpr int kEmpty = kFull + kRing * 8;
  static constexpr int kTotal = kEmpty + kRing * 8;
};
static_assert(SplitShared::kTotal == split_shared_bytes(kRing), "the host asks for another size");

__device__ __forceinline__ void produce(const Split90Args& args, uint32_t shared, uint32_t rank) {
  const TensorMap* x = &args.gemm.x;
  const TensorMap* w = &args.gemm.w;
  tma_prefetch_map(x);
  tma_prefetch_map(w);
  // In a cluster each CTA loads half of w's tile into both.
  constexpr int kShare = kTileN / kCluster;
  Ring ring;
  const int tiles = args.gemm.clusters_m * args.gemm.tiles_n;
  for (int t = blockIdx.x / kCluster; t < tiles; t += gridDim.x / kCluster) {
    const Tile tile(args.gemm, t, rank);
    const int column = tile.column + rank * kShare;
    for (int k_block = 0; k_block < args.gemm.k_blocks; ++k_block) {
      const uint32_t full = shared + SplitShared::kFull + 8 * ring.stage;
      const uint32_t stage = shared + ring.stage * kSplitStage;
      const uint32_t w_stage = stage + 2 * kPiece + rank * kShare * kRowBytes;
      const int k = k_block * kTileK;
      mbarrier_wait(shared + SplitShared::kEmpty + 8 * ring.stage, ring.phase ^ 1);
      mbarrier_expect(full, kSplitStage);
      tma_load(stage, x, k, tile.row, full);
      if (kCluster > 1) {
        tma_load_multicast(w_stage, w, k, column, full, 3);
      } else {
        tma_load(w_stage, w, k, column, full);
      }
      tma_load(stage + kPiece, x, k, args.x_low + tile.row, full);
      if (kCluster > 1) {
        tma_load_multicast(w_stage + kPiece, w, k, args.w_low + column, full, 3);
      } else {
        tma_load(w_stage + kPiece, w, k, args.w_low + column, full);
      }
      ring.next();
    }
  }
}

}  // namespace fusepass
