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

constexpr int kConsumers = 2;  // warpgroups
// Blocks of 64 rows a consumer accumulates: of the whole tile, or of its half.
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

// The epilogue's groups, passes and boxes: gemm_sm90_geometry.h says what they are.
constexpr int kGroupUnits = group_units(FUSEPASS_UNITS);
constexpr int kGroups = kBlocks * FUSEPASS_UNITS / kGroupUnits;
// A pass is straight code, and a loop runs it over the tile: with straight code for a whole tile,
// instructions would be fetched at half the speed at which they issue. (Where the accumulators leave
// too few registers for the loop's own, a pass is half a tile.)
#ifndef PASS_GROUPS
constexpr int kPassGroups = kBlocks * kAccumulators > 176 ? kGroups / 2 : 1;
#else
constexpr int kPassGroups = PASS_GROUPS;
#endif
static_assert(kGroups % kPassGroups == 0);
constexpr int kBoxUnits = box_units(FUSEPASS_UNITS);
constexpr int kGroupBytes = 16 * kGroupUnits * 16;
constexpr int kBoxBytes = 16 * kBoxUnits * 16;

struct SharedLayout {
  static constexpr int kStaged = kRing * kBytesStage;
  static constexpr int kBias = kStaged + kConsumers * 4 * kStaging * kGroupBytes;
  static constexpr int kFull = kBias + kConsumers * kTileN * 4;
  static constexpr int kEmpty = kFull + kRing * 8;
  static constexpr int kTotal = kEmpty + kRing * 8;
};
static_assert(SharedLayout::kTotal ==
              shared_bytes(kTileM, kTileN, kRing), "the host asks for another size");

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
    const int rows = min(args.group, args.clusters_m - first);
    const int rest = index % per_group;
    row = ((first + rest % rows) * kCluster + rank) * kTileM;
    column = rest / rows * kTileN;
  }
};

}  // namespace fusepass
