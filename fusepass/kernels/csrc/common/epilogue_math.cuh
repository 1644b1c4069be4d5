// What the device texts of fusepass/ir's table are written in: arithmetic that is rounded as it says,
// NaN that comes through bounds, and the special-function unit's approximations. float and double;
// erf, exp and the like are CUDA's own overloads.
#pragma once
#include <cstdint>

#include "gemm.h"

// A statement for each element of a Batch. A kernel may say what is to stand behind an element.
#ifndef FUSEPASS_NEXT
#define FUSEPASS_NEXT ++i
#endif
#define FUSEPASS_EACH _Pragma("unroll") for (int i = 0; i < kWidth; FUSEPASS_NEXT)

namespace fusepass {

// ---- rounded, never contracted with a neighbour ----

__device__ __forceinline__ float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add_rn(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float sub_rn(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ double sub_rn(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double mul_rn(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double div_rn(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ float sqrt_rn(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ double sqrt_rn(double a) { return __dsqrt_rn(a); }

// ---- NaN if either is, unlike fmax ----

template <typename T>
__device__ __forceinline__ T max_nan_select(T a, T b) {
  return a != a || b != b ? a + b : a < b ? b : a;
}
template <typename T>
__device__ __forceinline__ T min_nan_select(T a, T b) {
  return a != a || b != b ? a + b : b < a ? b : a;
}
__device__ __forceinline__ double max_nan(double a, double b) { return max_nan_select(a, b); }
__device__ __forceinline__ double min_nan(double a, double b) { return min_nan_select(a, b); }

__device__ __forceinline__ float max_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
#else
  return max_nan_select(a, b);
#endif
}
__device__ __forceinline__ float min_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
#else
  return min_nan_select(a, b);
#endif
}

// ---- approximate, for results of 16 bits ----

__device__ __forceinline__ float exp2_approx(float v) {  // 2 ulp; subnormal results are 0
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ float reciprocal_approx(float v) {  // 1 ulp; subnormals are 0; 1/inf is 0
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ float divide_approx(float a, float b) {  // 2 ulp over the full range
  float r;
  asm("div.full.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
__device__ __forceinline__ float sqrt_approx(float v) {  // 1 ulp
  float r;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ float rsqrt_approx(float v) {  // 2 ulp
  float r;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ float saturate(float v) { return __saturatef(v); }  // NaN is 0

// ---- rounded to a narrower dtype ----

__device__ __forceinline__ float round_f16(float v) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
}
__device__ __forceinline__ float round_bf16(float v) {
#if __CUDA_ARCH__ >= 800
  // The pair (v, 0): a bfloat16 above 16 zero bits is a float32. One instruction at full rate; the
  // conversion of a single number runs at a quarter of it.
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(v), "f"(0.0f));
  return __uint_as_float(bits);
#else
  const uint32_t bits = __float_as_uint(v);
  const uint32_t even = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
  return __uint_as_float(v != v ? bits | 0x400000u : even);
#endif
}
__device__ __forceinline__ float round_f32(double v) { return __double2float_rn(v); }
__device__ __forceinline__ float round_f16(double v) { return round_f16(__double2float_rn(v)); }
__device__ __forceinline__ float round_bf16(double v) { return round_bf16(__double2float_rn(v)); }

}  // namespace fusepass
