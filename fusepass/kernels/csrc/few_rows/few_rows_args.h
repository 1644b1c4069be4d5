// The one parameter of the few-row kernels, laid out the same for host and device.
#pragma once
#include <cstdint>

#include "common/gemm.h"

namespace fusepass {

// GemmProblem with its scalars in float32.
// What the first loads need comes first: a kernel that runs for three microseconds waits for each line of it.
struct FewRowsArgs {
  const void* w[2];
  int64_t ldw[2];
  const void* x;
  int64_t ldx;
  int32_t m, n, k;
  int32_t batches;  // of columns of the output, which blocks finish one after another
  const void* bias[2];  // or null
  Result out[kMaxOutputs];
  Operand col[kMaxVectors], row[kMaxVectors], mat[kMaxVectors];
  float number[kMaxNumbers];
  float operand_value[kMaxOperands];
  const void* operand_pointer[kMaxOperands];
  int32_t operand_dtype[kMaxOperands];
};

}  // namespace fusepass
