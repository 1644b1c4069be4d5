// The chain of stages that a kernel is compiled for, its scalars, and the rounding to 16 bits.
#pragma once
#include <cstdint>
#include <type_traits>

#include "gemm_sm90_args.h"
#include "gemm_sm90_stages.cuh"

namespace fusepass {

// Whether the stages are clamps and then a Gelu. A multiplication before those can give them halves:
// mul(c) clamp(l, h) gelu is mul(c/2) clamp(l/2, h/2) and then a Gelu that starts from v/2.
template <class... kStages>
constexpr bool kClampsThenGelu = false;
template <>
constexpr bool kClampsThenGelu<Gelu> = true;
template <>
constexpr bool kClampsThenGelu<GeluWithin2> = true;
template <class... Rest>
constexpr bool kClampsThenGelu<Clamp, Rest...> = kClampsThenGelu<Rest...>;

template <bool kHalved, class First, class... Rest>
struct ChainOf {
  static constexpr bool kHalving =
      kHalved || (std::is_same_v<First, Mul> && kClampsThenGelu<Rest...>);
  using Next = ChainOf<kHalving, Rest...>;
  static constexpr int kScalars = First::kScalars + Next::kScalars;

  // To be called once on the scalars that the chain is given.
  __device__ static void prepare(float* s) {
#pragma unroll
    for (int i = 0; i < First::kScalars; ++i) {
      if (kHalving) s[i] *= 0.5f;
    }
    Next::prepare(s + First::kScalars);
  }
  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const float* s) {
    First::apply(b.v, s);
    Next::begin(b, s + First::kScalars);
  }
  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b) {
    Next::middle(b);
  }
  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b) {
    Next::end(b);
  }
};

template <bool kHalved, class Last>
struct ChainOf<kHalved, Last> : Last {
  __device__ static void prepare(float*) {}
};
template <>
struct ChainOf<true, Gelu> : GeluOf<true> {
  __device__ static void prepare(float*) {}
};
template <>
struct ChainOf<true, GeluWithin2> : GeluWithin2Of<true> {
  __device__ static void prepare(float*) {}
};

template <class... kStages>
using Chain = ChainOf<false, kStages...>;

// FUSEPASS_STAGES is written `mul | clamp | gelu`, with the names of fusepass/stages.py, and
// gelu_within_2 where the clamp before it says so (fusepass/epilogue.py).
template <class... kStages>
struct List {};
template <class Stage>
struct Name {};
constexpr Name<Mul> mul{};
constexpr Name<Div> div{};
constexpr Name<Clamp> clamp{};
constexpr Name<Gelu> gelu{};
constexpr Name<GeluTanh> gelu_tanh{};
constexpr Name<GeluWithin2> gelu_within_2{};

template <class... kStages, class Next>
constexpr List<kStages..., Next> operator|(List<kStages...>, Name<Next>) {
  return {};
}
template <class... kStages>
constexpr Chain<kStages...> chain_of(List<kStages...>) {
  return {};
}
using Epilogue = decltype(chain_of(List<>{} | FUSEPASS_STAGES));

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
