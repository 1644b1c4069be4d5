// One call of the op: its tensors as given, and whether they are what it takes.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <tuple>

#include "binding_epilogue.h"

namespace fusepass {

using at::Tensor;
using at::TensorList;
using Bias = std::optional<Tensor>;
using Text = c10::string_view;
using Both = std::tuple<Tensor, Tensor>;

template <typename R>
using Signature = R(const Tensor&, const Tensor&, const Bias&, Text, TensorList, Text);

template <typename R>
c10::TypedOperatorHandle<Signature<R>> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature<R>>();
}

// One call's tensors, as given.
struct Call {
  const Tensor& x;
  const Tensor& weight;
  const Bias& bias;
  Text epilogue;
  TensorList operands;
  Text numerics;
  const Tensor* x_split = nullptr;  // what fusepass::split made of x, or null
  const Tensor* weight_split = nullptr;

  bool has_bias() const { return bias.has_value() && bias->defined(); }
  bool bitwise() const { return numerics == "bitwise"; }
};

inline bool supported_dtype(const Tensor& t) {
  const auto type = t.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16 || type == at::kDouble;
}

inline bool like(const Tensor& t, const Tensor& x) {
  return t.scalar_type() == x.scalar_type() && t.device() == x.device();
}

inline bool valid_operand(const Tensor& t, const Tensor& x) {
  return t.numel() == 1 && supported_dtype(t) && (t.device() == x.device() || t.is_cpu());
}

inline bool valid(const Call& c, const EpilogueInfo& info) {
  if (!c.bitwise() && c.numerics != "accurate") return false;
  if (!supported_dtype(c.x) || c.x.dim() < 1 || c.weight.dim() != 2) return false;
  if (c.weight.size(1) != c.x.size(-1) || !like(c.weight, c.x)) return false;
  if (c.has_bias() &&
      (c.bias->dim() != 1 || c.bias->size(0) != c.weight.size(0) || !like(*c.bias, c.x)))
    return false;
  if (static_cast<int32_t>(c.operands.size()) != info.num_operands) return false;
  for (const Tensor& operand : c.operands)
    if (!valid_operand(operand, c.x)) return false;
  return true;
}

// Raises Python's error, which names the argument and the remedy.
[[noreturn]] inline void reject(const Call& c) {
  static const auto op = find_op<void>("fusepass::_check_arguments");
  op.call(c.x, c.weight, c.bias, c.epilogue, c.operands, c.numerics);
  TORCH_CHECK(false, "fusepass::linear: the arguments are not valid");
}

}  // namespace fusepass
