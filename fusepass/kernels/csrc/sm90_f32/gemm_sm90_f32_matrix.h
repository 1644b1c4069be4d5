// Host side of a matrix that the float32 split kernels read: how it is stored, and where its pieces and
// what is known of its rows lie.
#pragma once
#include <cstdint>

#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_f32_launch.h"
#include "sm90/gemm_sm90_problem.h"

namespace fusepass {
namespace split90 {

inline int64_t round_up(int64_t v, int64_t unit) { return ceil_div(v, unit) * unit; }

// A matrix as it is stored: `lines` of `length` contiguous elements, `ld` apart. Its rows, M or N of
// the GEMM, are the lines, or, if is_km, what is contiguous.
struct Matrix {
  const void* data;
  int64_t rows, k, ld;
  bool is_km;

  // Whether every fourth element of a line is 16-byte aligned.
  bool quads() const {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (ld % 4 == 0 || lines() == 1);
  }
  int64_t lines() const { return is_km ? k : rows; }
  int64_t length() const { return is_km ? rows : k; }
  bool overlaps() const { return lines() > 1 && ld < length(); }
};

inline Matrix x_of(const GemmProblem& p) { return {p.x, p.m, p.k, p.ldx, p.x_is_km}; }
inline Matrix w_of(const GemmProblem& p) { return {p.w[0], p.n, p.k, p.ldw[0], p.w_is_kn}; }

template <class T>
T* at(const void* base, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(const_cast<void*>(base)) + offset);
}

// What is known of rows: detail, undo, and of a matrix stored [k, rows] lists.
struct Facts {
  int64_t undo, list, bytes;

  explicit Facts(const Matrix& m) {
    undo = m.rows * int64_t{sizeof(SplitRow)};
    list = undo + m.rows * int64_t{sizeof(float)};
    bytes = list + (m.is_km ? m.rows * kSplitListed * int64_t{sizeof(int32_t)} : 0);
  }
};

// A split matrix: hi, lo, and behind them its facts.
struct Layout {
  int64_t pitch;  // elements between lines of pieces
  int64_t low, facts, bytes;

  explicit Layout(const Matrix& m) {
    pitch = round_up(m.length(), 8);
    low = 2 * m.lines() * pitch;
    facts = 2 * low;
    bytes = facts + Facts(m).bytes;
  }
};

inline SplitOperand operand(const Matrix& m, const void* facts) {
  const Facts at_row(m);
  return {static_cast<const float*>(m.data), m.is_km ? 1 : m.ld, m.is_km ? m.ld : 1,
          m.quads() && !m.is_km, at<float>(facts, at_row.undo), at<SplitRow>(facts, 0),
          at<int32_t>(facts, at_row.list)};
}

// One line behind the other in `memory`.
inline Split90Pieces pieces_in(const Matrix& m, void* memory, void* facts) {
  const Layout layout(m);
  return {memory, at<void>(memory, layout.low), layout.pitch, facts};
}

// As a split matrix has them.
inline Split90Pieces pieces_of(const Matrix& m, void* split) {
  return pieces_in(m, split, at<void>(split, Layout(m).facts));
}

// Columns that the pieces take where they lie among those of a matrix of floats with as many lines.
inline int64_t columns_among(const Matrix& m) { return round_up(m.length(), 8); }

// There, from `first` on, an element of that matrix whose lines are `ld` apart.
inline Split90Pieces pieces_among(const Matrix& m, float* first, int64_t ld, void* facts) {
  return {first, first + columns_among(m) / 2, 2 * ld, facts};
}

inline Split90Rows rows_of(const Matrix& m, const Split90Pieces& pieces) {
  const Facts at_row(m);
  return {static_cast<const float*>(m.data),
          m.ld,
          m.quads(),
          static_cast<int32_t>(m.rows),
          static_cast<int32_t>(m.k),
          static_cast<uint16_t*>(pieces.hi),
          static_cast<uint16_t*>(pieces.lo),
          pieces.pitch,
          at<float>(pieces.facts, at_row.undo),
          at<SplitRow>(pieces.facts, 0),
          at<int32_t>(pieces.facts, at_row.list)};
}

// Where K is split in parts: room for the pieces of one, the first of which is the longest, and for the
// facts of all of K and of each part.
struct PartedLayout {
  int64_t facts, parts, step, bytes;  // step: from a part's facts to the next's

  PartedLayout(const Matrix& m, int64_t depth, int64_t count) {
    const Matrix part{nullptr, m.rows, depth, 0, m.is_km};
    facts = Layout(part).facts;
    step = round_up(Facts(part).bytes, sizeof(SplitRow));
    parts = facts + step;
    bytes = parts + count * step;
  }
};

inline SplitParts parts_of(const PartedLayout& layout, const void* room) {
  return {at<SplitRow>(room, layout.parts), layout.step / int64_t{sizeof(SplitRow)}};
}

inline Split90Join join_of(const Matrix& m, const PartedLayout& layout, void* room) {
  const Facts at_row(m);
  void* const whole = at<void>(room, layout.facts);
  return {at<SplitRow>(room, layout.parts),
          m.is_km ? at<int32_t>(room, layout.parts + at_row.list) : nullptr,
          layout.step / int64_t{sizeof(SplitRow)},
          layout.step / int64_t{sizeof(int32_t)},
          at<float>(whole, at_row.undo),
          at<SplitRow>(whole, 0),
          at<int32_t>(whole, at_row.list),
          static_cast<int32_t>(m.rows)};
}

}  // namespace split90
}  // namespace fusepass
