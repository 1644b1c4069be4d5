// Host side of the TF32 kernel (gemm_sm90_tf32.cu). CUDA driver API only, no torch header.
#pragma once
#include <cuda.h>

#include "common/gemm.h"
#include "gemm_sm90_launch.h"

namespace fusepass {

// Reads "tf32 128x256 cooperative cluster2 stages4 group8"; false if `text` is not such a
// configuration. stages are of 32 K.
bool tf32_parse_config(const char* text, Gemm90Config* out);

// Null if the kernel can run the problem (a float32 one), else the reason, a static text.
const char* tf32_unsupported(const GemmProblem& problem);

// As gemm90_function and gemm90_launch.
CUfunction tf32_function(CUkernel kernel, const Gemm90Config& config);
void tf32_launch(const GemmProblem& problem, const Gemm90Config& config, CUfunction kernel,
                 CUstream stream, int num_sms);

}  // namespace fusepass
