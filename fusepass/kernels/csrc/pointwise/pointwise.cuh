// What the pointwise kernels share: elements of each dtype, alone and as many together as a thread
// takes, and the scalars of an epilogue.
//
// Macros (kernels/pointwise.py writes them): FUSEPASS_DTYPE, z's, gemm.h's number; FUSEPASS_WIDTH, how
// many elements go through the epilogue in step; FUSEPASS_BITWISE, 1 if an operand on the device counts
// as a tensor of z's dtype, as eager's operators convert it.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/epilogue_math.cuh"
#include "pointwise_args.h"
#include "common/scalars.cuh"
// fusepass/ir/emit.py writes it, build.py puts it into the build's folder.
#include "generated_epilogue.cuh"

namespace fusepass {

static_assert(Epilogue::kNumbers <= kMaxNumbers && Epilogue::kOperands <= kMaxOperands);

using T = Epilogue::T;
constexpr DType kDType = static_cast<DType>(FUSEPASS_DTYPE);
constexpr int kStep = FUSEPASS_WIDTH;

// --- one element ---------------------------------------------------------------------------------

template <DType kType>
using Element = std::conditional_t<
    kType == DType::kFloat64, double,
    std::conditional_t<kType == DType::kFloat32, float,
                       std::conditional_t<kType == DType::kBool, uint8_t, uint16_t>>>;

template <DType kType>
__device__ __forceinline__ T loaded(Element<kType> v) {
  if constexpr (kType == DType::kBFloat16) {
    return __uint_as_float(uint32_t{v} << 16);
  } else if constexpr (kType == DType::kFloat16) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
  } else {
    return static_cast<T>(v);  // a double is rounded to nearest
  }
}

__device__ __forceinline__ uint16_t bits_f16(float v) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}

template <DType kType>
__device__ __forceinline__ Element<kType> stored(T v) {
  if constexpr (kType == DType::kBFloat16) {
    return static_cast<uint16_t>(__float_as_uint(round_bf16(static_cast<float>(v))) >> 16);
  } else if constexpr (kType == DType::kFloat16) {
    return bits_f16(static_cast<float>(v));
  } else if constexpr (kType == DType::kBool) {
    return v != T(0);  // NaN is true
  } else {
    return static_cast<Element<kType>>(v);
  }
}

// --- kCount elements that lie together, aligned to as many bytes, 16 at most ----------------------

template <int kBytes>
using Word = std::conditional_t<
    kBytes >= 16, uint4,
    std::conditional_t<kBytes == 8, uint2,
                       std::conditional_t<kBytes == 4, uint32_t,
                                          std::conditional_t<kBytes == 2, uint16_t, uint8_t>>>>;

template <DType kType, int kCount>
constexpr int kTogether = kCount * sizeof(Element<kType>);  // bytes

template <DType kType, int kCount>
union Together {
  static constexpr int kBytes = kTogether<kType, kCount>;
  static constexpr int kWords = kBytes > 16 ? kBytes / 16 : 1;
  Word<kBytes> word[kWords];
  Element<kType> element[kCount];

  __device__ Together() {}
};

template <DType kType, int kCount>
__device__ __forceinline__ void load_together(const void* from, T (&v)[kCount]) {
  using Raw = Together<kType, kCount>;
  Raw raw;
#pragma unroll
  for (int i = 0; i < Raw::kWords; ++i) {
    raw.word[i] = static_cast<const Word<Raw::kBytes>*>(from)[i];
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = loaded<kType>(raw.element[i]);
}

template <DType kType, int kCount>
__device__ __forceinline__ void store_together(void* to, const T (&v)[kCount]) {
  using Raw = Together<kType, kCount>;
  Raw raw;
#pragma unroll
  for (int i = 0; i < kCount; ++i) raw.element[i] = stored<kType>(v[i]);
#pragma unroll
  for (int i = 0; i < Raw::kWords; ++i) static_cast<Word<Raw::kBytes>*>(to)[i] = raw.word[i];
}

template <DType kType>
__device__ __forceinline__ const void* element_at(const void* base, int64_t index) {
  return static_cast<const Element<kType>*>(base) + index;
}
template <DType kType>
__device__ __forceinline__ void* element_at(void* base, int64_t index) {
  return static_cast<Element<kType>*>(base) + index;
}
template <DType kType>
__device__ __forceinline__ T load_at(const void* base, int64_t index) {
  return loaded<kType>(static_cast<const Element<kType>*>(base)[index]);
}
template <DType kType>
__device__ __forceinline__ void store_at(void* base, int64_t index, T v) {
  static_cast<Element<kType>*>(base)[index] = stored<kType>(v);
}

// --- every one of a kind, its number a constant ---------------------------------------------------

template <int kIndex>
struct Index {
  __host__ __device__ constexpr operator int() const { return kIndex; }
};

template <int... kEach, class F>
__device__ __forceinline__ void each_of(std::integer_sequence<int, kEach...>, F&& f) {
  (f(Index<kEach>()), ...);
}

// f(Index<0>()), f(Index<1>()), … f(Index<kCount - 1>()).
template <int kCount, class F>
__device__ __forceinline__ void each(F&& f) {
  each_of(std::make_integer_sequence<int, kCount>(), f);
}

// --- scalars --------------------------------------------------------------------------------------

__device__ __forceinline__ const PointwiseScalars<float>& scalars_of(const PointwiseArgs& args, float) {
  return args.narrow;
}
__device__ __forceinline__ const PointwiseScalars<double>& scalars_of(const PointwiseArgs& args, double) {
  return args.wide;
}

// Where Epilogue::load finds its scalars.
struct FromArgs {
  const PointwiseArgs& args;

  __device__ T number(int i) const { return scalars_of(args, T()).number[i]; }
  __device__ T operand(int i) const {
    const void* p = args.pointer[i];
    if (p == nullptr) return scalars_of(args, T()).value[i];
    const T v = load_scalar<T>(p, args.dtype[i]);
    return FUSEPASS_BITWISE ? loaded<kDType>(stored<kDType>(v)) : v;
  }
};

}  // namespace fusepass
