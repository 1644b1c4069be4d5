// fusepass::bmm_widened: which calls its kernel takes, and its launch.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/cuda/EmptyTensor.h>
#include <c10/util/DimVector.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <map>
#include <optional>

#include "batches/widened_args.h"
#include "binding_gemm.h"
#include "sm90/gemm_sm90_problem.h"

namespace fusepass {

constexpr int64_t kWidenedMostK = 256;  // x's rows stay in shared memory

struct WidenedKernel {
  CUfunction function = nullptr;  // null: torch's own product runs instead
  int shared_bytes = 0;           // at most
  int num_sms = 0;
};

inline WidenedKernel load_widened(int device) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_widened_kernel", "");
  torch::jit::Stack stack{c10::IValue(static_cast<int64_t>(device))};
  op.callBoxed(stack);
  const std::string& path = stack[0].toStringRef();
  if (path.empty()) return {};
  WidenedKernel found;
  int most = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  found.shared_bytes = std::min(most, widened_shared_bytes(kWidenedMostK));
  found.num_sms = num_sms_of(device);
  const bool there = loads("products of widened batches are torch's own", [&] {
    FUSEPASS_DRIVER(cuFuncSetAttribute);
    found.function = kernel_function(load_kernel(path, "fusepass_widened"), found.shared_bytes);
    // Blocks beside one another hide each other's loads: as many as have room in shared memory.
    check_result(cuFuncSetAttribute_(found.function,
                                     CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
                 "cuFuncSetAttribute");
  });
  return there ? found : WidenedKernel{};
}

// None while `stream` is capturing, if it is not known yet: torch's own product then runs.
inline WidenedKernel widened_kernel(int device, cudaStream_t stream) {
  static Known<std::map<int, WidenedKernel>> kernels;
  return kernels.get(device, stream, [&] { return load_widened(device); });
}

// The matrices of a tensor [..., rows, K] of up to four dimensions, as they lie; nothing where a row's
// copies of 16 bytes are not whole or not aligned.
inline std::optional<WidenedMatrices> place_matrices(const at::Tensor& t) {
  constexpr int64_t kUnit = 8;
  const int64_t dims = t.dim(), k = t.size(-1);
  const auto stride = [&](int64_t d) {  // of dimension d of four
    const int64_t at = d + dims - 4;
    return at < 0 || t.size(at) == 1 ? 0 : t.stride(at);
  };
  const void* const data = t.const_data_ptr();
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && k % kUnit == 0 &&
                       stride(0) % kUnit == 0 && stride(1) % kUnit == 0 && stride(2) % kUnit == 0;
  if (dims > 4 || t.stride(-1) != 1 || !aligned) return std::nullopt;
  return WidenedMatrices{data, stride(0), stride(1), stride(2)};
}

// x and w at two batch dimensions, where they are no views of it in one copy of theirs.
inline at::Tensor as_four(const at::Tensor& t) {
  return t.dim() > 4 ? t.flatten(0, t.dim() - 4) : t;
}

inline std::optional<WidenedArgs> widened_args(const at::Tensor& x, const at::Tensor& w,
                                               double scale, const WidenedKernel& kernel) {
  const auto size = [&](int64_t d) { return x.dim() < d ? 1 : x.size(-d); };
  const int64_t m = x.size(-2), n = w.size(-2), k = x.size(-1);
  constexpr int64_t kMost = int64_t{1} << 30;
  if (k < 1 || k > kWidenedMostK || m > kMost || n > kMost || size(3) > kMost ||
      widened_shared_bytes(static_cast<int>(k)) > kernel.shared_bytes)
    return std::nullopt;
  const auto x_at = place_matrices(x), w_at = place_matrices(w);
  if (!x_at || !w_at) return std::nullopt;
  WidenedArgs args{};
  args.x = *x_at, args.w = *w_at;
  args.m = static_cast<int32_t>(m), args.n = static_cast<int32_t>(n);
  args.k = static_cast<int32_t>(k), args.inner = static_cast<int32_t>(size(3));
  args.pitch = widened_pitch(args.k);
  args.scale = static_cast<float>(scale);
  args.scale_rest = static_cast<float>(scale - static_cast<double>(args.scale));
  args.root = static_cast<float>(std::sqrt(std::abs(scale)));
  const int64_t tiles = ceil_div(n, kWidenedColumns), rows = ceil_div(m, kWidenedRows);
  // Many tiles a block read x seldom; but each multiprocessor must have some blocks, several times.
  constexpr int64_t kEnough = 32;
  const int64_t wide = size(4) * size(3) * rows;
  int64_t each = std::min<int64_t>(tiles, 8);
  while (each > 1 && wide * ceil_div(tiles, each) < kEnough * kernel.num_sms) each = (each + 1) / 2;
  const int64_t across = ceil_div(tiles, each);
  if (wide * across > INT_MAX) return std::nullopt;
  args.tiles = static_cast<int32_t>(each);
  args.row_blocks = static_cast<int32_t>(rows), args.column_blocks = static_cast<int32_t>(across);
  return args;
}

inline bool valid_widened(const at::Tensor& x, const at::Tensor& w, double scale) {
  const auto type = x.scalar_type();
  if ((type != at::kHalf && type != at::kBFloat16) || w.scalar_type() != type) return false;
  if (x.dim() < 2 || w.dim() != x.dim() || w.device() != x.device()) return false;
  const auto leading = x.sizes().slice(0, x.dim() - 2);
  return w.sizes().slice(0, x.dim() - 2) == leading && w.size(-1) == x.size(-1) &&
         std::isfinite(scale);
}

using WidenedSignature = at::Tensor(const at::Tensor&, const at::Tensor&, double);

// By torch's own operators, or its error where arguments are wrong.
inline at::Tensor compose_widened(const at::Tensor& x, const at::Tensor& w, double scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fusepass::_bmm_widened_composed", "")
                             .typed<WidenedSignature>();
  return op.call(x, w, scale);
}

inline at::Tensor bmm_widened(const at::Tensor& x, const at::Tensor& w, double scale) {
  if (!valid_widened(x, w, scale)) return compose_widened(x, w, scale);
  const DeviceScope scope(x);
  c10::DimVector shape(x.sizes().begin(), x.sizes().end() - 1);
  shape.push_back(w.size(-2));
  at::Tensor out(at::detail::empty_cuda(shape, at::kFloat, x.device(), std::nullopt));
  if (out.numel() == 0) return out;
  if (x.scalar_type() != at::kBFloat16) return compose_widened(x, w, scale);
  const WidenedKernel kernel = widened_kernel(static_cast<int>(x.get_device()), scope.stream);
  if (kernel.function == nullptr) return compose_widened(x, w, scale);
  const at::Tensor four_x = as_four(x), four_w = as_four(w);
  auto args = widened_args(four_x, four_w, scale, kernel);
  if (!args) return compose_widened(x, w, scale);
  args->out = static_cast<float*>(out.mutable_data_ptr());
  const int64_t blocks =
      out.numel() / (int64_t{args->m} * args->n) * args->row_blocks * args->column_blocks;
  launch_kernel(kernel.function, blocks, kWidenedThreads, widened_shared_bytes(args->k),
                scope.stream, &*args);
  return out;
}

}  // namespace fusepass
