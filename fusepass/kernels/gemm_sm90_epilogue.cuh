// The epilogue's stages on one float32 element, cheap enough to hide behind a mainloop.
// A stage is a struct with its number of scalars and apply(v, its scalars); NaN and inf as torch.
#pragma once
#include <cstdint>

#include "gemm_sm90_args.h"

namespace fusepass {

__device__ inline float max_nan(float a, float b) {  // NaN if either is, unlike fmaxf
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

__device__ inline float min_nan(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

__device__ inline float exp2_approx(float v) {  // 2 ulp; subnormal results are 0
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

__device__ inline float reciprocal_approx(float v) {  // 1 ulp; 1/inf is 0
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

struct Mul {
  static constexpr int kScalars = 1;
  __device__ static float apply(float v, const float* s) { return v * s[0]; }
};

struct Div {
  static constexpr int kScalars = 1;
  __device__ static float apply(float v, const float* s) {
    float r;  // 2 ulp over the full range, and no subroutine call as in an exact division
    asm("div.full.f32 %0, %1, %2;" : "=f"(r) : "f"(v), "f"(s[0]));
    return r;
  }
};

struct Clamp {
  static constexpr int kScalars = 2;
  __device__ static float apply(float v, const float* s) {
    return min_nan(max_nan(v, s[0]), s[1]);
  }
};

// v * Phi(v) as max(v, 0) - |v| * Phi(-|v|), with 2 * Phi(-|v|) = 2^P(|v|/2) and P a minimax
// polynomial of degree 7 without constant term on |v| <= 6.25 (tests/test_gelu_device.py has the
// proof): relative error 6e-6 down to v = -6, absolute error 3e-14 below. No cancellation in the
// negative tail, where 1 + erf(v / sqrt(2)) loses everything. P falls ever faster beyond its
// range, so the power is 0 there. max(v, 0) is |v|/2 + v/2, which makes -inf NaN, as in torch, and
// the product uses a finite |v|, which keeps +inf.
struct Gelu {
  static constexpr int kScalars = 0;
  __device__ static float apply(float v, const float*) {
    const float half = 0.5f * v;
    const float t = fminf(fabsf(half), 3.0e38f);
    float p = -2.2987247211857e-4f;
    p = __fmaf_rn(p, t, 3.888772102072835e-3f);
    p = __fmaf_rn(p, t, -2.9549483209848404e-2f);
    p = __fmaf_rn(p, t, 1.356414556503296e-1f);
    p = __fmaf_rn(p, t, -4.3113672733306885e-1f);
    p = __fmaf_rn(p, t, -1.8341631889343262f);
    p = __fmaf_rn(p, t, -2.30242919921875f);
    return __fmaf_rn(-t, exp2_approx(p * t), half + fabsf(half));
  }
};

// v/2 * (1 + tanh(u)) = v / (1 + exp(-2u)), u = sqrt(2/pi) * (v + 0.044715 v^3): torch's formula
// without its cancellation.
struct GeluTanh {
  static constexpr int kScalars = 0;
  __device__ static float apply(float v, const float*) {
    constexpr float kLinear = -2.302208198144325f;  // -2 * sqrt(2/pi) * log2(e)
    constexpr float kCubic = kLinear * 0.044715f;
    const float u = v * __fmaf_rn(v * v, kCubic, kLinear);
    return v * reciprocal_approx(1.0f + exp2_approx(u));
  }
};

template <class... kStages>
struct Chain {
  static constexpr int kScalars = (0 + ... + kStages::kScalars);

  // v through every stage; `scalars` are theirs in order.
  __device__ static float apply(float v, const float* scalars) {
    ((v = kStages::apply(v, scalars), scalars += kStages::kScalars), ...);
    return v;
  }
};

// FUSEPASS_STAGES is written `mul | clamp | gelu`, with the names of fusepass/stages.py.
constexpr Mul mul{};
constexpr Div div{};
constexpr Clamp clamp{};
constexpr Gelu gelu{};
constexpr GeluTanh gelu_tanh{};

template <class... kStages, class kNext>
constexpr Chain<kStages..., kNext> operator|(Chain<kStages...>, kNext) {
  return {};
}

// Scalar i of the epilogue: its value, or the element it points to, as float32.
__device__ inline float load_scalar(const Gemm90Args& args, int i) {
  const void* p = args.scalar_pointer[i];
  if (p == nullptr) return args.scalar_value[i];
  float r;
  switch (static_cast<DType>(args.scalar_dtype[i])) {
    case DType::kFloat32:
      return *static_cast<const float*>(p);
    case DType::kFloat64:
      return static_cast<float>(*static_cast<const double*>(p));
    case DType::kFloat16:
      asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(*static_cast<const uint16_t*>(p)));
      return r;
    default:
      return __uint_as_float(uint32_t{*static_cast<const uint16_t*>(p)} << 16);
  }
}

// ---- 16-bit elements ----

// Two floats, rounded to nearest even, the first in the low half.
__device__ inline uint32_t pack2(float low, float high) {
  uint32_t r;
#if FUSEPASS_BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#endif
  return r;
}

__device__ inline float unpack(uint16_t bits) {
#if FUSEPASS_BF16
  return __uint_as_float(uint32_t{bits} << 16);
#else
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
#endif
}

}  // namespace fusepass
