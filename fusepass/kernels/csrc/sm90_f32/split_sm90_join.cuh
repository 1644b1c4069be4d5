// What is known of rows whose K was split in parts, each with a scale of its own: put together from what
// is known of the parts, as if the row had been split whole. It says no more than it may: a bound is as
// large, and what counts is as little, as the parts leave possible.
#pragma once
#include "sm90/gemm_sm90_ptx.cuh"
#include "split_sm90.cuh"

namespace fusepass {

// Puts the lists of a row's parts one behind the other; how many there are, or 0 if not all elements
// are listed.
__device__ __forceinline__ int join_lists(const Split90Join& of, int parts, int depth, int row) {
  if (of.part_list == nullptr) return 0;
  int count = 0;
  for (int p = 0; p < parts; ++p) {
    const SplitRow& part = of.part_detail[p * of.detail_step + row];
    if (part.norm == 0.0f) continue;
    const int here = part.kind >> kSplitCount;
    if (here == 0 || count + here > kSplitListed) return 0;
    const int32_t* const from = of.part_list + p * of.list_step + int64_t{row} * kSplitListed;
    int32_t* const to = of.list + int64_t{row} * kSplitListed + count;
    for (int i = 0; i < here; ++i) to[i] = p * depth + from[i];
    count += here;
  }
  return count;
}

// The norm of a part that is not 0, or not finite, is 0.
__device__ __forceinline__ SplitRow join_row(const Split90Join& of, int parts, int row) {
  const auto part = [&](int p) { return of.part_detail[p * of.detail_step + row]; };
  SplitRow whole{0, 0.0f, 0.0f, 0};
  bool any = false;
  for (int p = 0; p < parts; ++p) {
    const SplitRow one = part(p);
    if (one.norm == 0.0f) continue;
    whole.exponent = any ? max(whole.exponent, one.exponent) : one.exponent;
    any = true;
  }
  double norm = 0.0, loss = 0.0;  // squares, of the row scaled by its own exponent
  int count = 0;
  for (int p = 0; p < parts; ++p) {
    const SplitRow one = part(p);
    const int below = whole.exponent - one.exponent;
    const double scale = power_of_two_64(-2 * below);
    norm += scale * one.norm * one.norm;
    loss += scale * one.loss * one.loss;
    if (one.norm == 0.0f) continue;
    // Of a part whose largest is below the row's that one counts: the others may be too small.
    count += below == 0 ? one.kind >> kSplitSeen & kSplitSeenMask : below <= 24;
  }
  for (int p = 0; p < parts; ++p) {
    const SplitRow one = part(p);
    const double square = power_of_two_64(2 * (one.exponent - whole.exponent)) * one.norm * one.norm;
    // The element is no larger than its part.
    if ((one.kind & kSplitDominated) && 4.01 * square >= norm) whole.kind |= kSplitDominated;
  }
  if (any && count < kSplitLeast) whole.kind |= kSplitFew;
  whole.norm = static_cast<float>(sqrt(norm)) * 1.001f;
  whole.loss = static_cast<float>(sqrt(loss)) * 1.001f;
  if (loss > 0.0) whole.loss = fmaxf(whole.loss, 0x1p-149f);  // rounding makes a loss no less than one
  return whole;
}

// A thread a row, of x's first.
__device__ __forceinline__ void join_parts(const Split90JoinBoth& both) {
  grid_dependency_wait();
  grid_dependents_launch();
  const int at = blockIdx.x * kSplitThreads + threadIdx.x;
  const bool is_w = at >= both.x.rows;
  const Split90Join& of = is_w ? both.w : both.x;
  const int row = at - (is_w ? both.x.rows : 0);
  if (row >= of.rows) return;
  SplitRow whole = join_row(of, both.parts, row);
  of.undo[row] = undo_of(whole);
  if (whole.kind & kSplitFew) {
    whole.kind |= join_lists(of, both.parts, both.depth, row) << kSplitCount;
  }
  of.detail[row] = whole;
}

}  // namespace fusepass
