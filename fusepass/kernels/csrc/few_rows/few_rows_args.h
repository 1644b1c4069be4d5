// The one parameter of the few-row kernels, of either kind, laid out the same for host and device.
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

// Of several weights of one x, each with a result of its own: the one that a block is of.
struct OneOfSeveral {
  const void* w[1];
  int64_t ldw[1];
  const void* x;
  int64_t ldx;
  int32_t m, n, k;
  const void* bias[1];  // or null
  Result out[1];
};

// All of them, and no operands: there is no epilogue.
struct SeveralRowsArgs {
  const void* w[kMaxWeights];
  int64_t ldw[kMaxWeights];
  int32_t first[kMaxWeights];  // the batch of columns where a weight's begin; behind the last, none
  int32_t n[kMaxWeights];
  const void* x;
  int64_t ldx;
  int32_t m, k;
  const void* bias[kMaxWeights];  // or null
  void* out[kMaxWeights];
};

}  // namespace fusepass
