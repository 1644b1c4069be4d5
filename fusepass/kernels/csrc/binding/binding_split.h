// Which fused kernel a problem goes to, and float32's own path: split x and w, then multiply.
#pragma once
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "binding_call.h"
#include "binding_gemm.h"
#include "sm90_f32/gemm_sm90_f32_parts.h"
#include "sm90_f32/gemm_sm90_f32_launch.h"
#include "sm90/gemm_sm90_tf32_launch.h"

namespace fusepass {

// Null if a fused kernel of tiles can run the problem as `dtype` (plan_dtype), else the reason.
inline const char* tiles_unsupported(const GemmProblem& p, int32_t dtype) {
  if (p.dtype != DType::kFloat32) return gemm90_unsupported(p);
  return dtype == kPlanTf32 ? tf32_unsupported(p) : split90_unsupported(p);
}

// The fused kernel of a problem, if there is one, under torch's precision at this moment.
inline GemmKernel fused_kernel(const EpilogueInfo& info, const GemmProblem& p, int device,
                               cudaStream_t stream) {
  const int32_t dtype = plan_dtype(p);
  const bool tiles = tiles_unsupported(p, dtype) == nullptr;
  const bool few = few_rows_unsupported(p) == nullptr;
  if (!tiles && !few) return {};
  const GemmKernel kernel = find_kernel(info, p, dtype, device, stream);
  // The plan knows the sizes; what lies where and how aligned is not its business.
  return (kernel.few.rows > 0 ? few : tiles) ? kernel : GemmKernel{};
}

// How a matrix of any number of dimensions, rows of k last, is stored.
struct Placed {
  int64_t rows, k, ld;  // ld: between rows, or, if is_km, between one K and the next
  bool is_km;
};

// Nothing if its strides are not of the GEMM's kind. presplit.py reads strides the same way.
inline std::optional<Placed> place(const at::Tensor& t) {
  const int64_t k = t.size(-1), rows = k == 0 ? 0 : t.numel() / k;
  // Evenly spaced rows, contiguous in K?
  int64_t expected = -1, ld = k;
  bool even = t.stride(-1) == 1 || k == 1;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (expected < 0) ld = expected = t.stride(d);
    even &= t.stride(d) == expected;
    expected *= t.size(d);
  }
  if (even && (rows == 1 || ld >= k)) return Placed{rows, k, ld, false};
  // Or rows beside one another?
  int64_t beside = 1;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) != 1 && t.stride(d) != beside) return std::nullopt;
    beside *= t.size(d);
  }
  if (t.stride(-1) < rows) return std::nullopt;
  return Placed{rows, k, t.stride(-1), true};
}

// The sizes of the split of a matrix: its lines in memory, and the bytes of each.
inline std::pair<int64_t, int64_t> split_sizes(int64_t rows, int64_t k, bool is_km) {
  return {is_km ? k : rows, split90_bytes_of_line(rows, k, is_km)};
}

// Memory that the caching allocator hands out again once the stream is past its use. `like` only
// says where.
inline at::Tensor bytes(const at::Tensor& like, at::IntArrayRef sizes) {
  return at::empty(sizes, like.options().dtype(at::kByte));
}

inline at::Tensor split_memory(const at::Tensor& like, int64_t rows, int64_t k, bool is_km) {
  const auto [lines, each] = split_sizes(rows, k, is_km);
  return bytes(like, {lines, each});
}

// Whether `split` has the size of the split of this matrix.
inline bool is_split_of(const at::Tensor& split, const at::Tensor& matrix) {
  const int64_t k = matrix.size(-1);
  const auto placed = place(matrix);
  const auto [lines, each] =
      split_sizes(k == 0 ? 0 : matrix.numel() / k, k, placed && placed->is_km);
  return split.scalar_type() == at::kByte && split.device() == matrix.device() &&
         split.is_contiguous() && split.sizes() == at::IntArrayRef({lines, each});
}

// Splits those operands that were not split before, and multiplies.
inline void launch_split(const GemmProblem& p, const GemmKernel& kernel, const Call& c,
                         CUstream stream) {
  const int64_t size = split90_partial_bytes(p, kernel.split);
  const at::Tensor partial = size > 0 ? bytes(c.x, {size}) : at::Tensor();
  void* const sums = size > 0 ? partial.mutable_data_ptr() : nullptr;
  if (c.x_split == nullptr && c.weight_split == nullptr && split90_has_parts(p, kernel.split)) {
    const at::Tensor room = bytes(c.x, {split90_parts_bytes(p, kernel.split)});
    split90_gemm_in_parts(p, room.mutable_data_ptr(), sums, kernel.split, stream, kernel.num_sms);
    return;
  }
  const auto memory = [](const at::Tensor* split) {
    return split == nullptr ? nullptr : const_cast<void*>(split->const_data_ptr());
  };
  const Split90Given given{memory(c.x_split), memory(c.weight_split), c.x_dies};
  const Split90Steps steps = split90_steps(p, given, kernel.split, kernel.num_sms);
  const at::Tensor own = bytes(c.x, {steps.bytes});
  split90_run(p, steps, given, own.mutable_data_ptr(), sums, kernel.split, stream, kernel.num_sms);
}

// The 16-bit kernel, and the one behind it where columns are summed.
inline void launch_narrow(const GemmProblem& p, const GemmKernel& kernel, const at::Tensor& x,
                          CUstream stream) {
  const int64_t size = gemm90_partial_bytes(p, kernel.config);
  const at::Tensor partial = size > 0 ? bytes(x, {size}) : at::Tensor();
  void* const sums = size > 0 ? partial.mutable_data_ptr() : nullptr;
  gemm90_launch(p, kernel.config, kernel.kernel, stream, kernel.num_sms, sums);
  if (size > 0) gemm90_launch_sums(p, kernel.config, kernel.sums, stream, sums);
}

inline void launch_fused(const GemmProblem& p, const GemmKernel& kernel, const Call& c,
                         CUstream stream) {
  if (kernel.few.rows > 0) {
    few_rows_launch(p, kernel.few, kernel.kernel, stream, kernel.num_sms);
  } else if (p.dtype != DType::kFloat32) {
    launch_narrow(p, kernel, c.x, stream);
  } else if (kernel.kernel != nullptr) {
    tf32_launch(p, kernel.config, kernel.kernel, stream, kernel.num_sms);
  } else {
    launch_split(p, kernel, c, stream);
  }
}

}  // namespace fusepass
