// Shapes fixed at compile time, shared-memory layout and the order of tiles of the Hopper GEMM.
//
// Macros (kernels/plan.py writes them): FUSEPASS_TILE_M, FUSEPASS_TILE_N, FUSEPASS_UNITS (tile_n/8),
// FUSEPASS_RING (stages), FUSEPASS_CLUSTER, FUSEPASS_PINGPONG, FUSEPASS_BF16, FUSEPASS_W_IS_KN,
// FUSEPASS_PREACT, FUSEPASS_STAGES (the epilogue, e.g. mul|clamp|gelu).
#pragma once
#include <cstdint>

#include "gemm_sm90_args.h"
#include "gemm_sm90_geometry.h"

namespace fusepass {

constexpr int kTileM = FUSEPASS_TILE_M;
constexpr int kTileN = FUSEPASS_TILE_N;
constexpr int kRing = FUSEPASS_RING;
constexpr int kCluster = FUSEPASS_CLUSTER;
constexpr bool kPingpong = FUSEPASS_PINGPONG;
constexpr bool kStorePreact = FUSEPASS_PREACT;

constexpr int kConsumers = consumers_of(kTileM, kPingpong);  // warpgroups
// Blocks of 64 rows a consumer accumulates: of the whole tile, or of its share.
constexpr int kBlocks = kTileM / (kPingpong ? 64 : 64 * kConsumers);
constexpr int kAccumulators = kTileN / 2;  // of one block, a thread
static_assert(kBlocks >= 1 && FUSEPASS_UNITS * 8 == kTileN && kTileN <= 256);
static_assert(kCluster == 1 || kTileN % 16 == 0, "each CTA of a pair loads half of w's tile");
static_assert(!FUSEPASS_W_IS_KN || kTileN % 64 == 0);

// Bytes of a stage: every row of x (and of w, K-major) is one 128-byte swizzle row.
constexpr int kRowBytes = 128;
constexpr int kBytesX = kTileM * kRowBytes;
constexpr int kBytesW = kTileN * kRowBytes;
constexpr int kBytesStage = kBytesX + kBytesW;

// Each warp stages 16 rows x kChunk columns of output at a time and stores them itself.
constexpr int kChunkUnits = chunk_units(FUSEPASS_UNITS);
static_assert(kChunkUnits >= 3, "a chunk's first write must come after the store before it");
constexpr int kChunk = 8 * kChunkUnits;
constexpr bool kSwizzled = kChunkUnits == 8;  // otherwise the odd pitch keeps banks apart
constexpr int kChunkBytes = 16 * kChunk * 2;
constexpr Geometry kGeometry{kTileM, kTileN, kRing, kConsumers};
constexpr int kStaging = staging_buffers(kGeometry);  // of a warp

struct SharedLayout {
  static constexpr int kStaged = kRing * kBytesStage;
  static constexpr int kBias = kStaged + kConsumers * 4 * kStaging * kChunkBytes;
  static constexpr int kFull = kBias + kConsumers * kTileN * 2;
  static constexpr int kEmpty = kFull + kRing * 8;
  static constexpr int kTotal = kEmpty + kRing * 8;
};
static_assert(SharedLayout::kTotal == shared_bytes(kGeometry),
              "the host asks for another size");

// Position in the ring of stages; `phase` is the parity of the barriers' current use.
struct Ring {
  uint32_t stage = 0, phase = 0;

  __device__ __forceinline__ void next() {
    if (++stage == kRing) {
      stage = 0;
      phase ^= 1;
    }
  }
  __device__ __forceinline__ void skip(uint32_t count) {
    const uint32_t laps = (stage + count) / kRing;
    stage += count - laps * kRing;
    phase ^= laps & 1;
  }
};

// Tiles of a cluster, numbered so that those in flight together share rows of x and columns of w:
// `group` clusters below one another, then the next column.
struct Tile {
  int row, column;  // of its first element

  __device__ __forceinline__ Tile(const Gemm90Args& args, int index, int rank) {
    const int per_group = args.group * args.tiles_n;
    const int first = index / per_group * args.group;
    const int rows = max(1, min(args.group, args.clusters_m - first));  // 1: past the last tile
    const int rest = index % per_group;
    row = ((first + rest % rows) * kCluster + rank) * kTileM;
    column = rest / rows * kTileN;
  }
};

}  // namespace fusepass
