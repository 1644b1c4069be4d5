// What splitter and consumers of the kernel for batches share: the ring's stages, what is known of rows and
// columns, and the way through the matrices.
#pragma once
#include "bmm_sm90_args.h"
#include "bmm_sm90_split.cuh"

namespace fusepass {

// Facts of a stage's columns: the scales of its step, and of all K, valid in a tile's last step.
struct ColumnFacts {
  float back[kBmmTileN];
  float norm1[kBmmTileN];
  float loss[kBmmTileN];
  int kind[kBmmTileN];  // RowKind
};
static_assert(sizeof(ColumnFacts) == kBmmStageBytes - 2 * kBmmPieceBytes);

// Of a thread. More than the CTA has at launch, and consumers would wait for them for ever.
constexpr int kRegistersAtLaunch = 168, kSplitterRegisters = 88, kConsumerRegisters = 208;

constexpr int kFacts = kBmmStages * kBmmStageBytes;
constexpr int kFull = kFacts + kBmmFactsBytes, kEmpty = kFull + 8 * kBmmStages;
static_assert(kEmpty + 8 * kBmmStages == kBmmSharedBytes);

// What a thread knows of its two rows, for which there are no registers meanwhile.
using ThreadFacts = RowFacts[2];
static_assert(sizeof(ThreadFacts) * kBmmThreads == kBmmFactsBytes);
__device__ __forceinline__ ThreadFacts& facts_of(uint8_t* memory) {
  return reinterpret_cast<ThreadFacts*>(memory + kFacts)[threadIdx.x];
}

// Splits a block, the first of its rows' if `is_first`.
__device__ __forceinline__ void split_step(const Block64& block, bool is_first, ThreadFacts& kept,
                                           Pieces64& pieces, float (&back)[2]) {
  RowFacts facts[2] = {kept[0], kept[1]};
  if (is_first) facts[0].reset(), facts[1].reset();
  split_block(block, facts, pieces, back);
  kept[0] = facts[0], kept[1] = facts[1];
}

struct Stage {
  uint32_t index = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++index == kBmmStages) index = 0, phase ^= 1;
  }
};

// The matrix of a unit, and its first row.
__device__ __forceinline__ int batch_of(const BmmArgs& args, int unit) {
  return unit / args.strips / args.tiles_m;
}
__device__ __forceinline__ int row_of(const BmmArgs& args, int unit) {
  return unit / args.strips % args.tiles_m * kBmmTileM;
}

// A place on a CTA's way through its units, their tiles and steps.
struct Step {
  int unit, tile, k_block;
  bool has_new_x;  // x's rows are not those of the step before

  __device__ __forceinline__ explicit Step(const BmmArgs& args) : unit(blockIdx.x) { enter(args); }

  __device__ __forceinline__ bool done(const BmmArgs& args) const { return unit >= args.units; }
  __device__ __forceinline__ void advance(const BmmArgs& args) {
    has_new_x = args.k_blocks > 1;
    if (++k_block < args.k_blocks) return;
    k_block = 0;
    ++tile;
    if (tile % args.strip != 0 && tile < args.tiles_n) return;
    unit += gridDim.x;
    enter(args);
  }

 private:
  __device__ __forceinline__ void enter(const BmmArgs& args) {
    tile = unit % args.strips * args.strip;
    k_block = 0;
    has_new_x = true;
  }
};

}  // namespace fusepass
