// The splitter of the kernel for batches: a warpgroup that turns w into the ring's stages.
#pragma once
#include "bmm_sm90_steps.cuh"
#include "gemm_sm90_ptx.cuh"

namespace fusepass {

template <bool kQuads>
__device__ __forceinline__ void produce(const BmmArgs& args, uint32_t shared, uint8_t* memory) {
  int lane = threadIdx.x % 32, below = threadIdx.x % 128 / 32 * 16 + lane / 4;
  Step step(args);
  Stage stage;
  Block64 block;
  ThreadFacts& kept = facts_of(memory);
  const auto load = [&](const Step& s) {
    if (s.done(args)) return;
    block.load<kQuads>(args.w, batch_of(args, s.unit), s.tile * kBmmTileN + below, args.n,
                       s.k_block * kBmmTileK, args.k, lane);
  };
  load(step);
#pragma unroll 1
  while (!step.done(args)) {
    // Opaque, so that nothing derived from them takes a register from one step to the next.
    asm volatile("" : "+r"(lane), "+r"(below));
    Pieces64 pieces;
    float back[2];
    split_step(block, step.k_block == 0, kept, pieces, back);
    const bool is_last = step.k_block == args.k_blocks - 1;
    step.advance(args);
    load(step);

    mbarrier_wait(shared + kEmpty + 8 * stage.index, stage.phase ^ 1);
    uint8_t* const at = memory + stage.index * kBmmStageBytes;
    ColumnFacts& columns = *reinterpret_cast<ColumnFacts*>(at + 2 * kBmmPieceBytes);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int column = below + 8 * h;
      uint8_t* const row = at + column * 128 + 4 * (lane % 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int to = ((2 * j + i) ^ (column % 8)) * 16;  // swizzled
          *reinterpret_cast<uint32_t*>(row + to) = pieces.high[j][2 * i + h];
          *reinterpret_cast<uint32_t*>(row + kBmmPieceBytes + to) = pieces.low[j][2 * i + h];
        }
      }
      if (lane % 4 == 0) columns.back[column] = back[h];
      if (is_last) {
        const RowVerdict v = kept[h].verdict(args.k);
        if (lane % 4 == 0) {
          columns.norm1[column] = v.norm1;
          columns.loss[column] = v.loss;
          columns.kind[column] = v.kind;
        }
      }
    }
    fence_async_shared();
    mbarrier_arrive(shared + kFull + 8 * stage.index);
    stage.next();
  }
}

}  // namespace fusepass
