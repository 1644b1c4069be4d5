// The one parameter of the pointwise kernel, laid out the same for host and device.
#pragma once
#include <cstdint>

#include "gemm.h"

namespace fusepass {

constexpr int kPointwiseThreads = 128;
constexpr int kPointwiseBytes = 32;  // of z, a thread

// As the kernel computes it: T is double for float64, else float.
template <typename T>
struct PointwiseScalars {
  T number[kMaxNumbers];
  T value[kMaxOperands];
};

struct PointwiseArgs {
  const void* z;
  void* out;
  int64_t numel;
  bool aligned;  // both, to 16 bytes
  const void* pointer[kMaxOperands];
  int32_t dtype[kMaxOperands];
  union {
    PointwiseScalars<float> narrow;
    PointwiseScalars<double> wide;
  };
};

}  // namespace fusepass
