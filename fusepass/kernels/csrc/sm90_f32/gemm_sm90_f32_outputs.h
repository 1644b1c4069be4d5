// Host side of what float32's epilogue reads and writes besides z and scalars.
#pragma once
#include <algorithm>
#include <cstdint>

#include "gemm_sm90_f32_args.h"
#include "sm90/gemm_sm90_problem.h"

namespace fusepass {

inline int32_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 8;
    case DType::kFloat32: return 4;
    case DType::kBool: return 1;
    default: return 2;
  }
}

inline Float32Operand float32_operand(const Operand& o, int64_t m) {
  Float32Operand to{};
  if (o.data == nullptr) return to;
  to.data = o.data;
  to.outer_stride = o.outer_stride;
  to.row_stride = o.row_stride;
  to.column_stride = o.column_stride;
  to.inner = static_cast<int32_t>(std::min(o.inner, m));
  to.bytes = bytes_of(o.dtype);
  to.pairs = o.dtype == DType::kFloat32 && o.column_stride == 1 && o.row_stride % 2 == 0 &&
             o.outer_stride % 2 == 0 && reinterpret_cast<uintptr_t>(o.data) % 8 == 0;
  return to;
}

// Bits of the mats that TMA brings to a tile: a row begins at 16 bytes, and lies at one distance behind
// the one before it.
inline int32_t staged_mats(const GemmProblem& p) {
  constexpr int64_t kMost = int64_t{1} << 38;  // a stride is less than 2^40 bytes
  int32_t bits = 0;
  for (int i = 0; i < kMostStagedMats; ++i) {
    const Operand& o = p.mat[i];
    const bool rows = p.m == 1 || (o.inner >= p.m && o.row_stride >= p.n && o.row_stride % 4 == 0 &&
                                   o.row_stride < kMost);
    const bool whole = o.dtype == DType::kFloat32 && o.column_stride == 1 &&
                       reinterpret_cast<uintptr_t>(o.data) % 16 == 0;
    if (o.data != nullptr && rows && whole) bits |= 1 << i;
  }
  return bits;
}

// Bytes of the strips of all column sums of `p`.
inline int64_t float32_strips_bytes(const GemmProblem& p) {
  int64_t sums = 0;
  for (const Result& out : p.out) sums += out.data != nullptr && out.column_sum;
  return sums * ceil_div(p.m, kStripRows) * p.n * 4;
}

// Of what a problem is a part: its m and n, and at which of its rows the part begins.
struct Float32Whole {
  int64_t m, n, row;

  explicit Float32Whole(const GemmProblem& p, int64_t row = 0) : m(p.m), n(p.n), row(row) {}
  int64_t strips() const { return ceil_div(m, kStripRows); }
  bool ends_with(const GemmProblem& part) const { return row + part.m == m; }
};

// `strips`: float32_strips_bytes of the whole, where there are any.
inline void fill_outputs(const GemmProblem& p, void* strips, const Float32Whole& whole,
                         Float32Outputs* to) {
  float* next = static_cast<float*>(strips);
  for (int i = 0; i < kMaxOutputs; ++i) {
    to->out[i] = p.out[i].data;
    if (p.out[i].data == nullptr || !p.out[i].column_sum) continue;
    to->out[i] = next + whole.row / kStripRows * p.n;
    next += whole.strips() * p.n;
  }
  to->preact = static_cast<float*>(p.preact());
  for (int i = 0; i < kMaxVectors; ++i) {
    to->col[i] = float32_operand(p.col[i], p.m);
    to->row[i] = float32_operand(p.row[i], p.m);
    to->mat[i] = float32_operand(p.mat[i], p.m);
  }
  to->m = static_cast<int32_t>(p.m);
  to->n = static_cast<int32_t>(p.n);
  to->ld = static_cast<int32_t>(whole.n);
}

}  // namespace fusepass
