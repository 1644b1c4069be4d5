// Columns, rows and matrices of a call as kernels find them: tensors of any strides.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <optional>

#include "binding_call.h"

namespace fusepass {

// A tensor [..., columns] as rows and columns of the problem; nothing if its rows lie at more than two
// strides.
inline std::optional<Operand> place_rows(const Tensor& t, DType dtype) {
  int64_t size[2] = {1, 1}, step[2] = {0, 0};
  int count = 0;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    // The dimension goes on where the one inside it ends; one that is expanded, in place.
    if (count > 0 && t.stride(d) == step[count - 1] * size[count - 1]) {
      size[count - 1] *= t.size(d);
      continue;
    }
    if (count == 2) return std::nullopt;
    size[count] = t.size(d);
    step[count++] = t.stride(d);
  }
  return Operand{t.const_data_ptr(), dtype,   std::max<int64_t>(size[0], 1),
                 step[1],            step[0], t.size(-1) == 1 ? 0 : t.stride(-1)};
}

// Fills the problem's col, row and mat. What has no place of this kind is copied, to `copies`.
inline void place_operands(const Call& c, const EpilogueInfo& info, GemmProblem* p,
                           c10::SmallVector<Tensor, 1>* copies) {
  const Tensor* next = c.operands.data() + info.num_scalars;
  for (int i = 0; i < info.num_cols; ++i, ++next) {
    p->col[i] = {next->const_data_ptr(), info.col[i], 1, 0, 0, next->stride(0)};
  }
  const auto place = [&](Operand* to, DType dtype) {
    std::optional<Operand> found = place_rows(*next, dtype);
    if (!found) {
      copies->push_back(next->contiguous());
      found = place_rows(copies->back(), dtype);
    }
    *to = *found;
    ++next;
  };
  for (int i = 0; i < info.num_rows; ++i) place(&p->row[i], info.row[i]);
  for (int i = 0; i < info.num_mats; ++i) place(&p->mat[i], info.mat[i]);
}

}  // namespace fusepass
