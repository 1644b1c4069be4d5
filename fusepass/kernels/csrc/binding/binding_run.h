// One call of an op, run: by a fused kernel, or by the framework's GEMM and the pointwise kernel.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/cuda/EmptyTensor.h>
#include <ATen/ops/linear.h>
#include <c10/util/DimVector.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <optional>
#include <utility>

#include "binding_call.h"
#include "binding_gemm.h"
#include "binding_operands.h"
#include "binding_pointwise.h"
#include "binding_split.h"

namespace fusepass {

// at::empty without its way through the dispatcher; every element will be written.
inline Tensor empty_output(const Call& c, const OutputInfo& out) {
  c10::DimVector shape;
  if (!out.column_sum) shape.append(c.x.sizes().begin(), c.x.sizes().end() - 1);
  shape.push_back(c.n());
  const auto dtype = scalar_type_of(out.dtype);
  return Tensor(at::detail::empty_cuda(shape, dtype, c.x.device(), std::nullopt));
}

// --- the framework's GEMM, then the pointwise kernel ---------------------------------------------

inline Tensor eager_gemm(const Call& c, int i) {
  const Bias bias = c.bias[i] != nullptr ? Bias(*c.bias[i]) : std::nullopt;
  return at::linear(c.x, *c.weight[i], bias).contiguous();
}

// The outputs by torch's own operators, where no kernel of them can be had.
inline void compose(const Call& c, const EpilogueInfo& info, const Tensor& z, const Tensor& z1,
                    Tensor* outs) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fusepass::_compose", "")
          .typed<Outputs(const Tensor&, const Bias&, Text, TensorList, Text)>();
  const Bias second = z1.defined() ? Bias(z1) : std::nullopt;
  Outputs found = op.call(z, second, Text(info.text.data(), info.text.size()), c.operands,
                          c.numerics);
  std::move(found.begin(), found.end(), outs);
}

// `p` has the operands and scalars.
inline void run_hybrid(const Call& c, const EpilogueInfo& info, const GemmProblem& p,
                       cudaStream_t stream, Tensor* outs) {
  const Tensor z = eager_gemm(c, 0), z1 = c.weight[1] != nullptr ? eager_gemm(c, 1) : Tensor();
  for (int i = 0; i < info.num_outputs; ++i) {
    if (info.out[i].of_gemm != 0) outs[i] = info.out[i].of_gemm == 1 ? z : z1;
  }
  if (info.num_computed == 0) return;
  PointwiseKernel kernel;
  // Eager's own sum has an order of its own.
  if (!c.bitwise() || info.num_sums == 0) {
    kernel = pointwise_kernel(info, c.bitwise(), host_operands(info, p.scalars),
                              static_cast<int>(z.get_device()), stream);
  }
  if (kernel.function == nullptr) return compose(c, info, z, z1, outs);
  const bool over_z =  // unless other threads' columns are read
      info.head == 0 && info.num_outputs == 1 && !info.out[0].column_sum && info.out[0].dtype == info.dtype;
  for (int i = 0; i < info.num_outputs; ++i) {
    if (info.out[i].of_gemm == 0) outs[i] = over_z ? z : empty_output(c, info.out[i]);
  }
  launch_pointwise(kernel, info, p, z, z1, outs, stream);
}

// --- the fused GEMM ------------------------------------------------------------------------------

// Puts x, the weights and biases into the problem; false if their strides are not of its kind.
inline bool place_gemm(const Call& c, GemmProblem* p) {
  const auto x = place(c.x);
  if (!x || c.x.numel() == 0) return false;
  p->x = c.x.const_data_ptr();
  p->m = x->rows, p->k = x->k, p->ldx = x->ld, p->x_is_km = x->is_km;
  for (int i = 0; i < 2 && c.weight[i] != nullptr; ++i) {
    const Tensor& weight = *c.weight[i];
    const auto w = place(weight);
    if (!w || weight.numel() == 0 || (i > 0 && w->is_km != p->w_is_kn)) return false;
    p->w[i] = weight.const_data_ptr();
    p->n = w->rows, p->ldw[i] = w->ld, p->w_is_kn = w->is_km;
    if (c.bias[i] == nullptr) continue;
    if (!c.bias[i]->is_contiguous()) return false;
    p->bias[i] = c.bias[i]->const_data_ptr();
  }
  return true;
}

// The whole op in one kernel; false if no such kernel takes this call.
inline bool run_fused(const Call& c, const EpilogueInfo& info, GemmProblem* p, cudaStream_t stream,
                      Tensor* outs) {
  if (!place_gemm(c, p)) return false;
  // Any aligned address will do for the question, x's need not be; the real ones come with the
  // allocations.
  alignas(16) static char anywhere[16];
  for (int i = 0; i < info.num_outputs; ++i) {
    p->out[i] = {anywhere, info.out[i].dtype, info.out[i].column_sum};
  }
  const GemmKernel kernel = fused_kernel(info, *p, static_cast<int>(c.x.get_device()), stream);
  if (!kernel.fused) return false;
  for (int i = 0; i < info.num_outputs; ++i) {
    outs[i] = empty_output(c, info.out[i]);
    p->out[i].data = outs[i].mutable_data_ptr();
  }
  try {
    launch_fused(*p, kernel, c, stream);
  } catch (const c10::OutOfMemoryError&) {  // for the split operands; nothing was launched yet
    std::fill_n(outs, info.num_outputs, Tensor());
    return false;
  }
  return true;
}

// --- either --------------------------------------------------------------------------------------

// A valid call's outputs.
inline void run(const Call& c, const EpilogueInfo& info, Tensor* outs) {
  const DeviceScope scope(c.x);
  GemmProblem p{};
  c10::SmallVector<Tensor, 1> copies;
  p.dtype = info.dtype;
  p.scalars = make_scalars(info, c.operands);
  place_operands(c, info, &p, &copies);
  if (!c.bitwise() && run_fused(c, info, &p, scope.stream, outs)) return;
  run_hybrid(c, info, p, scope.stream, outs);
}

}  // namespace fusepass
