// Rows of x or w of which few elements count, where nothing else of their group of 64 rows of a tile is
// unsafe: only their own outputs are summed in float64, over the elements that are not 0. A hidden unit
// of ReLU that few tokens use is such a row of a weight gradient, 0 but for a handful of them.
//
// What is 0 adds nothing, for the other operand is finite: a row that is not has an infinite loss, which
// sends the group to sum_products.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "split_sm90_list.cuh"

namespace fusepass {

constexpr int kGroupRows = 64;
constexpr int kMostLines = 16;  // rows and columns of a group that are mended so
constexpr int kListed = 32;     // elements of one that a warp may find
constexpr int kTerms = 8;       // products of a sum whose operands are read together

// Of one group. A line is a row of x, or a column of the output: a row of w.
template <int kWarps, int kColumns>
struct FewShared {
  static constexpr int kWords = (kGroupRows + kColumns) / 32;
  static constexpr int kLongest = kColumns > kGroupRows ? kColumns : kGroupRows;

  uint32_t marks[kWords];             // a bit a line, those of x first
  int found[kWarps];                  // elements of the line at hand, by warp
  int list[kWarps][kListed];          // where they are in K
  int all[kWarps * kListed];          // these one after the other
  float results[kMostLines][kLongest];  // of the lines in the order of their bits
};

// bias + the products of a row of x and a row of w at `count` places of K.
__device__ __forceinline__ float sum_listed(const Split90Args& args, const int* all, int count,
                                            int x_row, int w_row, float bias) {
  const float* const x = args.x.raw + x_row * args.x.row_step;
  const float* const w = args.w.raw + w_row * args.w.row_step;
  double sum = bias;
#pragma unroll 1
  for (int first = 0; first < count; first += kTerms) {
    float a[kTerms], b[kTerms];
#pragma unroll
    for (int i = 0; i < kTerms; ++i) {
      const bool inside = first + i < count;
      const int64_t k = inside ? all[first + i] : 0;
      a[i] = inside ? x[k * args.x.k_step] : 0.0f;
      b[i] = inside ? w[k * args.w.k_step] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kTerms; ++i) sum = fma(double{a[i]}, double{b[i]}, sum);  // products are exact
  }
  return static_cast<float>(sum);
}

// Calls f(line, is it a column, its index in the group) for each marked line in turn.
template <int kWords, class F>
__device__ __forceinline__ void each_line(const uint32_t (&marks)[kWords], F f) {
  int line = 0;
#pragma unroll 1
  for (int word = 0; word < kWords; ++word) {
    for (uint32_t rest = marks[word]; rest != 0; rest &= rest - 1, ++line) {
      const int bit = 32 * word + __ffs(static_cast<int>(rest)) - 1;
      f(line, bit >= kGroupRows, bit >= kGroupRows ? bit - kGroupRows : bit);
    }
  }
}

// Sums the outputs of the group's few lines from (row, column) on into `shared`; false, to all threads,
// if that is too much: `shared` has then been read by all of them. All 32 kWarps threads take part;
// `sync` is their barrier, and `bias` has the columns'.
template <int kWarps, int kColumns, class Sync>
__device__ __forceinline__ bool mend(const Split90Args& args, FewShared<kWarps, kColumns>& shared,
                                     const float* bias, int row, int column, int thread, Sync sync) {
  const int lane = thread % 32, warp = thread / 32;
  const auto mark = [&](const SplitRow* detail, int first, int limit, uint32_t* words) {
    const bool few = first + thread < limit && (detail[first + thread].kind & kSplitFew);
    const uint32_t word = __ballot_sync(~0u, few);
    if (lane == 0) words[warp] = word;
  };
  if (thread < kGroupRows) mark(args.x.detail, row, args.m, shared.marks);
  if (thread < kColumns) {
    mark(args.w.detail, column, args.gemm.n, shared.marks + kGroupRows / 32);
  }
  sync();
  int lines = 0;
  for (int word = 0; word < shared.kWords; ++word) lines += __popc(shared.marks[word]);
  if (lines > kMostLines) {
    sync();
    return false;
  }

  bool fits = true;
  each_line(shared.marks, [&](int line, bool is_column, int index) {
    if (!fits) return;
    const SplitOperand& from = is_column ? args.w : args.x;
    const int of = (is_column ? column : row) + index;
    int count = from.detail[of].kind >> kSplitCount;
    if (count > 0) {
      sync();  // the line before has been summed
      if (thread < count) shared.all[thread] = from.list[int64_t{of} * kSplitListed + thread];
    } else {
      const float* const first = from.raw + of * from.row_step;
      const int mine = list_row<kWarps>(first, from.k_step, args.k, shared.list[warp], thread);
      if (lane == 0) shared.found[warp] = mine;
      sync();
      const Found found(shared.found, warp, kListed);
      fits = found.fits;
      count = found.all;
      if (fits && lane < mine) shared.all[found.before + lane] = shared.list[warp][lane];
    }
    sync();
    const int length = is_column ? kGroupRows : kColumns;
    if (!fits || thread >= length) return;
    const int x_row = is_column ? min(row + thread, args.m - 1) : of;
    const int w_row = is_column ? of : min(column + thread, args.gemm.n - 1);
    shared.results[line][thread] =
        sum_listed(args, shared.all, count, x_row, w_row, bias[is_column ? index : thread]);
  });
  sync();  // results are there
  return fits;
}

// The thread's share of mended lines into its finished z, in the accumulators' order.
template <int kWarps, int kColumns>
__device__ __forceinline__ void take_mended(float (&z)[kColumns / 2],
                                            const FewShared<kWarps, kColumns>& shared, int thread) {
  const int lane = thread % 32, mine = thread / 32 * 16 + lane / 4, pair = lane % 4 * 2;
  each_line(shared.marks, [&](int line, bool is_column, int index) {
    const float* const result = shared.results[line];
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const int r = mine + 8 * (i / 2 % 2), c = 8 * (i / 4) + pair + i % 2;
      if (is_column ? c == index : r == index) z[i] = result[is_column ? r : c];
    }
  });
}

}  // namespace fusepass
