// The producer of the TF32 kernel, its argument and its shared memory.
#pragma once
#include "sm90_f32/gemm_sm90_f32_args.h"
#include "gemm_sm90_fill.cuh"

namespace fusepass {

struct Tf32Shared {
  static constexpr int kStage = kBytesStage;
  static constexpr int kColumns = kRing * kBytesStage;  // bias, for each consumer
  static constexpr int kFull = kColumns + kConsumers * kTileN * 4;
  static constexpr int kEmpty = kFull + kRing * 8;
  static constexpr int kTotal = kEmpty + kRing * 8;
};
static_assert(Tf32Shared::kTotal == tf32_shared_bytes(kTileM, kTileN, kRing),
              "the host asks for another size");

__device__ __forceinline__ void produce(const Tf32Args& args, uint32_t shared, uint32_t rank) {
  fill_ring<Tf32Shared>(
      args.gemm, shared, rank, 1, args.gemm.k_blocks,
      [&](int k_block, int row, int column, uint32_t stage, uint32_t full) {
        const int k = k_block * kTf32TileK;
        tma_load(stage, &args.gemm.x, k, row, full);
        load_share(stage + kBytesX + rank * kShareN * kRowBytes, &args.gemm.w, k,
                   column + rank * kShareN, full);
      });
}

}  // namespace fusepass
