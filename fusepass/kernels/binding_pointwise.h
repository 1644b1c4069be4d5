// The pointwise kernel behind the framework's GEMM: Python builds it (once an epilogue), this keeps it.
#pragma once
#include <c10/cuda/CUDAException.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "binding_epilogue.h"
#include "binding_gemm.h"
#include "pointwise_args.h"

namespace fusepass {

struct PointwiseKernel {
  CUfunction function = nullptr;  // null: torch's own operators run instead
  double number[kMaxNumbers] = {};
};

// Bit i: operand $i is on the host.
inline uint32_t host_operands(const EpilogueInfo& info, const Scalars& scalars) {
  uint32_t host = 0;
  for (int i = 0; i < info.num_operands; ++i) host |= uint32_t{scalars.pointer[i] == nullptr} << i;
  return host;
}

inline PointwiseKernel load_pointwise(const EpilogueInfo& info, bool bitwise, uint32_t host,
                                      int device) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_pointwise", "");
  torch::jit::Stack stack{c10::IValue(info.text), static_cast<int64_t>(info.dtype), bitwise,
                          static_cast<int64_t>(host), static_cast<int64_t>(device)};
  op.callBoxed(stack);
  const std::string& path = stack[0].toStringRef();
  PointwiseKernel found;
  if (path.empty()) return found;
  const auto numbers = stack[1].toDoubleVector();
  TORCH_CHECK(numbers.size() <= kMaxNumbers, "fusepass: too many numbers: ", info.text);
  std::copy(numbers.begin(), numbers.end(), found.number);
  found.function = kernel_function(load_kernel(path, "fusepass_pointwise"));
  return found;
}

// Nothing is built or loaded while `stream` is capturing: torch's own operators then run, this once.
inline PointwiseKernel pointwise_kernel(const EpilogueInfo& info, bool bitwise, uint32_t host,
                                        int device, cudaStream_t stream) {
  using Key = std::tuple<const EpilogueInfo*, bool, uint32_t, int>;
  static std::mutex mutex;
  static std::map<Key, PointwiseKernel> known;
  const Key key{&info, bitwise, host, device};
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
  }
  cudaStreamCaptureStatus status{};
  C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  if (status != cudaStreamCaptureStatusNone) return {};
  // Not under the lock: Python is waited for, and it may compile.
  const PointwiseKernel kernel = load_pointwise(info, bitwise, host, device);
  std::lock_guard<std::mutex> lock(mutex);
  known.emplace(key, kernel);
  return kernel;
}

template <typename T>
void fill_scalars(const PointwiseKernel& kernel, const EpilogueInfo& info, const Scalars& scalars,
                  PointwiseScalars<T>* to) {
  const int count = info.num_operands;
  for (int i = 0; i < kMaxNumbers; ++i) to->number[i] = static_cast<T>(kernel.number[i]);
  for (int i = 0; i < count; ++i) to->value[i] = static_cast<T>(scalars.value[i]);
  // The reciprocals of kernels/pointwise.py, taken in double.
  for (int i = 0; i < count && count + i < kMaxOperands; ++i) {
    to->value[count + i] = static_cast<T>(1.0 / scalars.value[i]);
  }
}

// out[i] = epilogue(z[i]) for i < numel; out may be z. Any alignment.
inline void launch_pointwise(const PointwiseKernel& kernel, const EpilogueInfo& info,
                             const Scalars& scalars, const void* z, void* out, int64_t numel,
                             cudaStream_t stream) {
  if (numel == 0) return;
  PointwiseArgs args{};
  args.z = z;
  args.out = out;
  args.numel = numel;
  args.aligned = ((reinterpret_cast<uintptr_t>(z) | reinterpret_cast<uintptr_t>(out)) & 15) == 0;
  std::copy_n(scalars.pointer, kMaxOperands, args.pointer);
  std::copy_n(scalars.dtype, kMaxOperands, args.dtype);
  int64_t size = 2;  // of an element
  if (info.dtype == DType::kFloat64) {
    fill_scalars(kernel, info, scalars, &args.wide);
    size = 8;
  } else {
    fill_scalars(kernel, info, scalars, &args.narrow);
    if (info.dtype == DType::kFloat32) size = 4;
  }
  const int64_t block = kPointwiseThreads * (kPointwiseBytes / size);
  launch_kernel(kernel.function, (numel + block - 1) / block, kPointwiseThreads, 0, stream, &args);
}

}  // namespace fusepass
