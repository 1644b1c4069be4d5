// One call of an op: its tensors as given, and whether they are what it takes.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <tuple>
#include <vector>

#include "binding_epilogue.h"

namespace fusepass {

using at::Tensor;
using at::TensorList;
using Bias = std::optional<Tensor>;
using Biases = c10::List<Bias>;
using Text = c10::string_view;
using Both = std::tuple<Tensor, Tensor>;
using Outputs = std::vector<Tensor>;

template <typename R>
using Signature = R(const Tensor&, const Tensor&, const Bias&, Text, TensorList, Text);
template <typename R>
using GemmSignature = R(const Tensor&, TensorList, const Biases&, Text, TensorList, Text);

template <typename R>
c10::TypedOperatorHandle<Signature<R>> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature<R>>();
}
template <typename R>
c10::TypedOperatorHandle<GemmSignature<R>> find_gemm(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<GemmSignature<R>>();
}

// One call's tensors, as given.
struct Call {
  const Tensor& x;
  const Tensor* weight[2];  // one, or two; else null
  const Tensor* bias[2];    // null where there is none
  Text epilogue;
  TensorList operands;
  Text numerics;
  const Tensor* x_split = nullptr;  // what fusepass::split made of x, or null
  const Tensor* weight_split = nullptr;
  bool x_dies = false;  // what is left in x's memory does not matter

  bool bitwise() const { return numerics == "bitwise"; }
  int64_t n() const { return weight[0]->size(0); }
};

inline const Tensor* given(const Bias& bias) {
  return bias.has_value() && bias->defined() ? &*bias : nullptr;
}

inline bool supported_dtype(const Tensor& t) {
  const auto type = t.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16 || type == at::kDouble;
}

// Whose program x's epilogue is; any, of a dtype that will be rejected.
inline DType site_dtype(const Tensor& x) {
  return supported_dtype(x) ? dtype_of(x) : DType::kFloat64;
}

inline bool like(const Tensor& t, const Tensor& x) {
  return t.scalar_type() == x.scalar_type() && t.device() == x.device();
}

inline bool valid_scalar(const Tensor& t, const Tensor& x) {
  return t.numel() == 1 && supported_dtype(t) && (t.device() == x.device() || t.is_cpu());
}

// Of x's leading dimensions and `last`, on its device.
inline bool valid_vector(const Tensor& t, const Tensor& x, DType dtype, int64_t last) {
  if (t.device() != x.device() || t.scalar_type() != scalar_type_of(dtype)) return false;
  const int64_t dims = x.dim();
  if (t.dim() != dims || t.size(-1) != last) return false;
  for (int64_t d = 0; d < dims - 1; ++d) {
    if (t.size(d) != x.size(d)) return false;
  }
  return true;
}

// A number a column, [n]; or, of each group of rows, with x's first sizes and ones for the others.
inline bool valid_columns(const Tensor& t, const Tensor& x, DType dtype, int64_t n) {
  if (t.device() != x.device() || t.scalar_type() != scalar_type_of(dtype)) return false;
  if (t.dim() < 1 || t.size(-1) != n) return false;
  if (t.dim() == 1) return true;
  if (t.dim() != x.dim()) return false;
  int64_t first = 0;
  for (int64_t d = 0; d < t.dim() - 1; ++d) {
    if (t.size(d) != 1) first = d + 1;
  }
  for (int64_t d = 0; d < first; ++d) {
    if (t.size(d) != x.size(d)) return false;
  }
  return true;
}

inline bool valid_operands(const Call& c, const EpilogueInfo& info) {
  if (static_cast<int32_t>(c.operands.size()) != info.num_operands()) return false;
  const int64_t n = c.n();
  const Tensor* next = c.operands.data();
  for (int i = 0; i < info.num_scalars; ++i) {
    if (!valid_scalar(*next++, c.x)) return false;
  }
  for (int i = 0; i < info.num_cols; ++i) {
    if (!valid_columns(*next++, c.x, info.col[i], n)) return false;
  }
  for (int i = 0; i < info.num_rows; ++i) {
    if (!valid_vector(*next++, c.x, info.row[i], 1)) return false;
  }
  if (info.head > 0 && n % info.head != 0) return false;
  for (int i = 0; i < info.num_mats; ++i, ++next) {
    const int64_t own = next->dim() > 0 ? next->size(-1) : 0;
    const bool divides = info.head > 0 && own > 0 && n % own == 0 &&
                         (own % info.head == 0 || info.head % own == 0);
    if (!valid_vector(*next, c.x, info.mat[i], divides ? own : n)) return false;
  }
  return true;
}

inline bool valid_weight(const Call& c, int i) {
  const Tensor &weight = *c.weight[i], *bias = c.bias[i];
  if (weight.dim() != 2 || weight.size(1) != c.x.size(-1) || !like(weight, c.x)) return false;
  return bias == nullptr ||
         (bias->dim() == 1 && bias->size(0) == weight.size(0) && like(*bias, c.x));
}

// Whether these are arguments of an op of `info`'s program, of which there are as many weights.
inline bool valid(const Call& c, const EpilogueInfo& info) {
  if (!c.bitwise() && c.numerics != "accurate") return false;
  if (!supported_dtype(c.x) || c.x.dim() < 1 || !valid_weight(c, 0)) return false;
  if (c.weight[1] != nullptr && (!valid_weight(c, 1) || c.weight[1]->size(0) != c.n())) return false;
  return valid_operands(c, info);
}

}  // namespace fusepass
