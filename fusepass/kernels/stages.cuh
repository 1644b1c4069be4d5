// The stages as device functions, one each, and the numbers they are known by.
// A stage is a function of one element and its scalars; T is the type it computes in (float, or
// double for float64). A new stage: a row in fusepass/stages.py, a function here, a case in
// hybrid.cu's interpreter.
#pragma once
#include "stage_codes.h"

namespace fusepass {

// Never contracted with a neighbouring stage: each stage is rounded to T.
__device__ __forceinline__ float stage_mul(float v, float c) { return __fmul_rn(v, c); }
__device__ __forceinline__ double stage_mul(double v, double c) { return __dmul_rn(v, c); }
__device__ __forceinline__ float stage_div(float v, float c) { return __fdiv_rn(v, c); }
__device__ __forceinline__ double stage_div(double v, double c) { return __ddiv_rn(v, c); }

// min(max(v, lo), hi): NaN in any of the three comes out as NaN, lo > hi gives hi.
template <typename T>
__device__ __forceinline__ T stage_clamp_select(T v, T lo, T hi) {
  T r = v < lo || lo != lo ? lo : v;
  r = r > hi || hi != hi ? hi : r;
  return v != v || lo != lo ? v + lo : r;
}
__device__ __forceinline__ double stage_clamp(double v, double lo, double hi) {
  return stage_clamp_select(v, lo, hi);
}
__device__ __forceinline__ float stage_clamp(float v, float lo, float hi) {
#if __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %0, %1;\n\tmin.NaN.f32 %0, %0, %2;" : "+f"(v) : "f"(lo), "f"(hi));
  return v;
#else
  return stage_clamp_select(v, lo, hi);
#endif
}

// x * Phi(x), Phi by erf. The order of operations is the one whose rounding eager has.
template <typename T>
__device__ __forceinline__ T stage_gelu(T v) {
  constexpr T kSqrtHalf = 0.70710678118654752440;
  return v * T(0.5) * (T(1) + ::erf(v * kSqrtHalf));
}

// v/2 * (1 + tanh(sqrt(2/pi) * (v + 0.044715 v^3))), again in eager's order.
template <typename T>
__device__ __forceinline__ T stage_gelu_tanh(T v) {
  constexpr T kSqrtTwoOverPi = 1.12837916709551257390 * 1.41421356237309504880 * T(0.5);
  constexpr T kCubic = 0.044715;
  const T cube = v * v * v;
  const T inner = kSqrtTwoOverPi * (v + kCubic * cube);
  return T(0.5) * v * (T(1) + ::tanh(inner));
}

// For results that are rounded to 8 or 11 bits, of which half a unit is 2^-12 or more. The relative
// error stays small in the negative tail too, where 1 + erf cancels: below 2^-18 down to v = -6, and
// up to 9e-6 further out, where the exponent is so large that its rounding counts.
__device__ __forceinline__ float approximate_exp2(float v) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(v));
  return v;
}
__device__ __forceinline__ float approximate_reciprocal(float v) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(v));
  return v;
}

// With y = |v|: Phi(-y) = exp(-y^2/2) * t * P(t), t = 1 / (1 + 0.36 y). P is the minimax fit in
// relative error on 0 <= y <= 14, beyond which Phi(-y) is 0 in float32 (error 9e-7).
__device__ __forceinline__ float stage_gelu_16bit(float v) {
  constexpr float kHalfLog2E = -0.72134752044448170368f;
  const float t = approximate_reciprocal(fmaf(0.36f, fabsf(v), 1.0f));
  float p = 0.0470555946f;
  p = fmaf(p, t, -0.179762334f);
  p = fmaf(p, t, 0.180950835f);
  p = fmaf(p, t, 0.026551472f);
  p = fmaf(p, t, 0.139718503f);
  p = fmaf(p, t, 0.141772583f);
  p = fmaf(p, t, 0.143713042f);
  const float tail = p * t * approximate_exp2(v * kHalfLog2E * v);
  return v * (v < 0.0f ? tail : 1.0f - tail);
}

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)).
__device__ __forceinline__ float stage_gelu_tanh_16bit(float v) {
  constexpr float kLinear = -2.3022082194f;   // -2 sqrt(2/pi) log2(e)
  constexpr float kCubic = -0.10294324054f;   // 0.044715 times that
  const float exponent = v * fmaf(kCubic * v, v, kLinear);
  return v * approximate_reciprocal(1.0f + approximate_exp2(exponent));
}

}  // namespace fusepass
