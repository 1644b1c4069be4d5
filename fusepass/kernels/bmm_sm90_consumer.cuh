// A consumer of the kernel for batches: a warpgroup that splits, multiplies and finishes 64 rows of x.
#pragma once
#include "bmm_sm90_again.cuh"
#include "bmm_sm90_steps.cuh"
#include "bmm_sm90_wgmma.cuh"
#include "gemm_sm90_ptx.cuh"

namespace fusepass {

// sums += part, scaled back by row and column. The first product is exact.
__device__ __forceinline__ void add_scaled(BmmSums& sums, const BmmSums& part, float row_back,
                                           float below_back, const float* column_back, int lane) {
  const float2* const columns = reinterpret_cast<const float2*>(column_back) + lane % 4;
#pragma unroll
  for (int u = 0; u < kBmmTileN / 8; ++u) {
    const float2 c = columns[4 * u];
    if (u % 2 == 0) asm volatile("" ::: "memory");  // fewer of them in registers
    sums[4 * u] = fmaf(part[4 * u] * row_back, c.x, sums[4 * u]);
    sums[4 * u + 1] = fmaf(part[4 * u + 1] * row_back, c.y, sums[4 * u + 1]);
    sums[4 * u + 2] = fmaf(part[4 * u + 2] * below_back, c.x, sums[4 * u + 2]);
    sums[4 * u + 3] = fmaf(part[4 * u + 3] * below_back, c.y, sums[4 * u + 3]);
  }
}

// One step of a tile, of 64 K: its products are added to `sums`.
__device__ __forceinline__ void multiply(BmmSums& sums, const Pieces64& x, const float (&back)[2],
                                         uint32_t w, const ColumnFacts& columns, int lane) {
  constexpr int kChain = 2;  // steps of 16 K that the tensor cores add before float32 does
  constexpr float kLow = 1.0f / (1 << kSplitLow);
  BmmSums chain, correction;
#pragma unroll
  for (int first = 0; first < 4; first += kChain) {
    settle(chain);
    wgmma_fence();
#pragma unroll
    for (int j = first; j < first + kChain; ++j) {
      wgmma(chain, x.high[j], swizzled_rows(w + 32 * j), j > first);
    }
    wgmma_commit();
    settle(correction);
    wgmma_fence();
#pragma unroll
    for (int j = first; j < first + kChain; ++j) {
      wgmma(correction, x.high[j], swizzled_rows(w + kBmmPieceBytes + 32 * j), j > 0);
      wgmma(correction, x.low[j], swizzled_rows(w + 32 * j), 1);
    }
    wgmma_commit();
    wgmma_wait<1>();  // the chain; the corrections are in flight behind it
    settle(chain);
    add_scaled(sums, chain, back[0], back[1], columns.back, lane);
  }
  wgmma_wait<0>();
  settle(correction);
  add_scaled(sums, correction, back[0] * kLow, back[1] * kLow, columns.back, lane);
}

// Which of a warp's 16 rows must be summed again, a bit each; `kinds` are all columns'.
__device__ __forceinline__ unsigned rows_again(const BmmSums& z, const RowVerdict (&x)[2], int kinds,
                                               const ColumnFacts& columns, int lane) {
  unsigned rows = 0;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int either = x[h].kind | kinds, both = x[h].kind & kinds;
    bool again = (either & kRowAgain) || (both & kRowDominated);
    if (either & kRowLossy) {
#pragma unroll
      for (int e = 0; e < kBmmTileN / 4; ++e) {
        const int column = 8 * (e / 2) + 2 * (lane % 4) + e % 2;
        const float lost = x[h].loss * columns.norm1[column] + x[h].norm1 * columns.loss[column];
        // Of very small sums what was lost could have vanished itself.
        again |= !(fabsf(z[4 * (e / 2) + 2 * h + e % 2]) >= fmaxf(lost * 0x1p24f, 0x1p-100f));
      }
    }
    const unsigned lanes = __ballot_sync(~0u, again);
#pragma unroll
    for (int r = 0; r < 8; ++r) rows |= (lanes >> (4 * r) & 15u) != 0 ? 1u << (r + 8 * h) : 0u;
  }
  return rows;
}

// Writes those of a warp's 16 rows from `row` on that are not `again`, 64 columns from `column` on.
__device__ __forceinline__ void store(const BmmArgs& args, const BmmSums& z, int64_t batch, int row,
                                      int column, unsigned again, int lane) {
  const int mine = column + 2 * (lane % 4);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int below = lane / 4 + 8 * h;
    if (row + below >= args.m || (again >> below & 1)) continue;
    float* const to = args.out + (batch * args.m + row + below) * args.n + mine;
#pragma unroll
    for (int u = 0; u < kBmmTileN / 8; ++u) {
      const float first = z[4 * u + 2 * h], second = z[4 * u + 2 * h + 1];
      if (args.n % 2 == 0) {
        if (mine + 8 * u < args.n) *reinterpret_cast<float2*>(to + 8 * u) = {first, second};
      } else {
        if (mine + 8 * u < args.n) to[8 * u] = first;
        if (mine + 8 * u + 1 < args.n) to[8 * u + 1] = second;
      }
    }
  }
}

template <bool kQuads>
__device__ __forceinline__ void consume(const BmmArgs& args, uint32_t shared, uint8_t* memory,
                                        int consumer) {
  int lane = threadIdx.x % 32, warp_row = consumer * 64 + threadIdx.x % 128 / 32 * 16;
  Step step(args);
  Stage stage;
  Block64 block;
  Pieces64 x;
  ThreadFacts& kept = facts_of(memory);
  float back[2];
  BmmSums sums;
  const auto load = [&](const Step& s) {
    if (s.done(args) || !s.has_new_x) return;
    block.load<kQuads>(args.x, batch_of(args, s.unit), row_of(args, s.unit) + warp_row + lane / 4, args.m,
                       s.k_block * kBmmTileK, args.k, lane);
  };
  load(step);
#pragma unroll 1
  while (!step.done(args)) {
    asm volatile("" : "+r"(lane), "+r"(warp_row));  // as the splitter's
    if (step.has_new_x) split_step(block, step.k_block == 0, kept, x, back);
    if (step.k_block == 0) {
#pragma unroll
      for (int i = 0; i < 32; ++i) sums[i] = 0.0f;
    }
    const bool is_last = step.k_block == args.k_blocks - 1;
    const int unit = step.unit, tile = step.tile;
    step.advance(args);
    load(step);
    const uint32_t offset = stage.index * kBmmStageBytes;
    const ColumnFacts& columns =
        *reinterpret_cast<const ColumnFacts*>(memory + offset + 2 * kBmmPieceBytes);
    mbarrier_wait(shared + kFull + 8 * stage.index, stage.phase);
    multiply(sums, x, back, shared + offset, columns, lane);

    unsigned again = 0;
    int kinds = 0;
    if (is_last) {
      kinds = __reduce_or_sync(~0u, columns.kind[lane] | columns.kind[lane + 32]);
      const RowVerdict verdicts[2] = {kept[0].verdict(args.k), kept[1].verdict(args.k)};
      again = rows_again(sums, verdicts, kinds, columns, lane);
      kinds |= __reduce_or_sync(~0u, verdicts[0].kind | verdicts[1].kind);
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared + kEmpty + 8 * stage.index);
    if (is_last) {
      const int batch = batch_of(args, unit), column = tile * kBmmTileN;
      const int row = row_of(args, unit) + warp_row;
      store(args, sums, batch, row, column, again, lane);
      again &= (1u << max(min(args.m - row, 16), 0)) - 1;
      const bool bounded = (kinds & kRowLarge) == 0;
      if (again != 0) sum_rows_again(args, batch, row, again, column, bounded, lane);
    }
    stage.next();
  }
}

}  // namespace fusepass
