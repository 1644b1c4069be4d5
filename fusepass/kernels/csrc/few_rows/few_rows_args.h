// The one parameter of the few-row kernels, laid out the same for host and device.
#pragma once
#include <cstdint>

#include "common/gemm.h"

namespace fusepass {

// GemmProblem with its scalars in float32.
struct FewRowsArgs {
  const void* x;
  const void* w[2];
  const void* bias[2];  // or null
  Result out[kMaxOutputs];
  Operand col[kMaxVectors], row[kMaxVectors], mat[kMaxVectors];
  int64_t ldx, ldw[2];
  int32_t m, n, k;
  int32_t batches;  // of columns of the output, which blocks finish one after another
  float number[kMaxNumbers];
  float operand_value[kMaxOperands];
  const void* operand_pointer[kMaxOperands];
  int32_t operand_dtype[kMaxOperands];
};

}  // namespace fusepass
