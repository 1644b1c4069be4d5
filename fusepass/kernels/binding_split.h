// Which fused kernel a problem goes to, and float32's own path: split x and w, then multiply.
#pragma once
#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include "binding_gemm.h"
#include "gemm_sm90_f32_launch.h"

namespace fusepass {

// torch's setting as it stands now, under all its names: set_float32_matmul_precision, allow_tf32,
// fp32_precision. It is what cuBLAS's own call reads.
inline bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

// Null if a fused kernel can run the problem, else the reason.
inline const char* fused_unsupported(const GemmProblem& p) {
  if (p.dtype != DType::kFloat32) return gemm90_unsupported(p);
  if (tf32_allowed()) return "TF32 is asked for";
  return split90_unsupported(p);
}

// The split of an operand: memory that the caching allocator hands out again once `stream` is past
// its use. `x` only says where.
inline at::Tensor split_memory(const at::Tensor& x, int64_t rows, int64_t k) {
  return at::empty({split90_bytes(rows, k)}, x.options().dtype(at::kByte));
}

inline void launch_fused(const GemmProblem& p, const GemmKernel& kernel, const at::Tensor& x,
                         CUstream stream) {
  if (p.dtype != DType::kFloat32) {
    gemm90_launch(p, kernel.config, kernel.kernel, stream, kernel.num_sms);
    return;
  }
  const at::Tensor x_pieces = split_memory(x, p.m, p.k), w_pieces = split_memory(x, p.n, p.k);
  split90_x(p, x_pieces.mutable_data_ptr(), kernel.split, stream);
  split90_w(p, w_pieces.mutable_data_ptr(), kernel.split, stream);
  split90_gemm(p, x_pieces.const_data_ptr(), w_pieces.const_data_ptr(), kernel.split, stream,
               kernel.num_sms);
}

}  // namespace fusepass
