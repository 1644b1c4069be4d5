// The producer of the float32 split kernel, and the shared memory it fills.
#pragma once
#include "gemm_sm90_f32_operands.cuh"
#include "sm90/gemm_sm90_fill.cuh"

namespace fusepass {

// A stage: hi and lo of x's rows, then hi and lo of w's.
constexpr int kSplitStage = 2 * kBytesStage;
constexpr int kSumBytes = split_sum_bytes(kTileN);
static_assert(kTileM == kSplitTile);

constexpr bool kSegments = FUSEPASS_SEGMENTS;  // a tile's K is cut, fusepass_sum puts it together

struct SplitShared {
  static constexpr int kStage = kSplitStage;
  static constexpr int kFacts = kRing * kSplitStage;  // for each consumer
  static constexpr int kRoom = kFacts + kConsumers * split_facts(kTileN) * 4;  // of its sums
  static constexpr int kFull = kRoom + kConsumers * kSumBytes;
  static constexpr int kEmpty = kFull + kRing * 8;
  static constexpr int kTotal = kEmpty + kRing * 8;
};
static_assert(SplitShared::kTotal == split_shared_bytes(kTileN, kRing),
              "the host asks for another size");

// A piece of x's rows. Stored [k, m], 64 rows are a box: what a consumer multiplies.
__device__ __forceinline__ void load_x(uint32_t dst, const TensorMap* x, int k, int row,
                                       uint32_t full) {
#if FUSEPASS_X_IS_KM
  static_assert(kTileM == 128);
  tma_load(dst, x, row, k, full);
  tma_load(dst + kTileK * kRowBytes, x, row + 64, k, full);
#else
  tma_load(dst, x, k, row, full);
#endif
}

// A CTA's share of a piece of w's rows: in a cluster half of them, or, stored [k, n], half of each
// box's k.
__device__ __forceinline__ void load_w(uint32_t dst, const TensorMap* w, int k, int row,
                                       uint32_t rank, uint32_t full) {
#if FUSEPASS_W_IS_KN
  constexpr int kShareK = kTileK / kCluster;
#pragma unroll
  for (int n = 0; n < kTileN; n += 64) {
    load_share(dst + (n + rank * kShareK) * kRowBytes, w, row + n, k + rank * kShareK, full);
  }
#else
  load_share(dst + rank * kShareN * kRowBytes, w, k, row + rank * kShareN, full);
#endif
}

// load(first column of a box, where it lies in a stage) for each box of a tile's mat.
template <class Load>
__device__ __forceinline__ void each_box(int column, Load load) {
#pragma unroll
  for (int box = 0; box < kTileN / kStagedColumns; ++box) {
    load(column + box * kStagedColumns, box * kStagedBox);
  }
}

// Steps of a tile's K after which its mats are asked for to be brought into the L2 cache: all of the
// ring has been filled by then.
constexpr int kMatsBehind = kRing - 1;

__device__ __forceinline__ void produce(const Split90Args& args, uint32_t shared, uint32_t rank) {
  fill_ring<SplitShared>(
      args.gemm, shared, rank, kSegments ? args.segments : 1,
      kSegments ? args.segment_blocks : args.gemm.k_blocks,
      [&](int k_block, int row, int column, uint32_t stage, uint32_t full) {
        const uint32_t w_stage = stage + 2 * kBytesX;
        const int k = k_block * kTileK;
        load_x(stage, &args.gemm.x, k, row, full);
        load_w(w_stage, &args.gemm.w, k, column, rank, full);
        load_x(stage + kBytesX, &args.x_low, k, row, full);
        load_w(w_stage + kBytesW, &args.w_low, k, column, rank, full);
        if (kSegments || k_block != kMatsBehind) return;
        each_staged<Epilogue>(args.staged_mats, [&](int j) {
          each_box(column, [&](int first, int) { tma_prefetch(&args.mat[j], first, row); });
        });
      },
      [&](const Tile& tile, Ring& ring) {
        if (kSegments) return;
        each_staged<Epilogue>(args.staged_mats, [&](int j) {
          static_assert(kTileM * kTileN * 4 <= kSplitStage);
          const uint32_t full = shared + SplitShared::kFull + 8 * ring.stage;
          const uint32_t stage = shared + ring.stage * kSplitStage;
          mbarrier_wait(shared + SplitShared::kEmpty + 8 * ring.stage, ring.phase ^ 1);
          mbarrier_expect(full, kTileM * kTileN * 4);
          each_box(tile.column, [&](int first, int at) {
            tma_load(stage + at, &args.mat[j], first, tile.row, full);
          });
          ring.next();
        });
      });
}

}  // namespace fusepass
