// Stores that happen or not without a branch, which would keep neighbours' arithmetic apart: where
// that is short, the compiler makes one of `if`.
#pragma once
#include <cstdint>

#define FUSEPASS_STORE_IF(TYPE, CODE, ...)                                                          \
  asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %1, %2;\n@p st.global." TYPE " [%0], " CODE ";\n}" \
               ::"l"(at), "r"(column), "r"(columns), __VA_ARGS__)

namespace fusepass {

// To global memory if column < columns.
__device__ __forceinline__ void store_if(float* at, float v, int column, int columns) {
  FUSEPASS_STORE_IF("f32", "%3", "f"(v));
}
__device__ __forceinline__ void store_if(double* at, double v, int column, int columns) {
  FUSEPASS_STORE_IF("f64", "%3", "d"(v));
}
__device__ __forceinline__ void store_if(uint16_t* at, uint16_t v, int column, int columns) {
  FUSEPASS_STORE_IF("b16", "%3", "h"(v));
}
__device__ __forceinline__ void store_if(bool* at, bool v, int column, int columns) {
  FUSEPASS_STORE_IF("u8", "%3", "r"(uint32_t{v}));
}

// Two neighbours, aligned as both together.
__device__ __forceinline__ void store_pair_if(float* at, float a, float b, int column, int columns) {
  FUSEPASS_STORE_IF("v2.f32", "{%3, %4}", "f"(a), "f"(b));
}

}  // namespace fusepass
