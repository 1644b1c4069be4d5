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
#include "binding_split.h"

namespace fusepass {
namespace {

// --- the framework's GEMM, then the pointwise kernel ---------------------------------------------

// Eager's own call of the GEMM. With `preact`, z is kept there and the result is a tensor of its own.
Tensor run_hybrid(const Call& c, Program program, cudaStream_t stream, Tensor* preact) {
  const Tensor z = at::linear(c.x, c.weight, c.bias).contiguous();
  const Tensor out = preact ? at::empty(z.sizes(), z.options()) : z;
  if (preact) *preact = z;
  const DType dtype = dtype_of(z);
  // In float32 and float64 `accurate` rounds wherever eager does; its error is then eager's.
  const bool narrow = dtype == DType::kFloat16 || dtype == DType::kBFloat16;
  if (c.bitwise() || !narrow) divide_as_eager(program, dtype);
  C10_CUDA_CHECK(hybrid_launch(z.const_data_ptr(), out.mutable_data_ptr(), z.numel(), dtype,
                               c.bitwise(), program, stream));
  return out;
}

// --- the fused GEMM ------------------------------------------------------------------------------

// The distance between x's rows if they are evenly spaced and contiguous in K.
std::optional<int64_t> row_stride(const Tensor& x, int64_t m, int64_t k) {
  if (x.stride(-1) != 1 && k != 1) return std::nullopt;
  int64_t expected = -1, innermost = k;
  for (int64_t d = x.dim() - 2; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (expected < 0) innermost = expected = x.stride(d);
    if (x.stride(d) != expected) return std::nullopt;
    expected *= x.size(d);
  }
  return m == 1 || innermost >= k ? std::optional<int64_t>(innermost) : std::nullopt;
}

// Where x lies, its rows in whatever number of dimensions; false if its strides are not of the GEMM's
// kind.
bool place_x(const Tensor& x, GemmProblem* p) {
  p->x = x.const_data_ptr();
  if (const auto ldx = row_stride(x, p->m, p->k)) {
    p->ldx = *ldx;
    return true;
  }
  p->x_is_km = true;
  p->ldx = x.stride(-1);
  int64_t expected = 1;  // the rows of x lie one beside the other
  for (int64_t d = x.dim() - 2; d >= 0; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return p->ldx >= p->m;
}

// Where the weight [n, k] lies; false if its strides are not of the GEMM's kind.
bool place_weight(const Tensor& weight, GemmProblem* p) {
  p->w = weight.const_data_ptr();
  p->w_is_kn = weight.stride(1) != 1 || weight.stride(0) < p->k;
  p->ldw = weight.stride(p->w_is_kn ? 1 : 0);
  return !p->w_is_kn || (weight.stride(0) == 1 && p->ldw >= p->n);
}

// x and w as the GEMM wants them; nothing if their strides are not of its kind.
std::optional<GemmProblem> make_problem(const Call& c, const Scalars& scalars) {
  GemmProblem p{};
  p.k = c.x.size(-1);
  p.n = c.weight.size(0);
  if (p.n == 0 || p.k == 0 || c.x.numel() == 0) return std::nullopt;
  p.m = c.x.numel() / p.k;
  if (c.has_bias() && !c.bias->is_contiguous()) return std::nullopt;
  if (!place_x(c.x, &p) || !place_weight(c.weight, &p)) return std::nullopt;
  p.bias = c.has_bias() ? c.bias->const_data_ptr() : nullptr;
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
Tensor run_fused(const Call& c, const EpilogueInfo& info, const Program& program,
                 cudaStream_t stream, Tensor* preact) {
  std::optional<GemmProblem> p = make_problem(c, program.scalars);
  if (!p) return {};
  // Any aligned addresses will do for the question; the real ones come with the allocations.
  p->out = const_cast<void*>(p->x);
  p->preact = preact ? p->out : nullptr;
  const GemmKernel kernel =
      fused_kernel(&info, info.structure, *p, static_cast<int>(c.x.get_device()), stream);
  if (!kernel.fused) return {};
  Tensor out = empty_output(c, p->n);
  p->out = out.mutable_data_ptr();
  if (preact) {
    *preact = empty_output(c, p->n);
    p->preact = preact->mutable_data_ptr();
  }
  try {
    launch_fused(*p, kernel, c.x, c.split, stream);
  } catch (const c10::OutOfMemoryError&) {  // for the split operands; nothing was launched yet
    if (preact) *preact = Tensor();
    return {};
  }
  return out;
}

// --- the ops -------------------------------------------------------------------------------------

Tensor run(const Call& c, Tensor* preact) {
  const EpilogueInfo& info = epilogue_info({c.epilogue.data(), c.epilogue.size()});
  if (!valid(c, info)) reject(c);
  const DeviceScope scope(c.x);
  const Program program = make_program(info, c.operands);
  if (!c.bitwise()) {
    Tensor out = run_fused(c, info, program, scope.stream, preact);
    if (out.defined()) return out;
  }
  return run_hybrid(c, program, scope.stream, preact);
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

// --- a weight split before -----------------------------------------------------------------------

Tensor split_weight(const Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.scalar_type() == at::kFloat,
                    "fusepass::split_weight: weight must be a float32 [N, K]");
  const DeviceScope scope(weight);
  GemmProblem p{};
  p.dtype = DType::kFloat32;
  p.m = 1;
  p.n = weight.size(0);
  p.k = weight.size(1);
  const bool placed = place_weight(weight, &p);
  p.x = p.out = const_cast<void*>(p.w);  // as well aligned as the weight
  Tensor pieces = split_memory(weight, p.n, p.k);
  Split90Kernels kernels{};
  if (placed && split90_unsupported(p) == nullptr &&
      load_split_kernels(static_cast<int>(weight.get_device()), &kernels)) {
    split90_split(p, nullptr, pieces.mutable_data_ptr(), kernels, scope.stream);
    return pieces;
  }
  // Every row "not finite": should a kernel read this all the same, it sums in float64.
  return pieces.fill_(255);
}

Tensor linear_split(const Tensor& x, const Tensor& weight, const Bias& bias, Text epilogue,
                    TensorList operands, const Tensor& split) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && is_split_of(split, weight),
                    "fusepass::linear: split must be what fusepass::split_weight made of weight");
  return run({x, weight, bias, epilogue, operands, "accurate", &split}, nullptr);
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
  m.impl("split_weight", split_weight);
}

TORCH_LIBRARY_IMPL(fusepass, CompositeExplicitAutograd, m) { m.impl("_forget_plans", forget_plans); }

TORCH_LIBRARY_IMPL(fusepass, AutogradCUDA, m) {
  m.impl("linear", linear_autograd);
  m.impl("linear_with_preact", linear_with_preact_autograd);
  m.impl("linear.constant", linear_constant_autograd);
  m.impl("linear_with_preact.constant", linear_with_preact_constant_autograd);
}

}  // namespace fusepass
