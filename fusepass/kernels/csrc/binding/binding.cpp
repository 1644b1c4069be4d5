// torch.ops.fusepass.linear, linear_with_preact, gemm, linears and bmm_widened for CUDA tensors. Python
// (fusepass/op/linear.py, gemm.py, linears.py, widened.py) defines the ops, checks what is wrong with bad arguments,
// plans and builds; it is asked once an epilogue and once a shape, so that a call costs microseconds.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "binding_call.h"
#include "binding_gradient.h"
#include "binding_linears.h"
#include "binding_run.h"
#include "binding_widened.h"

namespace fusepass {
namespace {

// --- linear and linear_with_preact ---------------------------------------------------------------

// Python's error names the argument and the remedy.
[[noreturn]] void reject(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                         TensorList operands, Text numerics) {
  static const auto op = find_op<void>("fusepass::_check_arguments");
  op.call(x, weight, bias, epilogue, operands, numerics);
  TORCH_CHECK(false, "fusepass::linear: the arguments are not valid");
}

struct Splits {
  const Tensor* x = nullptr;
  const Tensor* weight = nullptr;
  bool x_dies = false;
};

void run_linear(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                TensorList operands, Text numerics, bool with_preact, const Splits& splits,
                Tensor* outs) {
  const Call c{x,        {&weight, nullptr}, {given(bias), nullptr}, epilogue, operands,
               numerics, splits.x,           splits.weight,               splits.x_dies};
  const EpilogueInfo& info =
      epilogue_info({epilogue.data(), epilogue.size()}, site_dtype(x), with_preact);
  if (!info.is_linear(with_preact) || !valid(c, info)) {
    reject(x, weight, bias, epilogue, operands, numerics);
  }
  run(c, info, outs);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
              TensorList operands, Text numerics) {
  Tensor out;
  run_linear(x, weight, bias, epilogue, operands, numerics, false, {}, &out);
  return out;
}

Both linear_with_preact(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                        TensorList operands, Text numerics) {
  Tensor outs[2];
  run_linear(x, weight, bias, epilogue, operands, numerics, true, {}, outs);
  return {std::move(outs[0]), std::move(outs[1])};
}

// In "highest" x's memory may be written over, which nobody reads again.
Tensor linear_consuming(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                        TensorList operands) {
  Tensor out;
  run_linear(x, weight, bias, epilogue, operands, "accurate", false, {nullptr, nullptr, true}, &out);
  return out;
}

// The overloads without operands.
Tensor linear_constant(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                       Text numerics) {
  return linear(x, weight, bias, epilogue, {}, numerics);
}

Both linear_with_preact_constant(const Tensor& x, const Tensor& weight, const Bias& bias,
                                 Text epilogue, Text numerics) {
  return linear_with_preact(x, weight, bias, epilogue, {}, numerics);
}

// --- gemm ----------------------------------------------------------------------------------------

[[noreturn]] void reject_gemm(const Tensor& x, TensorList weights, const Biases& biases,
                              Text epilogue, TensorList operands, Text numerics) {
  static const auto op = find_gemm<void>("fusepass::_check_gemm");
  op.call(x, weights, biases, epilogue, operands, numerics);
  TORCH_CHECK(false, "fusepass::gemm: the arguments are not valid");
}

Outputs gemm(const Tensor& x, TensorList weights, const Biases& biases, Text epilogue,
             TensorList operands, Text numerics) {
  const EpilogueInfo& info = epilogue_info({epilogue.data(), epilogue.size()}, site_dtype(x));
  const size_t count = info.num_weights();
  if (weights.size() != count || biases.size() != count) {
    reject_gemm(x, weights, biases, epilogue, operands, numerics);
  }
  const Bias first = biases.get(0), second = count > 1 ? biases.get(1) : std::nullopt;
  const Call c{x,
               {&weights[0], count > 1 ? &weights[1] : nullptr},
               {given(first), given(second)},
               epilogue,
               operands,
               numerics};
  if (!valid(c, info)) reject_gemm(x, weights, biases, epilogue, operands, numerics);
  Outputs outs(info.num_outputs);
  run(c, info, outs.data());
  return outs;
}

Outputs gemm_constant(const Tensor& x, TensorList weights, const Biases& biases, Text epilogue,
                      Text numerics) {
  return gemm(x, weights, biases, epilogue, {}, numerics);
}

// --- operands split before -----------------------------------------------------------------------

Tensor split(const Tensor& matrix) {
  TORCH_CHECK_VALUE(matrix.dim() >= 2 && matrix.scalar_type() == at::kFloat,
                    "fusepass::split: matrix must be a float32 [..., K]");
  const DeviceScope scope(matrix);
  const int device = static_cast<int>(matrix.get_device());
  const auto placed = place(matrix);
  // As x of a GEMM with one column.
  GemmProblem p{};
  p.dtype = DType::kFloat32;
  p.k = matrix.size(-1);
  p.m = p.k == 0 ? 0 : matrix.numel() / p.k;
  p.n = 2;
  p.x_is_km = placed && placed->is_km;
  p.ldx = placed ? placed->ld : 0;
  p.ldw[0] = p.k;
  p.x = p.w[0] = matrix.const_data_ptr();
  Tensor pieces = split_memory(matrix, p.m, p.k, p.x_is_km);
  Split90Kernels kernels{};
  if (placed && split90_unsupported(p) == nullptr && load_split_kernels(device, &kernels)) {
    split90_split(p, split90_x_pieces(p, pieces.mutable_data_ptr()), {}, kernels, scope.stream,
                  num_sms_of(device));
    return pieces;
  }
  // Every row "not finite": should a kernel read this all the same, it sums in float64.
  return pieces.fill_(255);
}

Tensor linear_split(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                    TensorList operands, const std::optional<Tensor>& x_split,
                    const std::optional<Tensor>& weight_split) {
  const bool of_x = !x_split || (x.dim() >= 2 && is_split_of(*x_split, x));
  const bool of_weight = !weight_split || (weight.dim() == 2 && is_split_of(*weight_split, weight));
  TORCH_CHECK_VALUE(of_x && of_weight,
                    "fusepass::linear: a split must be what fusepass::split made of the operand");
  Tensor out;
  const Splits splits{x_split ? &*x_split : nullptr, weight_split ? &*weight_split : nullptr};
  run_linear(x, weight, bias, epilogue, operands, "accurate", false, splits, &out);
  return out;
}

// --- autograd: straight through, unless a gradient is wanted -------------------------------------

Both differentiable(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                    TensorList operands, Text numerics) {
  static const auto op = find_op<Both>("fusepass::_differentiable");
  return op.call(x, weight, bias, epilogue, operands, numerics);
}

Tensor linear_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                       const Bias& bias, Text epilogue, TensorList operands, Text numerics) {
  if (wants_gradient(x) || wants_gradient(weight) || wants_gradient(bias) ||
      wants_gradient(operands))
    return std::get<0>(differentiable(x, weight, bias, epilogue, operands, numerics));
  static const auto op = find_op<Tensor>("fusepass::linear");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, weight, bias, epilogue,
                       operands, numerics);
}

Both linear_with_preact_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                                 const Bias& bias, Text epilogue, TensorList operands,
                                 Text numerics) {
  if (wants_gradient(x) || wants_gradient(weight) || wants_gradient(bias) ||
      wants_gradient(operands))
    return differentiable(x, weight, bias, epilogue, operands, numerics);
  static const auto op = find_op<Both>("fusepass::linear_with_preact");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, weight, bias, epilogue,
                       operands, numerics);
}

Tensor linear_constant_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                                const Bias& bias, Text epilogue, Text numerics) {
  return linear_autograd(keys, x, weight, bias, epilogue, {}, numerics);
}

Both linear_with_preact_constant_autograd(c10::DispatchKeySet keys, const Tensor& x,
                                          const Tensor& weight, const Bias& bias, Text epilogue,
                                          Text numerics) {
  return linear_with_preact_autograd(keys, x, weight, bias, epilogue, {}, numerics);
}

Outputs gemm_autograd(c10::DispatchKeySet keys, const Tensor& x, TensorList weights,
                      const Biases& biases, Text epilogue, TensorList operands, Text numerics) {
  if (wants_gradient(x) || wants_gradient(weights) || wants_gradient(biases) ||
      wants_gradient(operands)) {
    static const auto op = find_gemm<Outputs>("fusepass::_differentiable_gemm");
    return op.call(x, weights, biases, epilogue, operands, numerics);
  }
  static const auto op = find_gemm<Outputs>("fusepass::gemm");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, weights, biases, epilogue,
                       operands, numerics);
}

Outputs gemm_constant_autograd(c10::DispatchKeySet keys, const Tensor& x, TensorList weights,
                               const Biases& biases, Text epilogue, Text numerics) {
  return gemm_autograd(keys, x, weights, biases, epilogue, {}, numerics);
}

Outputs linears_autograd(c10::DispatchKeySet keys, const Tensor& x, TensorList weights,
                         const Biases& biases) {
  if (wants_gradient(x) || wants_gradient(weights) || wants_gradient(biases)) {
    return ask_linears("fusepass::_linears_composed", x, weights, biases);
  }
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fusepass::linears", "")
                             .typed<LinearsSignature>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, weights, biases);
}

void forget() {
  forget_plans();
  forget_several();
}

Tensor bmm_widened_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& w,
                            double scale) {
  if (wants_gradient(x) || wants_gradient(w)) return compose_widened(x, w, scale);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fusepass::bmm_widened", "")
                             .typed<WidenedSignature>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, w, scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusepass, CUDA, m) {
  m.impl("linear", linear);
  m.impl("linear_with_preact", linear_with_preact);
  m.impl("linear.constant", linear_constant);
  m.impl("linear_with_preact.constant", linear_with_preact_constant);
  m.impl("linear.split", linear_split);
  m.impl("linear.consuming", linear_consuming);
  m.impl("split", split);
  m.impl("gemm", gemm);
  m.impl("gemm.constant", gemm_constant);
  m.impl("linears", linears);
  m.impl("bmm_widened", bmm_widened);
}

TORCH_LIBRARY_IMPL(fusepass, CompositeExplicitAutograd, m) { m.impl("_forget_plans", forget); }

TORCH_LIBRARY_IMPL(fusepass, AutogradCUDA, m) {
  m.impl("linear", linear_autograd);
  m.impl("linear_with_preact", linear_with_preact_autograd);
  m.impl("linear.constant", linear_constant_autograd);
  m.impl("linear_with_preact.constant", linear_with_preact_constant_autograd);
  m.impl("gemm", gemm_autograd);
  m.impl("gemm.constant", gemm_constant_autograd);
  m.impl("linears", linears_autograd);
  m.impl("bmm_widened", bmm_widened_autograd);
}

}  // namespace fusepass
