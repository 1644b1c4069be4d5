// Column sums of float32's epilogues: the GEMM leaves those of each 16 rows, here they are added.
#pragma once
#include "gemm_sm90_f32_operands.cuh"
#include "sm90/gemm_sm90_ptx.cuh"

namespace fusepass {

// A thread of the first row has a column; those below it take every kStripsBelow-th strip, and what they
// have is added from the first to the last. In float64, which costs nothing here.
__device__ __forceinline__ void add_strips(const Float32Sum& sum) {
  __shared__ double sums[kStripsBelow][32];
  const int below = threadIdx.x / 32, beside = threadIdx.x % 32;
  const int column = blockIdx.x * 32 + beside;
  grid_dependency_wait();
  grid_dependents_launch();
  double total = 0.0;
  if (column < sum.n) {
#pragma unroll 4
    for (int strip = below; strip < sum.strips; strip += kStripsBelow) {
      total += sum.from[int64_t{strip} * sum.n + column];
    }
  }
  sums[below][beside] = total;
  __syncthreads();
  if (below > 0 || column >= sum.n) return;
#pragma unroll
  for (int i = 1; i < kStripsBelow; ++i) total += sums[i][beside];
  switch (sum.dtype) {
    case DType::kFloat64: static_cast<double*>(sum.out)[column] = total; return;
    case DType::kFloat32: static_cast<float*>(sum.out)[column] = static_cast<float>(total); return;
    case DType::kBFloat16:
      static_cast<uint16_t*>(sum.out)[column] = element_of<DType::kBFloat16>(static_cast<float>(total));
      return;
    default:
      static_cast<uint16_t*>(sum.out)[column] = element_of<DType::kFloat16>(static_cast<float>(total));
  }
}

}  // namespace fusepass
