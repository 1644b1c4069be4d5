// The epilogue that a kernel is compiled for, what it reads, and the rounding to 16 bits.
#pragma once
#include <cstdint>

#include "gemm_sm90_boundary.cuh"

// Statements stand apart: what a kernel knows to be no negative number is behind the scalars.
#ifdef FUSEPASS_APART
#define FUSEPASS_NEXT fusepass::next_apart(i, kWidth, s[kScalars])
#endif
#include "common/epilogue_math.cuh"
#include "gemm_sm90_args.h"
#include "common/scalars.cuh"
// fusepass/ir/emit.py writes it, build.py puts it into the build's folder.
#include "generated_epilogue.cuh"

namespace fusepass {

static_assert(Epilogue::kNumbers <= kMaxNumbers && Epilogue::kOperands <= kMaxOperands);

// Where Epilogue::load finds its scalars. A number is read where the kernel's argument lies: it takes
// no register of a thread, and no place in the traffic of those registers, which the tensor cores'
// accumulators fill.
struct GemmScalars {
  const Gemm90Args& args;
  __device__ float number(int i) const { return args.number[i]; }
  __device__ float operand(int i) const {
    const void* p = args.operand_pointer[i];
    return p == nullptr ? args.operand_value[i] : load_scalar<float>(p, args.operand_dtype[i]);
  }
};

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
