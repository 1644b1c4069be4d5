// The pointwise kernel that follows the framework's GEMM, as the binding sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "gemm.h"

namespace fusepass {

// An epilogue as the pointwise kernel runs it: one build serves all of them.
struct Program {
  int32_t count;
  int32_t code[kMaxStages];  // stage_codes.h: Stage
  Scalars scalars;           // in stage order
};

// out[i] = epilogue(z[i]) for i < numel; out may be z. Any alignment. With `rounded`, every stage's
// result is rounded to `dtype`, as eager's operators do; without, only the last one.
cudaError_t hybrid_launch(const void* z, void* out, int64_t numel, DType dtype, bool rounded,
                          const Program& program, cudaStream_t stream);

}  // namespace fusepass
