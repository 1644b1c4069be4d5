// Which fused kernel a problem goes to, and float32's own path: split x and w, then multiply.
#pragma once
#include <ATen/ops/empty.h>

#include "binding_gemm.h"
#include "gemm_sm90_f32_launch.h"
#include "gemm_sm90_tf32_launch.h"

namespace fusepass {

// Null if a fused kernel can run the problem as `dtype` (plan_dtype), else the reason.
inline const char* fused_unsupported(const GemmProblem& p, int32_t dtype) {
  if (p.dtype != DType::kFloat32) return gemm90_unsupported(p);
  return dtype == kPlanTf32 ? tf32_unsupported(p) : split90_unsupported(p);
}

// The fused kernel of a problem, if there is one, under torch's precision at this moment.
inline GemmKernel fused_kernel(const void* epilogue, const std::string& structure,
                               const GemmProblem& p, int device, cudaStream_t stream) {
  const int32_t dtype = plan_dtype(p);
  if (fused_unsupported(p, dtype) != nullptr) return {};
  return find_kernel(epilogue, structure, p, dtype, device, stream);
}

// The split of an operand: memory that the caching allocator hands out again once `stream` is past
// its use. `x` only says where.
inline at::Tensor split_memory(const at::Tensor& x, int64_t rows, int64_t k) {
  return at::empty({rows, split90_pitch(rows, k)}, x.options().dtype(at::kByte));
}

// Whether `split` has the size of the split of this weight.
inline bool is_split_of(const at::Tensor& split, const at::Tensor& weight) {
  const int64_t n = weight.size(0), pitch = split90_pitch(n, weight.size(1));
  return split.scalar_type() == at::kByte && split.device() == weight.device() &&
         split.is_contiguous() && split.sizes() == at::IntArrayRef({n, pitch});
}

// `split` is the weight's, if it was split before, or null.
inline void launch_fused(const GemmProblem& p, const GemmKernel& kernel, const at::Tensor& x,
                         const at::Tensor* split, CUstream stream) {
  if (p.dtype != DType::kFloat32) {
    gemm90_launch(p, kernel.config, kernel.kernel, stream, kernel.num_sms);
    return;
  }
  if (kernel.kernel != nullptr) {  // TF32
    tf32_launch(p, kernel.config, kernel.kernel, stream, kernel.num_sms);
    return;
  }
  const at::Tensor x_pieces = split_memory(x, p.m, p.k);
  const at::Tensor w_pieces = split != nullptr ? *split : split_memory(x, p.n, p.k);
  void* const w_room = split != nullptr ? nullptr : w_pieces.mutable_data_ptr();
  split90_split(p, x_pieces.mutable_data_ptr(), w_room, kernel.split, stream);
  split90_gemm(p, x_pieces.const_data_ptr(), w_pieces.const_data_ptr(), kernel.split, stream,
               kernel.num_sms);
}

}  // namespace fusepass
