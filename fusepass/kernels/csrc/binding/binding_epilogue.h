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
#include <vector>

#include "common/gemm.h"

namespace fusepass {

// One output of an epilogue.
struct OutputInfo {
  DType dtype;
  bool column_sum;
  int32_t of_gemm;  // 0: computed; 1, 2: z, z1 as the framework's GEMM leaves it
};

// An epilogue at a dtype.
struct EpilogueInfo {
  std::string text;
  // What a kernel is planned for: the text, of a chain without its second output where that is z.
  std::string planned;
  bool with_preact = false;
  DType dtype;
  bool reads_z1 = false;
  int32_t num_scalars = 0, num_cols = 0, num_rows = 0, num_mats = 0;
  DType col[kMaxVectors], row[kMaxVectors], mat[kMaxVectors];
  int32_t head = 0;  // columns of the heads whose halves are exchanged, or 0
  int32_t num_outputs = 0;
  OutputInfo out[kMaxOutputs];
  int32_t num_computed = 0, num_sums = 0;  // of the outputs that the pointwise kernel computes
  double number[kMaxNumbers] = {};         // of the program that a fused kernel computes

  int32_t num_operands() const { return num_scalars + num_cols + num_rows + num_mats; }
  int num_weights() const { return reads_z1 ? 2 : 1; }
  // Whether fusepass::linear, or with two outputs linear_with_preact, takes it.
  bool is_linear(bool preact) const {
    if (reads_z1 || head > 0 || num_operands() > num_scalars || num_outputs != (preact ? 2 : 1)) return false;
    return out[0].dtype == dtype && !out[0].column_sum;
  }
};

inline DType dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return DType::kFloat32;
    case at::kHalf: return DType::kFloat16;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kBool: return DType::kBool;
    default: return DType::kFloat64;
  }
}

inline at::ScalarType scalar_type_of(DType dtype) {
  constexpr at::ScalarType kTypes[] = {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble, at::kBool};
  return kTypes[static_cast<int>(dtype)];
}

// Asks Python: fusepass::_describe, in fusepass/op/linear.py.
inline EpilogueInfo describe_epilogue(std::string_view text, DType dtype, bool with_preact) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_describe", "");
  torch::jit::Stack stack{c10::IValue(std::string(text)), static_cast<int64_t>(dtype), with_preact};
  op.callBoxed(stack);
  const auto counts = stack[4].toIntVector(), operands = stack[5].toIntVector();
  const auto outputs = stack[6].toIntVector(), of_gemm = stack[8].toIntVector();
  const auto sums = stack[7].toBoolList();
  const auto numbers = stack[9].toDoubleVector();
  EpilogueInfo info;
  info.text = stack[0].toStringRef();
  info.planned = stack[1].toStringRef();
  info.with_preact = stack[2].toBool();
  info.reads_z1 = stack[3].toBool();
  info.dtype = dtype;
  info.num_scalars = static_cast<int32_t>(counts[0]);
  info.num_cols = static_cast<int32_t>(counts[1]);
  info.num_rows = static_cast<int32_t>(counts[2]);
  info.num_mats = static_cast<int32_t>(counts[3]);
  info.head = static_cast<int32_t>(stack[10].toInt());
  info.num_outputs = static_cast<int32_t>(outputs.size());
  TORCH_CHECK(numbers.size() <= kMaxNumbers && info.num_scalars <= kMaxOperands &&
                  std::max({info.num_cols, info.num_rows, info.num_mats}) <= kMaxVectors &&
                  info.num_outputs <= kMaxOutputs,
              "fusepass: a larger program than a kernel takes: ", info.text);
  std::copy(numbers.begin(), numbers.end(), info.number);
  auto next = operands.begin();
  const auto dtypes = [&next](DType* to, int32_t count) {
    for (int i = 0; i < count; ++i) to[i] = static_cast<DType>(*next++);
  };
  dtypes(info.col, info.num_cols), dtypes(info.row, info.num_rows), dtypes(info.mat, info.num_mats);
  for (int i = 0; i < info.num_outputs; ++i) {
    info.out[i] = {static_cast<DType>(outputs[i]), sums.get(i), static_cast<int32_t>(of_gemm[i])};
    info.num_computed += of_gemm[i] == 0;
    info.num_sums += sums.get(i);
  }
  return info;
}

// The reference stays valid for the life of the process. `with_preact`: z is one more output than the
// text says.
inline const EpilogueInfo& epilogue_info(std::string_view text, DType dtype,
                                         bool with_preact = false) {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<EpilogueInfo>, std::less<>> by_kind[2][4];
  auto& known = by_kind[with_preact][static_cast<int>(dtype)];
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(text);
    if (found != known.end()) return *found->second;
  }
  // Not under the lock: Python may be waited for here.
  auto info = std::make_unique<EpilogueInfo>(describe_epilogue(text, dtype, with_preact));
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
  for (int i = 0; i < info.num_scalars; ++i) {
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
