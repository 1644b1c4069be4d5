// torch.ops.fusepass.linear and linear_with_preact for CUDA tensors. Python (fusepass/op.py)
// defines the ops, checks what is wrong with bad arguments, plans and builds; it is asked once an
// epilogue and once a shape, so that a call costs microseconds.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/cuda/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/cuda/CUDAException.h>
#include <c10/util/DimVector.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "binding_call.h"
#include "binding_gemm.h"
#include "binding_pointwise.h"
#include "binding_split.h"

namespace fusepass {
namespace {

// --- the framework's GEMM, then the pointwise kernel ---------------------------------------------

// The epilogue by torch's own operators, where no kernel of it can be had.
Tensor compose(const Call& c, const Tensor& z) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fusepass::_compose", "")
                             .typed<Tensor(const Tensor&, Text, TensorList, Text)>();
  return op.call(z, c.epilogue, c.operands, c.numerics);
}

// Eager's own call of the GEMM. With `preact`, z is kept there and the result is a tensor of its own.
Tensor run_hybrid(const Call& c, const EpilogueInfo& info, const Scalars& scalars,
                  cudaStream_t stream, Tensor* preact) {
  const Tensor z = at::linear(c.x, c.weight, c.bias).contiguous();
  if (info.text.empty() && preact == nullptr) return z;
  if (preact) *preact = z;
  const PointwiseKernel kernel =
      pointwise_kernel(info, c.bitwise(), host_operands(info, scalars),
                       static_cast<int>(z.get_device()), stream);
  if (kernel.function == nullptr) return compose(c, z);
  const Tensor out = preact ? at::empty(z.sizes(), z.options()) : z;
  launch_pointwise(kernel, info, scalars, z.const_data_ptr(), out.mutable_data_ptr(), z.numel(),
                   stream);
  return out;
}

// --- the fused GEMM ------------------------------------------------------------------------------

// x and w as the GEMM wants them; nothing if their strides are not of its kind.
std::optional<GemmProblem> make_problem(const Call& c, const Scalars& scalars) {
  GemmProblem p{};
  if (c.weight.numel() == 0 || c.x.numel() == 0) return std::nullopt;
  if (c.has_bias() && !c.bias->is_contiguous()) return std::nullopt;
  const auto x = place(c.x), w = place(c.weight);
  if (!x || !w) return std::nullopt;
  p.m = x->rows, p.n = w->rows, p.k = x->k;
  p.ldx = x->ld, p.ldw[0] = w->ld;
  p.x_is_km = x->is_km, p.w_is_kn = w->is_km;
  p.x = c.x.const_data_ptr();
  p.w[0] = c.weight.const_data_ptr();
  p.bias[0] = c.has_bias() ? c.bias->const_data_ptr() : nullptr;
  p.dtype = dtype_of(c.x);
  p.scalars = scalars;
  return p;
}

// at::empty without its way through the dispatcher; every element will be written.
Tensor empty_output(const Call& c, int64_t n) {
  c10::DimVector shape(c.x.sizes().begin(), c.x.sizes().end());
  shape.back() = n;
  return Tensor(at::detail::empty_cuda(shape, c.x.scalar_type(), c.x.device(), std::nullopt));
}

// The whole op in one kernel; an undefined tensor if no such kernel takes this call.
Tensor run_fused(const Call& c, const EpilogueInfo& info, const Scalars& scalars,
                 cudaStream_t stream, Tensor* preact) {
  std::optional<GemmProblem> p = make_problem(c, scalars);
  if (!p) return {};
  // Any aligned address will do for the question, x's need not be; the real ones come with the
  // allocations.
  alignas(16) static char anywhere[16];
  p->out[0] = {anywhere, p->dtype};
  if (preact) p->out[1] = p->out[0];
  const GemmKernel kernel =
      fused_kernel(info, *p, static_cast<int>(c.x.get_device()), stream);
  if (!kernel.fused) return {};
  Tensor out = empty_output(c, p->n);
  p->out[0].data = out.mutable_data_ptr();
  if (preact) {
    *preact = empty_output(c, p->n);
    p->out[1].data = preact->mutable_data_ptr();
  }
  try {
    launch_fused(*p, kernel, c.x, c.x_split, c.weight_split, stream);
  } catch (const c10::OutOfMemoryError&) {  // for the split operands; nothing was launched yet
    if (preact) *preact = Tensor();
    return {};
  }
  return out;
}

// --- the ops -------------------------------------------------------------------------------------

Tensor run(const Call& c, Tensor* preact) {
  const EpilogueInfo& info = epilogue_info({c.epilogue.data(), c.epilogue.size()}, dtype_of(c.x));
  if (!valid(c, info)) reject(c);
  const DeviceScope scope(c.x);
  const Scalars scalars = make_scalars(info, c.operands);
  if (!c.bitwise()) {
    Tensor out = run_fused(c, info, scalars, scope.stream, preact);
    if (out.defined()) return out;
  }
  return run_hybrid(c, info, scalars, scope.stream, preact);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
              TensorList operands, Text numerics) {
  return run({x, weight, bias, epilogue, operands, numerics}, nullptr);
}

Both linear_with_preact(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                        TensorList operands, Text numerics) {
  Tensor z;
  Tensor out = run({x, weight, bias, epilogue, operands, numerics}, &z);
  return {std::move(out), std::move(z)};
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
    split90_split(p, pieces.mutable_data_ptr(), nullptr, kernels, scope.stream,
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
  return run({x, weight, bias, epilogue, operands, "accurate", x_split ? &*x_split : nullptr,
              weight_split ? &*weight_split : nullptr},
             nullptr);
}

// --- autograd: straight through, unless a gradient is wanted -------------------------------------

bool wants_gradient(const Tensor& x, const Tensor& weight, const Bias& bias, TensorList operands) {
  const auto wants = [backward = at::GradMode::is_enabled()](const Tensor& t) {
    // Forward-mode AD does not depend on grad mode.
    return (backward && t.requires_grad()) || t._fw_grad(0).defined();
  };
  if (wants(x) || wants(weight)) return true;
  if (bias.has_value() && bias->defined() && wants(*bias)) return true;
  return std::any_of(operands.begin(), operands.end(), wants);
}

Both differentiable(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                    TensorList operands, Text numerics) {
  static const auto op = find_op<Both>("fusepass::_differentiable");
  return op.call(x, weight, bias, epilogue, operands, numerics);
}

Tensor linear_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                       const Bias& bias, Text epilogue, TensorList operands, Text numerics) {
  if (wants_gradient(x, weight, bias, operands))
    return std::get<0>(differentiable(x, weight, bias, epilogue, operands, numerics));
  static const auto op = find_op<Tensor>("fusepass::linear");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, weight, bias, epilogue,
                       operands, numerics);
}

Both linear_with_preact_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                                 const Bias& bias, Text epilogue, TensorList operands,
                                 Text numerics) {
  if (wants_gradient(x, weight, bias, operands))
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

}  // namespace

TORCH_LIBRARY_IMPL(fusepass, CUDA, m) {
  m.impl("linear", linear);
  m.impl("linear_with_preact", linear_with_preact);
  m.impl("linear.constant", linear_constant);
  m.impl("linear_with_preact.constant", linear_with_preact_constant);
  m.impl("linear.split", linear_split);
  m.impl("split", split);
}

TORCH_LIBRARY_IMPL(fusepass, CompositeExplicitAutograd, m) { m.impl("_forget_plans", forget_plans); }

TORCH_LIBRARY_IMPL(fusepass, AutogradCUDA, m) {
  m.impl("linear", linear_autograd);
  m.impl("linear_with_preact", linear_with_preact_autograd);
  m.impl("linear.constant", linear_constant_autograd);
  m.impl("linear_with_preact.constant", linear_with_preact_constant_autograd);
}

}  // namespace fusepass
