// Host side of the few-row kernels (few_rows.cu, few_rows_strips.cu, few_rows_f32.cu). CUDA driver API only, no torch header.
#pragma once
#include <cuda.h>

#include "common/gemm.h"

namespace fusepass {

// One build of a few-row kernel; few_rows_walk.cuh, or few_rows_strips.cu, says what the numbers are.
struct FewRowsConfig {
  int rows = 0, batch = 0, warps = 0, depth = 0, blocks = 0;  // rows 0: another kernel's plan
  int split = 0;  // blocks of a cluster of few_rows_strips.cu; 0: another kernel
};

// Reads "few rows8 batch16 warps16 depth2 blocks1", and "split4" behind it; false if `text` is not such a configuration.
bool few_rows_parse_config(const char* text, FewRowsConfig* out);

// Null if the kernels can read the problem's operands where they lie, else the reason, a static text.
const char* few_rows_unsupported(const GemmProblem& problem);

// The kernel as the current device launches it.
CUfunction few_rows_function(CUkernel kernel, const FewRowsConfig& config);

// Throws std::runtime_error with CUDA's message.
void few_rows_launch(const GemmProblem& problem, const FewRowsConfig& config, CUfunction kernel,
                     CUstream stream, int num_sms);

// As few_rows_launch, of few_rows_strips.cu compiled for several weights: of `count` problems, 2 to kMaxWeights,
// alike in all but weight, bias, N and the one output.
void few_rows_launch_several(const GemmProblem* problems, int count, const FewRowsConfig& config,
                             CUfunction kernel, CUstream stream);

}  // namespace fusepass
