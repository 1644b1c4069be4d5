// What the binding knows of an epilogue, by its text. Python reads the text (once a text and dtype),
// so that there is one grammar, and no number passes through a locale.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "gemm.h"

namespace fusepass {

// An epilogue at a dtype.
struct EpilogueInfo {
  std::string text;
  DType dtype;
  int32_t num_operands = 0;
  double number[kMaxNumbers] = {};  // of the program that a fused kernel computes
};

inline DType dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return DType::kFloat32;
    case at::kHalf: return DType::kFloat16;
    case at::kBFloat16: return DType::kBFloat16;
    default: return DType::kFloat64;
  }
}

inline EpilogueInfo describe_epilogue(std::string_view text, DType dtype) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_describe", "");
  torch::jit::Stack stack{c10::IValue(std::string(text)), static_cast<int64_t>(dtype)};
  op.callBoxed(stack);
  const auto numbers = stack[1].toDoubleVector();
  EpilogueInfo info;
  info.text = text;
  info.dtype = dtype;
  info.num_operands = static_cast<int32_t>(stack[0].toInt());
  TORCH_CHECK(numbers.size() <= kMaxNumbers && info.num_operands <= kMaxOperands,
              "fusepass: too many scalars: ", info.text);
  std::copy(numbers.begin(), numbers.end(), info.number);
  return info;
}

// The reference stays valid for the life of the process.
inline const EpilogueInfo& epilogue_info(std::string_view text, DType dtype) {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<EpilogueInfo>, std::less<>> by_dtype[4];
  auto& known = by_dtype[static_cast<int>(dtype)];
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(text);
    if (found != known.end()) return *found->second;
  }
  // Not under the lock: Python may be waited for here.
  auto info = std::make_unique<EpilogueInfo>(describe_epilogue(text, dtype));
  std::lock_guard<std::mutex> lock(mutex);
  return *known.emplace(std::string(text), std::move(info)).first->second;
}

inline double read_cpu_scalar(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return *t.const_data_ptr<float>();
    case at::kHalf: return static_cast<float>(*t.const_data_ptr<at::Half>());
    case at::kBFloat16: return static_cast<float>(*t.const_data_ptr<at::BFloat16>());
    default: return *t.const_data_ptr<double>();
  }
}

// This call's scalars, with the numbers of a fused kernel. Operands on the device are left to the
// kernel: no sync.
inline Scalars make_scalars(const EpilogueInfo& info, at::TensorList operands) {
  Scalars scalars{};
  std::copy_n(info.number, kMaxNumbers, scalars.number);
  for (int i = 0; i < info.num_operands; ++i) {
    const at::Tensor& operand = operands[i];
    if (operand.is_cuda()) {
      scalars.pointer[i] = operand.const_data_ptr();
      scalars.dtype[i] = static_cast<int32_t>(dtype_of(operand));
    } else {
      scalars.value[i] = read_cpu_scalar(operand);
    }
  }
  return scalars;
}

}  // namespace fusepass
