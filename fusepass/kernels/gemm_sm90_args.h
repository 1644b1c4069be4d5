// The one parameter of a Hopper GEMM kernel, laid out the same for host and device.
#pragma once
#include <cstdint>

#include "gemm.h"

namespace fusepass {

struct alignas(64) TensorMap {  // a CUtensorMap: opaque to everything but the driver and the TMA unit
  uint64_t opaque[16];
};

struct Gemm90Args {
  TensorMap x, w, out, preact;  // swapped, x is the weight; preact where the kernel stores it
  TensorMap second;             // the second weight, where a kernel multiplies by two
  const void* bias[2];          // of each weight, or null
  // gemm.h's Scalars, in float32.
  float number[kMaxNumbers];
  float operand_value[kMaxOperands];
  const void* operand_pointer[kMaxOperands];
  int32_t operand_dtype[kMaxOperands];
  int32_t n;
  int32_t k_blocks;    // ceil(k / kTileK)
  // Clusters of tiles below one another, and beside one another. A cluster's own tiles lie below one
  // another, or, where it shares x, beside.
  int32_t clusters_m, tiles_n;
  int32_t group;  // rows of clusters walked together before the next column, for L2
};

}  // namespace fusepass
