// The pre-pass of float32: a matrix into two float16 pieces that lie as it does. A row is one of the
// GEMM, of x or of w, however it is stored. With e the exponent of the row's largest magnitude, v * 2^(14 - e) = hi + lo * 2^-11 to 22 bits or more, for elements
// down to 2^-28 of the largest; what smaller ones lose is added up, and the GEMM weighs it against
// its result. A row that is not finite is stored as zeros with an infinite loss.
#pragma once
#include "gemm_sm90_f32_args.h"

namespace fusepass {

// Two floats as float16, the first in the low half; and back.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ __forceinline__ float low_half(uint32_t pair) {
  float r;
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;\n}" : "=f"(r) : "r"(pair));
  return r;
}

__device__ __forceinline__ float high_half(uint32_t pair) {
  float r;
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(r) : "r"(pair));
  return r;
}

__device__ __forceinline__ float power_of_two(int e) {  // -126 <= e <= 127
  return __int_as_float((e + 127) << 23);
}

__device__ __forceinline__ double power_of_two_64(int e) {  // -1022 <= e <= 1023
  return __hiloint2double((e + 1023) << 20, 0);
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
  __device__ __forceinline__ float operator()(float v) const { return v * first * second; }
};

// Two elements' pieces, the first in the low halves.
struct Pair {
  uint32_t hi, lo;
};

// From |v| = kSplitWhole on, and of 0, nothing is lost: the rest of a float16 that is normal has 11
// bits, or its last place is 2^-22 of v.
__device__ __forceinline__ Pair split_pair(float first, float second) {
  Pair p;
  p.hi = pack_halves(first, second);
  constexpr float kLow = 1 << kSplitLow;
  // Both differences are exact.
  p.lo = pack_halves((first - low_half(p.hi)) * kLow, (second - high_half(p.hi)) * kLow);
  return p;
}

// What is lost of a scaled element, given its pieces; `v` is the element, which is not 0.
__device__ __forceinline__ float lost_of(float scaled, float hi, float lo) {
  constexpr float kLow = 1 << kSplitLow;
  // Gone without a trace, and perhaps without one in `scaled` either.
  if (hi == 0.0f && lo == 0.0f) return fmaxf(fabsf(scaled), 0x1p-60f);
  const float lost = fabsf(scaled - hi - lo / kLow);
  return lost <= fabsf(scaled) * 0x1p-22f ? 0.0f : lost;
}

// What a thread gathers about its part of a row.
struct RowSums {
  float norm = 0.0f, loss = 0.0f;  // squares
  float count = 0.0f;              // of elements above 2^-24 of the largest; float, to be reduced alike

  __device__ __forceinline__ void take(float scaled) {
    norm = fmaf(scaled, scaled, norm);
    if (fabsf(scaled) >= kSplitCounts) count += 1.0f;
  }
};

// Splits a quad of elements v, already scaled, and gathers: kStep 0 if they are of one row, 1 if each
// is of its own.
template <int kStep>
__device__ __forceinline__ void split_quad(const float (&v)[4], const float (&scaled)[4], uint2* hi,
                                           uint2* lo, RowSums* sums) {
  const Pair a = split_pair(scaled[0], scaled[1]), b = split_pair(scaled[2], scaled[3]);
  *hi = {a.hi, b.hi};
  *lo = {a.lo, b.lo};
  bool small = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[kStep * i].take(scaled[i]);
    small |= fabsf(scaled[i]) < kSplitWhole && v[i] != 0.0f;
  }
  if (!small) return;
  const float high[4] = {low_half(a.hi), high_half(a.hi), low_half(b.hi), high_half(b.hi)};
  const float low[4] = {low_half(a.lo), high_half(a.lo), low_half(b.lo), high_half(b.lo)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float lost = v[i] != 0.0f ? lost_of(scaled[i], high[i], low[i]) : 0.0f;
    sums[kStep * i].loss = fmaf(lost, lost, sums[kStep * i].loss);
  }
}

__device__ __forceinline__ float add(float a, float b) { return a + b; }

// NaN if either is: a row with a NaN has a NaN for its maximum.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

// Of a row's largest magnitude: false if the row is not finite. All its pieces are then made 0.
__device__ __forceinline__ bool is_finite(float largest) { return largest <= 3.402823466e38f; }

// By which exponent a row is scaled: that of its largest, but no smaller than that one factor does it.
// Nothing is lost below: scaled, the least subnormal is 2^-22.
__device__ __forceinline__ int row_exponent(float largest) {
  return is_finite(largest) ? max(exponent_of(largest), kSplitTop - 127) : 0;
}

__device__ __forceinline__ float scale_of(float largest) {
  return power_of_two(kSplitTop - row_exponent(largest));
}

// SplitOperand's undo of a row.
__device__ __forceinline__ float undo_of(const SplitRow& row) {
  const bool moderate = row.exponent >= -kSplitModerate && row.exponent <= kSplitModerate;
  if (!moderate || row.loss != 0.0f || (row.kind & kSplitFew)) return __int_as_float(0x7FFFFFFF);
  const float undo = power_of_two(row.exponent - kSplitTop);
  return row.kind & kSplitDominated ? -undo : undo;
}

// Returns the row's kind.
__device__ __forceinline__ int describe(const Split90Rows& args, int row, float largest,
                                        RowSums sums) {
  SplitRow detail{row_exponent(largest), sqrtf(sums.norm), sqrtf(sums.loss), 0};
  const float top = largest * scale_of(largest);
  const bool few = largest > 0.0f && sums.count < kSplitLeast;
  const bool dominated = 4.0f * top * top >= sums.norm && largest > 0.0f;
  const int seen = static_cast<int>(fminf(sums.count, kSplitLeast));
  detail.kind = (few ? kSplitFew : 0) | (dominated ? kSplitDominated : 0) | seen << kSplitSeen;
  if (!is_finite(largest)) detail.loss = __int_as_float(0x7F800000);
  // Rounding must not turn a loss into none, nor a bound into a smaller one.
  detail.norm *= 1.001f;
  detail.loss *= 1.001f;
  args.undo[row] = undo_of(detail);
  args.detail[row] = detail;
  return detail.kind;
}

}  // namespace fusepass
