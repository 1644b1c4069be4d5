// A run-time scalar of an epilogue, one element of a tensor of any dtype.
#pragma once
#include <cstdint>

#include "gemm.h"

namespace fusepass {

// As T, float or double.
template <typename T>
__device__ inline T load_scalar(const void* p, int32_t dtype) {
  float r;
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32:
      return static_cast<T>(*static_cast<const float*>(p));
    case DType::kFloat64:
      return static_cast<T>(*static_cast<const double*>(p));
    case DType::kFloat16:
      asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(*static_cast<const uint16_t*>(p)));
      return static_cast<T>(r);
    default:
      return static_cast<T>(__uint_as_float(uint32_t{*static_cast<const uint16_t*>(p)} << 16));
  }
}

}  // namespace fusepass
