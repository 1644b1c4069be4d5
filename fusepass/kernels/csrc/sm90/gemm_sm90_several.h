// Several weights of one x in one launch: each has a result of its own, there is no epilogue.
#pragma once
#include "gemm_sm90_launch.h"

namespace fusepass {

// Null if one launch can run the problems, 2 to kMaxWeights, alike in all but weight, bias, N and the
// one output; else the reason, a static text.
const char* gemm90_several_unsupported(const GemmProblem* problems, int count);

// As gemm90_launch, of a kernel compiled for several weights.
void gemm90_launch_several(const GemmProblem* problems, int count, const Gemm90Config& config,
                           CUfunction kernel, CUstream stream, int num_sms);

}  // namespace fusepass
