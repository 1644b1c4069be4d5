// The pointwise kernel behind the framework's GEMM: Python builds it (once an epilogue), this keeps it.
#pragma once
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "binding_epilogue.h"
#include "binding_gemm.h"
#include "sm90/gemm_sm90_problem.h"
#include "pointwise/pointwise_args.h"

namespace fusepass {

struct PointwiseKernel {
  CUfunction function = nullptr;  // null: torch's own operators run instead
  CUfunction sums = nullptr;      // what adds up its partial sums
  bool tiles = false;             // pointwise_tiles.cu's
  double number[kMaxNumbers] = {};
};

// Bit i: operand $i is on the host.
inline uint32_t host_operands(const EpilogueInfo& info, const Scalars& scalars) {
  uint32_t host = 0;
  for (int i = 0; i < info.num_scalars; ++i) host |= uint32_t{scalars.pointer[i] == nullptr} << i;
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
  const auto numbers = stack[2].toDoubleVector();
  TORCH_CHECK(numbers.size() <= kMaxNumbers, "fusepass: too many numbers: ", info.text);
  std::copy(numbers.begin(), numbers.end(), found.number);
  found.tiles = stack[1].toBool();
  const auto load = [&](const char* name) { return kernel_function(load_kernel(path, name)); };
  const bool there = loads("epilogues run as torch's own operators", [&] {
    if (found.tiles) found.sums = load("fusepass_column_sums");
    found.function = load(found.tiles ? "fusepass_pointwise_tiles" : "fusepass_pointwise");
  });
  return there ? found : PointwiseKernel{};
}

// None while `stream` is capturing, if it is not known yet: torch's own operators then run.
inline PointwiseKernel pointwise_kernel(const EpilogueInfo& info, bool bitwise, uint32_t host,
                                        int device, cudaStream_t stream) {
  using Key = std::tuple<const EpilogueInfo*, bool, uint32_t, int>;
  static Known<std::map<Key, PointwiseKernel>> kernels;
  return kernels.get({&info, bitwise, host, device}, stream,
                     [&] { return load_pointwise(info, bitwise, host, device); });
}

template <typename T>
void fill_scalars(const PointwiseKernel& kernel, const EpilogueInfo& info, const Scalars& scalars,
                  PointwiseScalars<T>* to) {
  const int count = info.num_scalars;
  for (int i = 0; i < kMaxNumbers; ++i) to->number[i] = static_cast<T>(kernel.number[i]);
  for (int i = 0; i < count; ++i) to->value[i] = static_cast<T>(scalars.value[i]);
  // The reciprocals of kernels/pointwise.py, taken in double.
  for (int i = 0; i < count && count + i < kMaxOperands; ++i) {
    to->value[count + i] = static_cast<T>(1.0 / scalars.value[i]);
  }
}

inline int64_t element_bytes(DType dtype) {
  constexpr int64_t kSizes[] = {4, 2, 2, 8, 1};
  return kSizes[static_cast<int>(dtype)];
}

// What both kernels take of z, z1 and the `outs` that are computed, in the program's order.
inline void fill_pointwise(const PointwiseKernel& kernel, const EpilogueInfo& info,
                           const Scalars& scalars, const at::Tensor& z, const at::Tensor& z1,
                           const at::Tensor* outs, PointwiseArgs* args) {
  uintptr_t places = 0;
  const auto place = [&places](void* p) {
    places |= reinterpret_cast<uintptr_t>(p);
    return p;
  };
  args->z = place(z.mutable_data_ptr());
  args->z1 = z1.defined() ? place(z1.mutable_data_ptr()) : nullptr;
  int count = 0;
  for (int i = 0; i < info.num_outputs; ++i) {
    if (info.out[i].of_gemm != 0) continue;
    void* const to = outs[i].mutable_data_ptr();
    args->out[count++] = info.out[i].column_sum ? to : place(to);
  }
  args->numel = z.numel();
  args->aligned = places % 16 == 0;
  std::copy_n(scalars.pointer, kMaxOperands, args->pointer);
  std::copy_n(scalars.dtype, kMaxOperands, args->dtype);
  if (info.dtype == DType::kFloat64) {
    fill_scalars(kernel, info, scalars, &args->wide);
  } else {
    fill_scalars(kernel, info, scalars, &args->narrow);
  }
}

// Adds up `parts` partial sums of each column sum among `outs`.
inline void launch_sums(const PointwiseKernel& kernel, const EpilogueInfo& info,
                        const at::Tensor& partial, int64_t parts, int64_t n,
                        const at::Tensor* outs, cudaStream_t stream) {
  ColumnSumsArgs args{};
  args.partial = partial.const_data_ptr();
  args.parts = parts;
  args.n = n;
  int count = 0;
  for (int i = 0; i < info.num_outputs; ++i) {
    if (!info.out[i].column_sum) continue;
    args.out[count] = outs[i].mutable_data_ptr();
    args.dtype[count++] = static_cast<int32_t>(info.out[i].dtype);
  }
  launch_kernel(kernel.sums, count * ceil_div(n, kSumColumns), kSumColumns * kSumStrips, 0, stream,
                &args);
}

// The operands are `p`'s.
inline void launch_tiles(const PointwiseKernel& kernel, const EpilogueInfo& info,
                         const GemmProblem& p, const at::Tensor& z, const at::Tensor& z1,
                         const at::Tensor* outs, cudaStream_t stream) {
  PointwiseTileArgs args{};
  fill_pointwise(kernel, info, p.scalars, z, z1, outs, &args.all);
  args.n = z.size(-1);
  args.m = z.numel() / args.n;
  std::copy_n(p.col, kMaxVectors, args.col);
  std::copy_n(p.row, kMaxVectors, args.row);
  std::copy_n(p.mat, kMaxVectors, args.mat);
  std::copy_n(p.mat_columns, kMaxVectors, args.mat_columns);
  const int64_t warps = kPointwiseThreads / 32;
  const int64_t across = ceil_div(args.n, 32 * (kPointwiseLane / element_bytes(info.dtype)));
  // Many rows a block have few partial sums, and load columns seldom; but the device must be full.
  constexpr int64_t kEnough = 1024;
  const auto blocks = [&] { return ceil_div(args.m, warps * args.rows); };
  args.rows = info.num_sums > 0 ? 64 : 16;
  while (args.rows > 1 && blocks() * across < kEnough) args.rows /= 2;
  at::Tensor partial;
  if (info.num_sums > 0) {
    const auto dtype = info.dtype == DType::kFloat64 ? at::kDouble : at::kFloat;
    partial = at::empty({info.num_sums, blocks(), args.n}, z.options().dtype(dtype));
    args.partial = partial.mutable_data_ptr();
  }
  launch_kernel(kernel.function, blocks() * across, kPointwiseThreads, 0, stream, &args);
  if (info.num_sums > 0) launch_sums(kernel, info, partial, blocks(), args.n, outs, stream);
}

// Those of `outs` that no GEMM has written, of z and z1 (undefined unless it is read), contiguous
// [..., n]. An output may be z or z1.
inline void launch_pointwise(const PointwiseKernel& kernel, const EpilogueInfo& info,
                             const GemmProblem& p, const at::Tensor& z, const at::Tensor& z1,
                             const at::Tensor* outs, cudaStream_t stream) {
  if (z.numel() == 0) {
    for (int i = 0; i < info.num_outputs; ++i) {
      if (info.out[i].column_sum) outs[i].zero_();
    }
    return;
  }
  if (kernel.tiles) return launch_tiles(kernel, info, p, z, z1, outs, stream);
  PointwiseArgs args{};
  fill_pointwise(kernel, info, p.scalars, z, z1, outs, &args);
  const int64_t block = kPointwiseThreads * (kPointwiseBytes / element_bytes(info.dtype));
  launch_kernel(kernel.function, ceil_div(args.numel, block), kPointwiseThreads, 0, stream, &args);
}

}  // namespace fusepass
