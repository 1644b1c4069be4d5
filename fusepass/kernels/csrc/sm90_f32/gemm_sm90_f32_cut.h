// Host side of a product whose operands' pieces would take much memory: rows or columns of the output are
// computed one part after the other, and the pieces of one part of the larger operand are there at a time.
#pragma once
#include <algorithm>
#include <cstdint>

#include "gemm_sm90_f32_launch.h"
#include "gemm_sm90_f32_outputs.h"

namespace fusepass {

// Rows and columns of the output to compute at a time.
struct Split90Cut {
  int64_t rows, columns;
};

namespace split90 {

// Whether rows of the output can be computed apart: operands' rows are evenly spaced.
inline bool has_even_rows(const GemmProblem& p) {
  const auto even = [&](const Operand& o) { return o.data == nullptr || o.inner >= p.m; };
  return rows_of_group(p) == 0 && std::all_of(p.row, p.row + kMaxVectors, even) &&
         std::all_of(p.mat, p.mat + kMaxVectors, even);
}

// Parts that take kSplitLittle of the whole's time longer.
inline int64_t cheap_parts(const GemmProblem& p) {
  const double seconds = static_cast<double>(p.m) * p.n * p.k / kSplitRate;
  return 1 + static_cast<int64_t>(kSplitLittle * seconds / kSplitPart);
}

// Of `units` rows or columns of tiles, `tiles` in each of them, how many to compute at a time, in no more
// than `most` parts, so that the device's multiprocessors, which take `slots` tiles a round, have no round
// more. `bytes`: of a unit's pieces.
inline int64_t units_at_once(int64_t units, int64_t tiles, int64_t bytes, int64_t slots,
                             int64_t most) {
  const auto rounds = [&](int64_t of) { return ceil_div(of * tiles, slots); };
  int64_t each = ceil_div(units, std::min(most, ceil_div(units * bytes, kSplitEnough)));
  while (each < units && units / each * rounds(each) + rounds(units % each) > rounds(units)) ++each;
  return each;
}

}  // namespace split90

// All of it, or parts that cost the GEMM no round of its tiles: of an x that takes much by itself, unless
// columns are summed, in any case; where both operands take too much, as many as take little longer. An
// operand that was split before (`x_is_split`, `w_is_split`) is there as a whole.
inline Split90Cut split90_cut(const GemmProblem& p, bool x_is_split, bool w_is_split,
                              const Split90Kernels& kernels, int num_sms) {
  const Split90Cut whole{p.m, p.n};
  const int64_t x_bytes = x_is_split ? 0 : 4 * p.m * p.k, w_bytes = w_is_split ? 0 : 4 * p.n * p.k;
  if (kernels.segments > 1) return whole;
  const int64_t row = int64_t{kSplitTile} * kernels.cluster, column = kernels.tile_n;
  const int64_t rows = ceil_div(p.m, row), columns = ceil_div(p.n, column);
  const int64_t slots = num_sms / kernels.cluster;
  const bool even = split90::has_even_rows(p);
  const bool any = x_bytes > kSplitMuch && float32_strips_bytes(p) == 0;
  const bool little = x_bytes + w_bytes <= kSplitTooMuch;
  if (little && !(any && even)) return whole;
  if ((little || x_bytes >= w_bytes) && even) {
    const int64_t most = any ? rows : split90::cheap_parts(p);
    const int64_t each = split90::units_at_once(rows, columns, 4 * row * p.k, slots, most);
    return {std::min(each * row, p.m), p.n};
  }
  if (w_bytes <= kSplitEnough) return whole;
  const int64_t each = split90::units_at_once(columns, rows, 4 * column * p.k, slots,
                                              split90::cheap_parts(p));
  return {p.m, std::min(each * column, p.n)};
}

// That part of the problem which begins at a row and a column of the output. Either is 0.
inline GemmProblem split90_part(const GemmProblem& p, int64_t row, int64_t column,
                                const Split90Cut& cut) {
  GemmProblem part = p;
  part.m = std::min(cut.rows, p.m - row);
  part.n = std::min(cut.columns, p.n - column);
  part.x = static_cast<const float*>(p.x) + row * (p.x_is_km ? 1 : p.ldx);
  part.w[0] = static_cast<const float*>(p.w[0]) + column * (p.w_is_kn ? 1 : p.ldw[0]);
  if (p.bias[0] != nullptr) part.bias[0] = static_cast<const float*>(p.bias[0]) + column;
  for (Result& out : part.out) {
    if (out.data == nullptr) continue;
    const int64_t first = out.column_sum ? column : row * p.n + column;
    out.data = static_cast<char*>(out.data) + first * bytes_of(out.dtype);
  }
  const auto move = [&](Operand& o) {
    if (cut.rows < p.m) o.inner = part.m;
    o.data = static_cast<const char*>(o.data) +
             (row * o.row_stride + column * o.column_stride) * bytes_of(o.dtype);
  };
  for (Operand& o : part.col) {
    if (o.data != nullptr) move(o);
  }
  for (Operand& o : part.row) {
    if (o.data != nullptr) move(o);
  }
  for (Operand& o : part.mat) {
    if (o.data != nullptr) move(o);
  }
  return part;
}

}  // namespace fusepass
