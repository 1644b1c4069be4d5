// Whether a gradient is wanted of what an op computes: else it goes straight through autograd.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "binding_call.h"

namespace fusepass {

inline bool wants_gradient(const Tensor& t) {
  // Forward-mode AD does not depend on grad mode.
  return (at::GradMode::is_enabled() && t.requires_grad()) || t._fw_grad(0).defined();
}
inline bool wants_gradient(const Bias& bias) {
  return bias.has_value() && bias->defined() && wants_gradient(*bias);
}
inline bool wants_gradient(TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const Tensor& t) { return wants_gradient(t); });
}
inline bool wants_gradient(const Biases& biases) {
  for (size_t i = 0; i < biases.size(); ++i) {
    if (wants_gradient(biases.get(i))) return true;
  }
  return false;
}

}  // namespace fusepass
