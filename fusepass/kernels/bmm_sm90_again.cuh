// Rows of a tile whose sums the split does not hold, in float64: a product of float32s is exact there and the
// sum is rounded once.
#pragma once
#include "bmm_sm90_args.h"

namespace fusepass {

constexpr int kAgainRows = 4;   // summed together: they share w's elements
constexpr int kAgainAhead = 8;  // of K whose elements of w are asked for together

// A sum that no float32 could hold on its way is infinite, as it would have been there.
__device__ __forceinline__ void overflow(double& sum) {
  constexpr double kMost = 0x1.ffffffp127;  // rounds to infinity
  if (fabs(sum) >= kMost) sum *= __longlong_as_double(0x7FF0000000000000);
}

// Computes and writes those rows first_row + i of a matrix of the result for which bit i of `rows` is set,
// and 64 columns from `column` on, two a lane, by a warp. `bounded`: no product with w's columns can be
// large or not finite, so that an x of 0 adds nothing and no sum overflows on its way.
__device__ __forceinline__ void sum_rows_again(const BmmArgs& args, int64_t batch, int first_row,
                                               unsigned rows, int column, bool bounded, int lane) {
  const float* const x = args.x.data + batch * args.x.batch_stride;
  const float* const w = args.w.data + batch * args.w.batch_stride;
  const float* const w_mine[2] = {w + min(column + lane, args.n - 1) * args.w.row_stride,
                                  w + min(column + lane + 32, args.n - 1) * args.w.row_stride};
#pragma unroll 1
  while (rows != 0) {
    int row[kAgainRows];
    bool is_row[kAgainRows];
    double sum[kAgainRows][2] = {};
#pragma unroll
    for (int i = 0; i < kAgainRows; ++i) {
      is_row[i] = rows != 0;
      row[i] = is_row[i] ? first_row + __ffs(rows) - 1 : row[0];
      rows &= rows - 1;
    }
#pragma unroll 1
    for (int k = 0; k < args.k; k += 32) {
      const bool inside = k + lane < args.k;
      float mine[kAgainRows];
      bool any = !bounded;
#pragma unroll
      for (int i = 0; i < kAgainRows; ++i) {
        mine[i] = inside ? x[row[i] * args.x.row_stride + (k + lane) * args.x.k_stride] : 0.0f;
        any |= mine[i] != 0.0f;
      }
      unsigned left = __ballot_sync(~0u, inside && any);
#pragma unroll 1
      while (left != 0) {
        int at[kAgainAhead];
        float v[kAgainAhead][2];
#pragma unroll
        for (int j = 0; j < kAgainAhead; ++j) {
          at[j] = __ffs(left) - 1;  // -1: none is left
          left &= left - 1;
          if (at[j] < 0) continue;
#pragma unroll
          for (int c = 0; c < 2; ++c) v[j][c] = w_mine[c][(k + at[j]) * args.w.k_stride];
        }
#pragma unroll
        for (int j = 0; j < kAgainAhead; ++j) {
          if (at[j] < 0) continue;
#pragma unroll
          for (int i = 0; i < kAgainRows; ++i) {
            const double factor = __shfl_sync(~0u, mine[i], at[j]);
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              sum[i][c] = fma(factor, double{v[j][c]}, sum[i][c]);
              if (!bounded) overflow(sum[i][c]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAgainRows; ++i) {
      float* const to = args.out + (batch * args.m + row[i]) * args.n + column + lane;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (is_row[i] && column + lane + 32 * c < args.n) to[32 * c] = static_cast<float>(sum[i][c]);
      }
    }
  }
}

}  // namespace fusepass
