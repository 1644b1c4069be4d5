// fusepass::linears: Linears of one x, in one launch where the plan has one, else one after the other.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <tuple>

#include "binding_call.h"
#include "binding_gemm.h"
#include "binding_run.h"
#include "sm90/gemm_sm90_several.h"

namespace fusepass {

// M, K, each weight's N or 0; dtype, device; whether weights are stored [K, N], and x [K, M].
using SeveralKey =
    std::tuple<int64_t, int64_t, std::array<int64_t, kMaxWeights>, int32_t, int32_t, bool, bool>;
using SeveralPlans = Known<std::map<SeveralKey, GemmKernel>>;

inline SeveralPlans& several_plans() {
  static SeveralPlans instance;
  return instance;
}

inline void forget_several() {
  std::lock_guard<std::mutex> lock(several_plans().mutex);
  several_plans().known.clear();
}

inline SeveralKey several_key(const GemmProblem* problems, size_t count, int device) {
  const GemmProblem& p = problems[0];
  std::array<int64_t, kMaxWeights> n{};
  for (size_t i = 0; i < count; ++i) n[i] = problems[i].n;
  return {p.m, p.k, n, static_cast<int32_t>(p.dtype), device, p.w_is_kn, p.x_is_km};
}

// Asks Python, which answers as fusepass::_plan does; "hybrid" stands for one after the other.
inline GemmKernel plan_several(const GemmProblem* problems, size_t count, int device) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_plan_linears", "");
  const GemmProblem& p = problems[0];
  c10::List<int64_t> n;
  for (size_t i = 0; i < count; ++i) n.push_back(problems[i].n);
  torch::jit::Stack stack{static_cast<int64_t>(p.dtype), p.m,       n,        p.k,
                          p.w_is_kn,                     p.x_is_km, static_cast<int64_t>(device)};
  op.callBoxed(stack);
  return kernel_of(stack[0].toStringRef(), device, "Linears of one input run one after the other");
}

using LinearCalls = c10::SmallVector<Call, kMaxWeights>;

// Whether the few-row kernels' strips can read the problems.
inline bool strips_take(const GemmProblem* problems, size_t count) {
  return std::all_of(problems, problems + count, [&](const GemmProblem& p) {
    return p.w_is_kn == problems[0].w_is_kn && few_rows_unsupported(p) == nullptr;
  });
}

// False if no one kernel takes the calls.
inline bool run_together(const LinearCalls& calls, const EpilogueInfo& info, cudaStream_t stream,
                         Tensor* outs) {
  const size_t count = calls.size();
  if (count < 2 || (info.dtype != DType::kFloat16 && info.dtype != DType::kBFloat16)) return false;
  alignas(16) static char anywhere[16];  // for the question, as in run_fused
  GemmProblem problems[kMaxWeights]{};
  for (size_t i = 0; i < count; ++i) {
    GemmProblem& p = problems[i];
    p.dtype = info.dtype;
    p.out[0] = {anywhere, info.dtype, false};
    if (!place_gemm(calls[i], &p)) return false;
  }
  const int number = static_cast<int>(count);
  const bool few = strips_take(problems, count);
  const bool tiles = gemm90_several_unsupported(problems, number) == nullptr;
  if (!few && !tiles) return false;
  const int device = static_cast<int>(calls[0].x.get_device());
  const GemmKernel kernel = several_plans().get(several_key(problems, count, device), stream, [&] {
    return plan_several(problems, count, device);
  });
  if (!kernel.fused || !(kernel.few.rows > 0 ? few : tiles)) return false;
  for (size_t i = 0; i < count; ++i) {
    outs[i] = empty_output(calls[i], info.out[0]);
    problems[i].out[0].data = outs[i].mutable_data_ptr();
  }
  if (kernel.few.rows > 0) {
    few_rows_launch_several(problems, number, kernel.few, kernel.kernel, stream);
  } else {
    gemm90_launch_several(problems, number, kernel.config, kernel.kernel, stream, kernel.num_sms);
  }
  return true;
}

// Valid calls' results.
inline void run_linears(const LinearCalls& calls, const EpilogueInfo& info, Tensor* outs) {
  const DeviceScope scope(calls[0].x);
  if (run_together(calls, info, scope.stream, outs)) return;
  for (size_t i = 0; i < calls.size(); ++i) run(calls[i], info, &outs[i]);
}

using LinearsSignature = Outputs(const Tensor&, TensorList, const Biases&);

// Python's function of the same arguments.
inline Outputs ask_linears(const char* name, const Tensor& x, TensorList weights, const Biases& biases) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<LinearsSignature>()
      .call(x, weights, biases);
}

inline Outputs linears(const Tensor& x, TensorList weights, const Biases& biases) {
  const size_t count = weights.size();
  bool right = count >= 1 && count <= kMaxWeights && biases.size() == count;
  const EpilogueInfo& info = epilogue_info("", site_dtype(x));
  std::array<Bias, kMaxWeights> given_biases;
  LinearCalls calls;
  for (size_t i = 0; right && i < count; ++i) {
    given_biases[i] = biases.get(i);
    calls.push_back(Call{x, {&weights[i], nullptr}, {given(given_biases[i]), nullptr}, "", {}, "accurate"});
    right = valid(calls.back(), info);
  }
  // Composed, it names the argument that is wrong.
  if (!right) return ask_linears("fusepass::_linears_composed", x, weights, biases);
  Outputs outs(count);
  run_linears(calls, info, outs.data());
  return outs;
}

}  // namespace fusepass
