// Host side of the pre-pass: which of its kernels splits what, and how many blocks.
#pragma once
#include <algorithm>
#include <utility>

#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_f32_launch.h"
#include "sm90/gemm_sm90_problem.h"

namespace fusepass {
namespace split90 {

// Either may have no rows. A warp of a matrix that fills the device takes as many of them as makes that
// one wave of blocks.
inline void split_rows(const Split90Rows& x, const Split90Rows& w, int64_t k,
                const Split90Kernels& kernels, CUstream stream, int num_sms) {
  constexpr int64_t kWarps = kSplitThreads / 32, kMost = 32;  // a lane knows a row
  const int64_t blocks = k <= kSplitShorter ? kSplitShorterBlocks : kSplitShortBlocks;
  const int64_t wave = num_sms * blocks * kWarps, rows = int64_t{x.rows} + w.rows;
  const int64_t each = std::min(ceil_div(rows, wave), kMost);
  const int64_t of_block = k <= kSplitShort ? kWarps * each : 1;
  const int64_t x_blocks = ceil_div(x.rows, of_block);
  Split90Both both{x, w, static_cast<int32_t>(x_blocks), 1, static_cast<int32_t>(each)};
  const CUfunction kernel = k <= kSplitShorter ? kernels.shorter_rows
                            : k <= kSplitShort ? kernels.short_rows
                            : k <= kSplitLong  ? kernels.long_rows
                                               : kernels.longer_rows;
  launch_kernel(kernel, x_blocks + ceil_div(w.rows, of_block), kSplitThreads, 0, stream, &both, true);
}

// Those stored [k, rows]: shares small enough for the cache to keep those in flight, and enough CTAs
// for the device; where there are no more than one a multiprocessor, of twice the threads. Either may
// have no rows.
inline void split_columns(const Split90Rows& x, const Split90Rows& w, int64_t k,
                   const Split90Kernels& kernels, CUstream stream, int num_sms) {
  const int64_t x_strips = ceil_div(x.rows, kSplitStrip), w_strips = ceil_div(w.rows, kSplitStrip);
  const int64_t strips = x_strips + w_strips;
  int shares = 1;
  while (shares < std::min(kSplitMostShares, num_sms) &&
         (int64_t{shares} * kSplitShare < k || strips * shares < 2 * num_sms)) {
    shares *= 2;
  }
  Split90Both both{x, w, static_cast<int32_t>(x_strips * shares), shares, 1};
  const bool few = strips * shares <= num_sms;
  launch_kernel(few ? kernels.few_columns : kernels.columns, strips * shares,
                few ? 2 * kSplitColumnThreads : kSplitColumnThreads, 0, stream, &both, true, shares);
}

// As many as have rows, of x and of w.
inline void split_both(const GemmProblem& p, Split90Rows x, Split90Rows w, const Split90Kernels& kernels,
                CUstream stream, int num_sms) {
  Split90Rows x_columns{}, w_columns{};
  if (p.x_is_km) std::swap(x, x_columns);
  if (p.w_is_kn) std::swap(w, w_columns);
  if (x_columns.rows + w_columns.rows > 0) {
    split_columns(x_columns, w_columns, p.k, kernels, stream, num_sms);
  }
  if (x.rows + w.rows > 0) split_rows(x, w, p.k, kernels, stream, num_sms);
}

}  // namespace split90
}  // namespace fusepass
