// Shapes fixed at compile time, shared-memory layout and the order of tiles of the Hopper GEMM.
//
// Macros (kernels/plan/sm90.py writes them): FUSEPASS_TILE_M, FUSEPASS_TILE_N, FUSEPASS_UNITS (tile_n/8),
// FUSEPASS_RING (stages), FUSEPASS_CLUSTER, FUSEPASS_PINGPONG, FUSEPASS_BF16, FUSEPASS_W_IS_KN,
// FUSEPASS_PREACT; and, 0 or 1 where a kernel has no other form, FUSEPASS_X_IS_KM, FUSEPASS_SWAPPED,
// FUSEPASS_SHARES_X, FUSEPASS_SPLIT, FUSEPASS_SEVERAL, FUSEPASS_CONSUMERS.
//
// "x" is the operand that wgmma calls A and "w" the one that it calls B; a tile has kTileM rows of x
// and kTileN of w. FUSEPASS_SWAPPED: x is the weight and w the input, so that the accumulators hold
// the output's tile transposed; the way to memory turns it back.
#pragma once
#include <cstdint>
#include <type_traits>

#include "gemm_sm90_args.h"
#include "gemm_sm90_epilogue.cuh"
#include "gemm_sm90_geometry.h"

#ifndef FUSEPASS_X_IS_KM
#define FUSEPASS_X_IS_KM 0
#endif
#ifndef FUSEPASS_SWAPPED
#define FUSEPASS_SWAPPED 0
#endif
#ifndef FUSEPASS_SHARES_X
#define FUSEPASS_SHARES_X 0
#endif
#ifndef FUSEPASS_SPLIT
#define FUSEPASS_SPLIT 1
#endif
#ifndef FUSEPASS_SEVERAL
#define FUSEPASS_SEVERAL 0
#endif
#ifndef FUSEPASS_CONSUMERS
#define FUSEPASS_CONSUMERS ::fusepass::consumers_of(FUSEPASS_TILE_M, FUSEPASS_PINGPONG)
#endif

namespace fusepass {

constexpr int kTileM = FUSEPASS_TILE_M;
constexpr int kTileN = FUSEPASS_TILE_N;
constexpr int kRing = FUSEPASS_RING;
constexpr int kCluster = FUSEPASS_CLUSTER;
constexpr bool kPingpong = FUSEPASS_PINGPONG;
constexpr bool kStorePreact = FUSEPASS_PREACT;
constexpr bool kSwapped = FUSEPASS_SWAPPED;
constexpr bool kSharesX = FUSEPASS_SHARES_X;  // a pair of CTAs loads x once instead of w
constexpr int kSplit = FUSEPASS_SPLIT;        // CTAs of a cluster that share a tile's K
// Several weights of one x, of one of which each tile is; without an epilogue.
constexpr bool kSeveral = FUSEPASS_SEVERAL;
using KernelArgs = std::conditional_t<kSeveral, SeveralArgs, Gemm16Args>;  // the 16-bit kernel's
// Half of the weight's rows of a tile are a second weight's: the epilogue has z of the one, z1 of the
// other, and its result is half as wide.
constexpr bool kGated = Epilogue::kReadsZ1;
constexpr int kHead = Epilogue::kHead;  // columns of a head, or 0
// Of these so many, from the first on, whose halves are exchanged; 2: neighbours, of all.
constexpr int kExchanged = Epilogue::kExchanged;
constexpr int kFirst = Epilogue::kFirst;  // and so many that are told apart from the others, or 0
constexpr int kRowsOfAWeight = rows_of_a_weight(kTileN, kSwapped);  // that lie together

constexpr int kConsumers = FUSEPASS_CONSUMERS;  // warpgroups
// Blocks of 64 rows a consumer accumulates: of the whole tile, or of its share.
constexpr int kBlocks = kTileM / (kPingpong ? 64 : 64 * kConsumers);
constexpr int kAccumulators = kTileN / 2;  // of one block, a thread
static_assert(kBlocks >= 1 && FUSEPASS_UNITS * 8 == kTileN && kTileN <= 256);
static_assert(kCluster == 1 || kSharesX || kTileN % 16 == 0, "each CTA loads half of w's tile");
static_assert(!kGated || (kSplit == 1 && (kSwapped ? kBlocks % 2 == 0 : kTileN % 16 == 0)));
static_assert(!kSeveral || (Epilogue::kIsEmpty && kSplit == 1));
static_assert(kHead == 0 || (!kSwapped && !kGated && kSplit == 1 && kTileN % kHead == 0));
static_assert(kHead <= 2 || kHead % 8 == 0, "a head is whole units of 8 columns");
static_assert(kExchanged <= 2 || kExchanged % 4 == 0, "half of what is exchanged is pairs");
static_assert(kFirst % 2 == 0, "and so is what is told apart");
static_assert(!kGated || kSwapped || !FUSEPASS_W_IS_KN || kTileN % 128 == 0);
static_assert(!FUSEPASS_W_IS_KN || kTileN % 64 == 0);
static_assert(kSplit == 1 || (!kPingpong && kCluster == 1 && FUSEPASS_UNITS % kSplit == 0));

// Bytes of a stage: every row of x (and of w, K-major) is one 128-byte swizzle row.
constexpr int kRowBytes = 128;
constexpr int kBytesX = kTileM * kRowBytes;
constexpr int kBytesW = kTileN * kRowBytes;
constexpr int kBytesStage = kBytesX + kBytesW;

// Rows and columns of output that a tile stands for, swapped of its transpose.
constexpr int kOutM = kTileM / (kGated && kSwapped ? 2 : 1);
constexpr int kOutN = kTileN / (kGated && !kSwapped ? 2 : 1);
// Columns of these that a CTA finishes: all, or its share where a cluster has split K.
constexpr int kFinishedN = kOutN / kSplit;

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

// The steps of 64 K that the CTA of this rank multiplies: all, or its share of them.
struct Steps {
  int first, count;

  __device__ __forceinline__ Steps(const Gemm90Args& args, int rank) {
    first = kSplit == 1 ? 0 : args.k_blocks * rank / kSplit;
    count = kSplit == 1 ? args.k_blocks : args.k_blocks * (rank + 1) / kSplit - first;
  }
};

// Tiles of a cluster, numbered so that those in flight together share rows of x and columns of w:
// `group` clusters below one another, then the next column.
struct Tile {
  int row, column;  // of its first element, in the output (swapped, in its transpose)
  int weight = 0;   // of several

  // `rank` is the CTA's place among those that share an operand.
  template <class Args>
  __device__ __forceinline__ Tile(const Args& args, int index, int rank) {
    const int per_group = args.group * args.tiles_n;
    const int first = index / per_group * args.group;
    const int rows = max(1, min(args.group, args.clusters_m - first));  // 1: past the last tile
    const int rest = index % per_group;
    const int below = first + rest % rows, beside = rest / rows;
    row = (kCluster == 1 || kSharesX ? below : below * kCluster + rank) * kOutM;
    column = (kCluster > 1 && kSharesX ? beside * kCluster + rank : beside) * kOutN;
    if constexpr (kSeveral) find_weight(args, kSwapped ? row : column);
  }

  // A cluster may reach beyond the last weight's tiles, to where nothing is stored.
  __device__ __forceinline__ void find_weight(const SeveralArgs& args, int& along) {
#pragma unroll
    for (int i = 1; i < kMaxWeights; ++i) weight += along >= args.first[i];
    along -= args.first[weight];
  }
};

}  // namespace fusepass
