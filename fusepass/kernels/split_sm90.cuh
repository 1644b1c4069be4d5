// The pre-pass of float32: a matrix into two float16 pieces that lie as it does. A row is one of the
// GEMM, of x or of w, however it is stored. With e the exponent of the row's largest magnitude, v * 2^(14 - e) = hi + lo * 2^-11 to 22 bits or more, for elements
// down to 2^-28 of the largest; what smaller ones lose is added up, and the GEMM weighs it against
// its result. A row that is not finite is stored as zeros with an infinite loss.
#pragma once
#include "gemm_sm90_f32_args.h"

namespace fusepass {

__device__ __forceinline__ uint16_t half_bits(float v) {
  uint16_t r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
  return r;
}

__device__ __forceinline__ float half_value(uint16_t bits) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
}

__device__ __forceinline__ float power_of_two(int e) {  // -126 <= e <= 127
  return __int_as_float((e + 127) << 23);
}

// floor(log2(v)) of a finite v > 0; 0 of 0.
__device__ __forceinline__ int exponent_of(float v) {
  if (v == 0.0f) return 0;
  const int shift = v < 0x1p-126f ? 24 : 0;
  return (__float_as_int(shift ? v * 0x1p24f : v) >> 23) - 127 - shift;
}

// 2^p as two factors, so that every p a row can have is exact.
struct Scale {
  float first, second;
  __device__ __forceinline__ explicit Scale(int p)
      : first(power_of_two(p / 2)), second(power_of_two(p - p / 2)) {}
  __device__ __forceinline__ Scale(float first, float second) : first(first), second(second) {}
  __device__ __forceinline__ float operator()(float v) const { return v * first * second; }
};

// What a thread gathers about its part of a row.
struct RowSums {
  float norm = 0.0f, loss = 0.0f;  // squares
  float count = 0.0f;              // of elements above 2^-24 of the largest; float, to be reduced alike
};

struct Pieces {
  uint16_t hi, lo;
};

__device__ __forceinline__ Pieces split(float v, const Scale& scale, RowSums& sums) {
  const float scaled = scale(v);
  Pieces p;
  p.hi = half_bits(scaled);
  const float rest = scaled - half_value(p.hi);  // exact
  p.lo = half_bits(rest * power_of_two(kSplitLow));
  float lost = fabsf(rest - half_value(p.lo) * power_of_two(-kSplitLow));
  // Gone without a trace, and perhaps without one in `scaled` either.
  if (v != 0.0f && p.hi == 0 && p.lo == 0) lost = fmaxf(fabsf(scaled), 0x1p-60f);
  if (lost <= fabsf(scaled) * 0x1p-22f) lost = 0.0f;
  sums.norm = fmaf(scaled, scaled, sums.norm);
  sums.loss = fmaf(lost, lost, sums.loss);
  if (fabsf(scaled) >= power_of_two(kSplitTop - 24)) sums.count += 1.0f;
  return p;
}

__device__ __forceinline__ float add(float a, float b) { return a + b; }

__device__ __forceinline__ uint2 pack4(uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
  return {a | uint32_t{b} << 16, c | uint32_t{d} << 16};
}

// NaN if either is: a row with a NaN has a NaN for its maximum.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

// For a row that is not finite, 0: all its pieces are then made 0.
__device__ __forceinline__ bool is_finite(float largest) { return largest <= 3.402823466e38f; }

__device__ __forceinline__ void describe(const Split90Rows& args, int row, float largest,
                                         RowSums sums) {
  const int e = is_finite(largest) ? exponent_of(largest) : 0;
  SplitRow detail{e, sqrtf(sums.norm), sqrtf(sums.loss), 0};
  const float top = Scale(kSplitTop - e)(largest);
  const bool few = sums.count > 0.0f && sums.count < kSplitLeast;
  const bool dominated = 4.0f * top * top >= sums.norm && largest > 0.0f;
  detail.kind = (few ? kSplitFew : 0) | (dominated ? kSplitDominated : 0);
  if (!is_finite(largest)) detail.loss = __int_as_float(0x7F800000);
  // Rounding must not turn a loss into none, nor a bound into a smaller one.
  detail.norm *= 1.001f;
  detail.loss *= 1.001f;
  const bool moderate = e >= -kSplitModerate && e <= kSplitModerate;
  float undo = __int_as_float(0x7FFFFFFF);
  if (moderate && detail.loss == 0.0f && !few) {
    undo = power_of_two(e - kSplitTop);
    if (dominated) undo = -undo;
  }
  args.undo[row] = undo;
  args.detail[row] = detail;
}

}  // namespace fusepass
