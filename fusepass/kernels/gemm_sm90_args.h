// The one parameter of a Hopper GEMM kernel, laid out the same for host and device.
#pragma once
#include <cstdint>

#include "gemm.h"

namespace fusepass {

struct alignas(64) TensorMap {  // a CUtensorMap: opaque to everything but the driver and the TMA unit
  uint64_t opaque[16];
};

struct Gemm90Args {
  TensorMap x, w, out, preact;  // preact only where the kernel was compiled to store it
  const void* bias;             // or null
  const void* scalar_pointer[kMaxScalars];
  float scalar_value[kMaxScalars];
  float scalar_half[kMaxScalars];  // of those values: a kernel reads either in place, as a constant
  int32_t scalar_dtype[kMaxScalars];
  int32_t n;
  int32_t k_blocks;    // ceil(k / kTileK)
  int32_t clusters_m;  // ceil(m / (tile_m * cluster)): a cluster's tiles lie below one another
  int32_t tiles_n;     // ceil(n / tile_n)
  int32_t group;       // rows of clusters walked together before the next column, for L2
};

}  // namespace fusepass
