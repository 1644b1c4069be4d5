// The chain of stages that a kernel is compiled for, its scalars, and the rounding to 16 bits.
#pragma once
#include <cstdint>
#include <type_traits>

#include "gemm_sm90_args.h"
#include "gemm_sm90_stages.cuh"

namespace fusepass {

// Scalar i of a call, or half of it, as float32. A number of the host is read where the kernel's
// argument lies: it takes no register of a thread, and no place in the traffic of those registers,
// which the tensor cores' accumulators fill. An operand is the element that its pointer, if it has
// one, points to.
template <bool kOperands, bool kHalf>
__device__ inline float load_scalar(const Gemm90Args& args, int i) {
  if (!kOperands) return kHalf ? args.scalar_half[i] : args.scalar_value[i];
  const void* p = args.scalar_pointer[i];
  float r;
  if (p == nullptr) {
    r = args.scalar_value[i];
  } else {
    switch (static_cast<DType>(args.scalar_dtype[i])) {
      case DType::kFloat32:
        r = *static_cast<const float*>(p);
        break;
      case DType::kFloat64:
        r = static_cast<float>(*static_cast<const double*>(p));
        break;
      case DType::kFloat16:
        asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(*static_cast<const uint16_t*>(p)));
        break;
      default:
        r = __uint_as_float(uint32_t{*static_cast<const uint16_t*>(p)} << 16);
    }
  }
  return kHalf ? 0.5f * r : r;
}

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

  // The chain's scalars, the first of which is number `first` of the call's.
  template <bool kOperands>
  __device__ static void load(const Gemm90Args& args, float* s, int first = 0) {
#pragma unroll
    for (int i = 0; i < First::kScalars; ++i) {
      s[i] = load_scalar<kOperands, kHalving>(args, first + i);
    }
    Next::template load<kOperands>(args, s + First::kScalars, first + First::kScalars);
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

template <class Last>
struct LastOf : Last {
  template <bool kOperands>
  __device__ static void load(const Gemm90Args& args, float* s, int first = 0) {
#pragma unroll
    for (int i = 0; i < Last::kScalars; ++i) s[i] = load_scalar<kOperands, false>(args, first + i);
  }
};
template <bool kHalved, class Last>
struct ChainOf<kHalved, Last> : LastOf<Last> {};
template <>
struct ChainOf<true, Gelu> : LastOf<GeluOf<true>> {};
template <>
struct ChainOf<true, GeluWithin2> : LastOf<GeluWithin2Of<true>> {};

template <class... kStages>
using Chain = ChainOf<false, kStages...>;

// FUSEPASS_STAGES is written `mul | clamp | gelu`, with the names of fusepass/stages.py, and
// gelu_within_2 where the clamp before it says so; `operands` comes before them if any of the
// scalars is known only when the kernel runs (fusepass/epilogue.py). `nothing` is the empty chain.
template <class... kStages>
struct List {};
template <class Stage>
struct Name {};
constexpr Name<Nothing> nothing{};
constexpr Name<Operands> operands{};
constexpr Name<Mul> mul{};
constexpr Name<Div> div{};
constexpr Name<Clamp> clamp{};
constexpr Name<Gelu> gelu{};
constexpr Name<GeluTanh> gelu_tanh{};
constexpr Name<GeluWithin2> gelu_within_2{};

template <class... kStages>
constexpr bool has_operands(List<kStages...>) {
  return (false || ... || std::is_same_v<kStages, Operands>);
}
template <class... kStages, class Next>
constexpr List<kStages..., Next> operator|(List<kStages...>, Name<Next>) {
  return {};
}
template <class... kStages>
constexpr Chain<kStages...> chain_of(List<kStages...>) {
  return {};
}
using Epilogue = decltype(chain_of(List<>{} | FUSEPASS_STAGES));
constexpr bool kOperands = has_operands(List<>{} | FUSEPASS_STAGES);

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
