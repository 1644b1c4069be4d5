// What the binding knows of an epilogue, by its text. Python reads the text (once a text), so that
// there is one grammar, and no number passes through a locale.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "hybrid.h"
#include "stage_codes.h"

namespace fusepass {

struct EpilogueInfo {
  std::string structure;  // the stages' names: what a fused kernel is compiled for
  int32_t num_stages = 0, num_scalars = 0, num_operands = 0;
  int32_t code[kMaxStages] = {};
  double value[kMaxScalars] = {};
  int32_t operand[kMaxScalars] = {};  // index of the run-time operand, or -1: `value` it is
};

inline EpilogueInfo describe_epilogue(std::string_view text) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_describe", "");
  torch::jit::Stack stack{c10::IValue(std::string(text))};
  op.callBoxed(stack);
  const auto codes = stack[1].toIntVector(), operands = stack[3].toIntVector();
  const auto values = stack[2].toDoubleVector();
  EpilogueInfo info;
  info.structure = stack[0].toStringRef();
  info.num_stages = static_cast<int32_t>(codes.size());
  info.num_scalars = static_cast<int32_t>(values.size());
  for (size_t s = 0; s < codes.size(); ++s) info.code[s] = static_cast<int32_t>(codes[s]);
  for (size_t i = 0; i < values.size(); ++i) {
    info.value[i] = values[i];
    info.operand[i] = static_cast<int32_t>(operands[i]);
    info.num_operands = std::max(info.num_operands, info.operand[i] + 1);
  }
  return info;
}

// The reference stays valid for the life of the process.
inline const EpilogueInfo& epilogue_info(std::string_view text) {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<EpilogueInfo>, std::less<>> known;
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(text);
    if (found != known.end()) return *found->second;
  }
  // Not under the lock: Python may be waited for here.
  auto info = std::make_unique<EpilogueInfo>(describe_epilogue(text));
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

inline DType dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return DType::kFloat32;
    case at::kHalf: return DType::kFloat16;
    case at::kBFloat16: return DType::kBFloat16;
    default: return DType::kFloat64;
  }
}

// The epilogue with this call's numbers. Operands on the device are left to the kernel: no sync.
inline Program make_program(const EpilogueInfo& info, at::TensorList operands) {
  Program program{};
  program.count = info.num_stages;
  std::copy_n(info.code, kMaxStages, program.code);
  for (int i = 0; i < info.num_scalars; ++i) {
    program.scalars.value[i] = info.value[i];
    if (info.operand[i] < 0) continue;
    const at::Tensor& operand = operands[info.operand[i]];
    if (operand.is_cuda()) {
      program.scalars.pointer[i] = operand.const_data_ptr();
      program.scalars.dtype[i] = static_cast<int32_t>(dtype_of(operand));
    } else {
      program.scalars.value[i] = read_cpu_scalar(operand);
    }
  }
  return program;
}

// Eager divides a CUDA tensor by a number of the host by multiplying with its reciprocal, taken in
// double and then rounded to the type it computes in. Bitwise numerics do the same.
inline void divide_as_eager(Program& program, DType dtype) {
  for (int s = 0, slot = 0; s < program.count; slot += stage_arity(program.code[s]), ++s) {
    if (program.code[s] != kDiv || program.scalars.pointer[slot] != nullptr) continue;
    double& value = program.scalars.value[slot];
    value = dtype == DType::kFloat64 ? 1.0 / value : static_cast<float>(1.0 / value);
    program.code[s] = kMul;
  }
}

}  // namespace fusepass
