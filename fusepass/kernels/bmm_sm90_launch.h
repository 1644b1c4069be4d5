// Host side of the kernel for batches of float32 matrices (bmm_sm90.cu). CUDA driver API only, no torch
// header.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "bmm_sm90_args.h"

namespace fusepass {

// out[b] = x[b] w[b]: [batches, m, n] of [batches, m, k] and [batches, k, n].
struct BmmProblem {
  BatchedOperand x, w;  // w's rows are its columns
  float* out;
  int64_t batches, m, n, k;
};

// One of bmm_sm90.cu's kernels by the name that bmm_kernel_name gives, as the current device launches it.
CUfunction bmm_function(CUkernel kernel);

// Which of the kernels reads the operands as they are stored.
const char* bmm_kernel_name(const BmmProblem& problem);

// Whether sizes fit the kernel's coordinates.
bool bmm_supported(const BmmProblem& problem);

// Launches bmm_function's kernel on `stream` of its device. Throws std::runtime_error with CUDA's
// message; thread-safe, and streams may be capturing.
void bmm_launch(const BmmProblem& problem, CUfunction kernel, CUstream stream, int num_sms);

}  // namespace fusepass
