// Columns, rows and matrices of a call as kernels find them: tensors of any strides.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>
#include <c10/util/accumulate.h>

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

// A col of a problem of `rows` rows: [n], or [..., n] of groups, one after another; nothing if these lie
// at more than one stride.
inline std::optional<Operand> place_columns(const Tensor& t, DType dtype, int64_t rows) {
  const auto groups = place_rows(t, dtype);
  const int64_t number = groups ? t.numel() / std::max<int64_t>(t.size(-1), 1) : 0;
  if (!groups || groups->inner < number) return std::nullopt;
  const int64_t inner = number > 1 && groups->row_stride != 0 ? rows / number : rows;
  return Operand{t.const_data_ptr(), dtype, std::max<int64_t>(inner, 1),
                 inner < rows ? groups->row_stride : 0, 0, t.stride(-1)};
}

// Fills the problem's col, row and mat. What has no place of this kind is copied, to `copies`.
inline void place_operands(const Call& c, const EpilogueInfo& info, GemmProblem* p,
                           c10::SmallVector<Tensor, 1>* copies) {
  const Tensor* next = c.operands.data() + info.num_scalars;
  const auto place = [&](Operand* to, const auto& placed) {
    std::optional<Operand> found = placed(*next);
    if (!found) {
      copies->push_back(next->contiguous());
      found = placed(copies->back());
    }
    *to = *found;
    ++next;
  };
  const auto sizes = c.x.sizes().slice(0, c.x.dim() - 1);
  const int64_t rows = c10::multiply_integers(sizes);
  for (int i = 0; i < info.num_cols; ++i) {
    place(&p->col[i], [&](const Tensor& t) { return place_columns(t, info.col[i], rows); });
  }
  for (int i = 0; i < info.num_rows; ++i) {
    place(&p->row[i], [&](const Tensor& t) { return place_rows(t, info.row[i]); });
  }
  for (int i = 0; i < info.num_mats; ++i) {
    p->mat_columns[i] = next->size(-1);
    place(&p->mat[i], [&](const Tensor& t) { return place_rows(t, info.mat[i]); });
  }
}

}  // namespace fusepass
