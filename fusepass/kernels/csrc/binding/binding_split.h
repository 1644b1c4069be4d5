// Which fused kernel a problem goes to, and float32's own path: split x and w, then multiply.
#pragma once
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "binding_gemm.h"
#include "sm90_f32/gemm_sm90_f32_cut.h"
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

// Splits those operands that were not split before (`x_split`, `w_split`: null), and multiplies.
inline void launch_split(const GemmProblem& p, const GemmKernel& kernel, const at::Tensor& x,
                         const at::Tensor* x_split, const at::Tensor* w_split, CUstream stream) {
  const auto memory = [&](const at::Tensor* split, int64_t rows, bool is_km) {
    return split != nullptr ? *split : split_memory(x, rows, p.k, is_km);
  };
  const int64_t size = split90_partial_bytes(p, kernel.split);
  const at::Tensor partial = size > 0 ? bytes(x, {size}) : at::Tensor();
  void* const sums = size > 0 ? partial.mutable_data_ptr() : nullptr;
  if (x_split == nullptr && w_split == nullptr && split90_has_parts(p, kernel.split)) {
    const at::Tensor room = bytes(x, {split90_parts_bytes(p, kernel.split)});
    split90_gemm_in_parts(p, room.mutable_data_ptr(), sums, kernel.split, stream, kernel.num_sms);
    return;
  }
  const bool x_is_split = x_split != nullptr, w_is_split = w_split != nullptr;
  const Split90Cut cut = split90_cut(p, x_is_split, w_is_split, kernel.split, kernel.num_sms);
  const at::Tensor x_pieces = memory(x_split, cut.rows, p.x_is_km);
  const at::Tensor w_pieces = memory(w_split, cut.columns, p.w_is_kn);
  for (int64_t row = 0, column = 0; row < p.m && column < p.n;) {
    const GemmProblem part = split90_part(p, row, column, cut);
    // The operand that is not cut is split with the first part of the other.
    split90_split(part, x_is_split || column > 0 ? nullptr : x_pieces.mutable_data_ptr(),
                  w_is_split || row > 0 ? nullptr : w_pieces.mutable_data_ptr(), kernel.split,
                  stream, kernel.num_sms);
    split90_gemm(part, Float32Whole(p, row), x_pieces.const_data_ptr(), w_pieces.const_data_ptr(),
                 sums, kernel.split, stream, kernel.num_sms);
    (cut.columns < p.n ? column : row) += cut.columns < p.n ? cut.columns : cut.rows;
  }
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

inline void launch_fused(const GemmProblem& p, const GemmKernel& kernel, const at::Tensor& x,
                         const at::Tensor* x_split, const at::Tensor* w_split, CUstream stream) {
  if (kernel.few.rows > 0) {
    few_rows_launch(p, kernel.few, kernel.kernel, stream, kernel.num_sms);
  } else if (p.dtype != DType::kFloat32) {
    launch_narrow(p, kernel, x, stream);
  } else if (kernel.kernel != nullptr) {
    tf32_launch(p, kernel.config, kernel.kernel, stream, kernel.num_sms);
  } else {
    launch_split(p, kernel, x, x_split, w_split, stream);
  }
}

}  // namespace fusepass
