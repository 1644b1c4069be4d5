// Host side of a product computed in parts: each is split and multiplied behind the one before it.
#pragma once
#include <algorithm>
#include <cstdint>

#include "gemm_sm90_f32_cut.h"
#include "gemm_sm90_f32_launch.h"
#include "gemm_sm90_f32_matrix.h"
#include "gemm_sm90_f32_outputs.h"

namespace fusepass {

// That part of the problem.
inline GemmProblem split90_part(const GemmProblem& p, const Split90Step& step) {
  GemmProblem part = p;
  part.m = step.rows;
  part.n = step.columns;
  part.x = static_cast<const float*>(p.x) + step.row * (p.x_is_km ? 1 : p.ldx);
  part.w[0] = static_cast<const float*>(p.w[0]) + step.column * (p.w_is_kn ? 1 : p.ldw[0]);
  if (p.bias[0] != nullptr) part.bias[0] = static_cast<const float*>(p.bias[0]) + step.column;
  for (Result& out : part.out) {
    if (out.data == nullptr) continue;
    const int64_t first = out.column_sum ? step.column : step.row * p.n + step.column;
    out.data = static_cast<char*>(out.data) + first * bytes_of(out.dtype);
  }
  const auto move = [&](Operand& o) {
    if (o.data == nullptr) return;
    if (step.rows < p.m) o.inner = step.rows;
    o.data = static_cast<const char*>(o.data) +
             (step.row * o.row_stride + step.column * o.column_stride) * bytes_of(o.dtype);
  };
  std::for_each(part.col, part.col + kMaxVectors, move);
  std::for_each(part.row, part.row + kMaxVectors, move);
  std::for_each(part.mat, part.mat + kMaxVectors, move);
  return part;
}

// Where the pieces of an operand of a part lie, whose facts are at `facts`; `own`: the call's memory.
inline Split90Pieces split90_pieces(const GemmProblem& p, const split90::Matrix& m,
                                    const Split90Place& place, void* own, void* facts) {
  switch (place.in) {
    case Split90In::kOwn: return split90::pieces_in(m, split90::at<void>(own, place.at), facts);
    case Split90In::kOutput:
      return split90::pieces_in(m, split90::at<void>(split90::widest(p)->data, place.at), facts);
    default:
      return split90::pieces_among(
          m, const_cast<float*>(static_cast<const float*>(p.x)) + place.at, p.ldx, facts);
  }
}

// All parts. `own`: steps.bytes of memory, and `partial` split90_partial_bytes, 16-byte aligned.
inline void split90_run(const GemmProblem& p, const Split90Steps& steps, const Split90Given& given,
                        void* own, void* partial, const Split90Kernels& kernels, CUstream stream,
                        int num_sms) {
  void* const w_facts = split90::at<void>(own, steps.w_facts);
  for (const Split90Step& step : steps.steps) {
    const GemmProblem part = split90_part(p, step);
    const Split90Pieces x =
        given.x_split != nullptr ? split90_x_pieces(p, given.x_split)
                                 : split90_pieces(p, split90::x_of(part), step.x, own, own);
    const Split90Pieces w =
        given.w_split != nullptr ? split90_w_pieces(p, given.w_split)
                                 : split90_pieces(p, split90::w_of(part), step.w, own, w_facts);
    split90_split(part, step.splits_x ? x : Split90Pieces{}, step.splits_w ? w : Split90Pieces{},
                  kernels, stream, num_sms);
    split90_gemm(part, Float32Whole(p, step.row), x, w, partial, kernels, stream, num_sms);
  }
}

}  // namespace fusepass
