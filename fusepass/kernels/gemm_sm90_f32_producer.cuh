// The producer of the float32 split kernel, and the shared memory it fills.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_fill.cuh"

namespace fusepass {

// A stage: hi and lo of x's rows, then hi and lo of w's.
constexpr int kSplitStage = 2 * kBytesStage;
constexpr int kSumBytes = split_sum_bytes(kTileN);
static_assert(kTileM == kSplitTile);

struct SplitShared {
  static constexpr int kStage = kSplitStage;
  static constexpr int kColumns = kRing * kSplitStage;  // undo and bias, for each consumer
  static constexpr int kRoom = kColumns + kConsumers * 2 * kTileN * 4;  // of sum_tile
  static constexpr int kFull = kRoom + kConsumers * kSumBytes;
  static constexpr int kEmpty = kFull + kRing * 8;
  static constexpr int kTotal = kEmpty + kRing * 8;
};
static_assert(SplitShared::kTotal == split_shared_bytes(kTileN, kRing),
              "the host asks for another size");

__device__ __forceinline__ void produce(const Split90Args& args, uint32_t shared, uint32_t rank) {
  const TensorMap* x = &args.gemm.x;
  const TensorMap* w = &args.gemm.w;
  fill_ring<SplitShared>(
      args.gemm, shared, rank,
      [&](int k_block, int row, int column, uint32_t stage, uint32_t full) {
        const uint32_t w_stage = stage + 2 * kBytesX + rank * kShareN * kRowBytes;
        const int k = k_block * kTileK;
        tma_load(stage, x, k, row, full);
        load_share(w_stage, w, k, column, full);
        tma_load(stage + kBytesX, x, k, args.x_low + row, full);
        load_share(w_stage + kBytesW, w, k, args.w_low + column, full);
      });
}

}  // namespace fusepass
