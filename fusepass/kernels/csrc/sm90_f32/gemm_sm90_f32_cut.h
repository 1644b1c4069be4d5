// Host side of a product whose operands' pieces would take much memory: rows or columns of the output are
// computed one part after the other, and the pieces of one part of the larger operand are there at a time.
// They lie in memory of the call's own; in rows of the output that are yet to be written; or, where x dies
// with the call, in columns of x that no part will read again.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "gemm_sm90_f32_launch.h"
#include "gemm_sm90_f32_matrix.h"
#include "gemm_sm90_f32_outputs.h"

namespace fusepass {

enum class Split90In { kOwn, kOutput, kX };

// Where pieces begin: bytes of the call's own memory or of the output, columns of x.
struct Split90Place {
  Split90In in;
  int64_t at;
};

// A part of the output, and the pieces that it is made of: split for it, or left by the part before.
struct Split90Step {
  int64_t row, rows, column, columns;
  Split90Place x, w;
  bool splits_x, splits_w;
};

// All parts, in order. In the call's own memory, of so many bytes, x's facts are first.
struct Split90Steps {
  std::vector<Split90Step> steps;
  int64_t w_facts, bytes;
};

// What of a call's operands is there before it, and what need not be there after it.
struct Split90Given {
  void* x_split = nullptr;
  void* w_split = nullptr;
  bool x_dies = false;
};

namespace split90 {

constexpr int64_t kUnit = 256;  // bytes at which what lies in one memory begins

inline Matrix of_rows(Matrix m, int64_t rows) {
  m.rows = rows;
  return m;
}
inline int64_t facts_bytes(const Matrix& m) { return round_up(Facts(m).bytes, kUnit); }
inline int64_t pieces_bytes(const Matrix& m) { return round_up(Layout(m).facts, kUnit); }

// Whether rows of the output can be computed apart: operands' rows are evenly spaced.
inline bool has_even_rows(const GemmProblem& p) {
  const auto even = [&](const Operand& o) { return o.data == nullptr || o.inner >= p.m; };
  return rows_of_group(p) == 0 && std::all_of(p.row, p.row + kMaxVectors, even) &&
         std::all_of(p.mat, p.mat + kMaxVectors, even);
}

// The output of most bytes; null if only sums are stored.
inline const Result* widest(const GemmProblem& p) {
  const Result* found = nullptr;
  for (const Result& out : p.out) {
    if (out.data == nullptr || out.column_sum) continue;
    if (found == nullptr || bytes_of(out.dtype) > bytes_of(found->dtype)) found = &out;
  }
  return found;
}
inline int64_t output_row_bytes(const GemmProblem& p) {
  const Result* const out = widest(p);
  return out == nullptr ? 0 : p.n * bytes_of(out->dtype);
}

// How the device takes the tiles of a problem.
struct Tiles {
  int64_t row, column;  // rows and columns of the output in one of a cluster
  int64_t rows, columns, slots;  // so many of them; slots: a round's

  Tiles(const GemmProblem& p, const Split90Kernels& kernels, int num_sms)
      : row(int64_t{kSplitTile} * kernels.cluster), column(kernels.tile_n),
        rows(ceil_div(p.m, row)), columns(ceil_div(p.n, column)), slots(num_sms / kernels.cluster) {}
  int64_t rounds(int64_t of_rows) const { return ceil_div(of_rows * columns, slots); }
};

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

// All of it: rows and columns of the output at a time, one of which is all of them.
struct Cut {
  int64_t rows, columns;
};

// Parts of one size that cost the GEMM no round of its tiles: of an x that takes much by itself, unless
// columns are summed, in any case; where both operands take too much, as many as take little longer.
inline Cut even_cut(const GemmProblem& p, int64_t x_bytes, int64_t w_bytes, const Tiles& tiles) {
  const bool even = has_even_rows(p);
  const bool any = x_bytes > kSplitMuch && float32_strips_bytes(p) == 0;
  const bool little = x_bytes + w_bytes <= kSplitTooMuch;
  if (little && !(any && even)) return {p.m, p.n};
  if ((little || x_bytes >= w_bytes) && even) {
    const int64_t most = any ? tiles.rows : cheap_parts(p);
    const int64_t bytes = 4 * tiles.row * p.k;
    const int64_t each = units_at_once(tiles.rows, tiles.columns, bytes, tiles.slots, most);
    return {std::min(each * tiles.row, p.m), p.n};
  }
  if (w_bytes <= kSplitEnough) return {p.m, p.n};
  const int64_t each = units_at_once(tiles.columns, tiles.rows, 4 * tiles.column * p.k, tiles.slots,
                                     cheap_parts(p));
  return {p.m, std::min(each * tiles.column, p.n)};
}

// The operand that is not cut is split with the first part of the other.
inline Split90Steps even_steps(const GemmProblem& p, const Cut& cut, const Split90Given& given) {
  const Matrix x = of_rows(x_of(p), cut.rows), w = of_rows(w_of(p), cut.columns);
  const bool splits_x = given.x_split == nullptr, splits_w = given.w_split == nullptr;
  Split90Steps found;
  found.w_facts = splits_x ? facts_bytes(x) : 0;
  const int64_t x_at = found.w_facts + (splits_w ? facts_bytes(w) : 0);
  const int64_t w_at = x_at + (splits_x ? pieces_bytes(x) : 0);
  found.bytes = w_at + (splits_w ? pieces_bytes(w) : 0);
  for (int64_t row = 0, column = 0; row < p.m && column < p.n;) {
    found.steps.push_back({row, std::min(cut.rows, p.m - row), column,
                           std::min(cut.columns, p.n - column), {Split90In::kOwn, x_at},
                           {Split90In::kOwn, w_at}, splits_x && column == 0, splits_w && row == 0});
    (cut.columns < p.n ? column : row) += cut.columns < p.n ? cut.columns : cut.rows;
  }
  return found;
}

// Rows that cost no round more where the others follow them: at most `most` units of `left`, and no less
// than half as many, if any of these does.
inline int64_t without_a_round(int64_t most, int64_t left, const Tiles& tiles) {
  for (int64_t each = most; each > most / 2; --each) {
    if (tiles.rounds(each) + tiles.rounds(left - each) == tiles.rounds(left)) return each;
  }
  return most;
}

// x in parts that lie in rows of the output that are yet to be written, each of as many rows as leave
// room for their pieces; the last one in kSplitRoom bytes of the call's own. No steps if there are more
// than kSplitMostParts, or tiles had an eighth more rounds.
inline Split90Steps shrinking_steps(const GemmProblem& p, const Tiles& tiles,
                                    const Split90Given& given) {
  const int64_t out = output_row_bytes(p), x_row = pieces_bytes(of_rows(x_of(p), tiles.row));
  const int64_t room = std::max<int64_t>(kSplitRoom / x_row, 1);  // rows of tiles
  std::vector<int64_t> parts;
  int64_t left = tiles.rows, rounds = 0;
  for (; left > room && int64_t(parts.size()) < kSplitMostParts; left -= parts.back()) {
    const int64_t rows = p.m - (tiles.rows - left) * tiles.row;
    const int64_t most = rows * out / (tiles.row * out + x_row);
    parts.push_back(without_a_round(std::max(most, room), left, tiles));
    rounds += tiles.rounds(parts.back());
  }
  parts.push_back(left);
  const int64_t whole = tiles.rounds(tiles.rows);
  if (int64_t(parts.size()) > kSplitMostParts) return {};
  if (rounds + tiles.rounds(left) > whole + whole / 8) return {};
  const bool splits_w = given.w_split == nullptr;
  const Matrix w = w_of(p);
  Split90Steps found;
  found.w_facts = facts_bytes(of_rows(x_of(p), parts.front() * tiles.row));
  const int64_t w_at = found.w_facts + (splits_w ? facts_bytes(w) : 0);
  const int64_t x_at = w_at + (splits_w ? pieces_bytes(w) : 0);
  found.bytes = x_at;
  int64_t row = 0;
  for (const int64_t part : parts) {
    const int64_t rows = std::min(part * tiles.row, p.m - row), bytes = part * x_row;
    const bool own = part <= room;
    if (own) found.bytes = std::max(found.bytes, x_at + bytes);
    const Split90Place x = own ? Split90Place{Split90In::kOwn, x_at}
                               : Split90Place{Split90In::kOutput, (row + rows) * out};
    found.steps.push_back({row, rows, 0, p.n, x, {Split90In::kOwn, w_at}, true, splits_w && row == 0});
    row += rows;
  }
  return found;
}

// Of x and w, both stored [k, rows], nothing but facts lies in the call's own memory: w's pieces are in the
// last rows of the output, x's first in those above, then in columns of x whose rows of the output are
// there; of the last rows, w's, too, a part of its columns at a time. No steps if there is not the room, or
// they would be more than kSplitMostParts.
inline Split90Steps steps_over_x(const GemmProblem& p, const Tiles& tiles) {
  const Matrix x = x_of(p), w = w_of(p);
  const int64_t out = output_row_bytes(p);
  if (out == 0 || !x.is_km || !w.is_km || !x.quads()) return {};
  if (!has_even_rows(p) || float32_strips_bytes(p) > 0) return {};
  const int64_t x_row = pieces_bytes(of_rows(x, tiles.row));
  const int64_t above = (p.m - ceil_div(pieces_bytes(w), out)) / tiles.row;  // w's: in units
  const int64_t first = above > 0 ? above * tiles.row * out / (tiles.row * out + x_row) : 0;
  if (first <= 0) return {};
  Split90Steps found;
  const int64_t begin = above * tiles.row, last = p.m - begin;
  const Split90Place w_place{Split90In::kOutput, begin * out}, over{Split90In::kX, 0};
  int64_t row = 0;
  for (int64_t units = without_a_round(first, above, tiles); row < begin;
       units = std::min(row, begin - row) / tiles.row) {
    const int64_t rows = units * tiles.row;
    const Split90Place place = row > 0 ? over : Split90Place{Split90In::kOutput, rows * out};
    found.steps.push_back({row, rows, 0, p.n, place, w_place, true, row == 0});
    row += rows;
  }
  const int64_t beside = columns_among(of_rows(x, last));
  const int64_t most = (begin - beside) / tiles.column;
  if (most <= 0) return {};
  const int64_t columns = ceil_div(tiles.columns, ceil_div(tiles.columns, most)) * tiles.column;
  for (int64_t column = 0; column < p.n; column += columns) {
    found.steps.push_back({begin, last, column, std::min(columns, p.n - column), over,
                           {Split90In::kX, beside}, column == 0, true});
  }
  if (int64_t(found.steps.size()) > kSplitMostParts) return {};
  found.w_facts = facts_bytes(of_rows(x, std::max(found.steps.front().rows, last)));
  found.bytes = found.w_facts + facts_bytes(w);
  return found;
}

}  // namespace split90

// All of it at once, or in parts. An operand that was split before is there as a whole.
inline Split90Steps split90_steps(const GemmProblem& p, const Split90Given& given,
                                  const Split90Kernels& kernels, int num_sms) {
  const split90::Tiles tiles(p, kernels, num_sms);
  const int64_t x_bytes = given.x_split != nullptr ? 0 : 4 * p.m * p.k;
  const int64_t w_bytes = given.w_split != nullptr ? 0 : 4 * p.n * p.k;
  if (kernels.segments > 1) return split90::even_steps(p, {p.m, p.n}, given);
  Split90Steps found{};
  if (given.x_dies && x_bytes > 0 && w_bytes > 0) found = split90::steps_over_x(p, tiles);
  if (found.steps.empty() && x_bytes > kSplitMuch && split90::has_even_rows(p)) {
    found = split90::shrinking_steps(p, tiles, given);
  }
  if (!found.steps.empty()) return found;
  return split90::even_steps(p, split90::even_cut(p, x_bytes, w_bytes, tiles), given);
}

}  // namespace fusepass
