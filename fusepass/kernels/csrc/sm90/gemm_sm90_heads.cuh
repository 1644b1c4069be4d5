// Columns of heads: what a program reads of a column's partner, and of where the column lies in its head.
// Of each unit of 8 columns a thread has columns 2 (lane % 4) and the next, of row lane / 4 and of the
// row 8 below: acc[4 * unit + i]. A row's other columns are those of the lanes beside it, of its four.
#pragma once
#include "gemm_sm90_tile.cuh"

namespace fusepass {

constexpr int kHalf = kExchanged / 2;

// What is kHalf columns on from number `i` of `unit`, or, kBack, kHalf columns back; anything where that
// is outside of the tile.
template <bool kBack, int kCount>
__device__ __forceinline__ float partner(const float (&acc)[kCount], int unit, int i) {
  constexpr int kLast = kCount / 4 - 1, kLanes = kHalf % 8 / 2;
  const int near = kBack ? unit - kHalf / 8 : unit + kHalf / 8, far = kBack ? near - 1 : near + 1;
  const float a = acc[4 * max(0, min(kLast, near)) + i];
  if constexpr (kLanes == 0) {
    return a;
  } else {
    const float b = acc[4 * max(0, min(kLast, far)) + i];
    // A lane's partner is so many lanes on, behind the last one in the next unit.
    const int lane = threadIdx.x % 4;
    const bool in_far = kBack ? lane >= 4 - kLanes : lane < kLanes;
    return __shfl_sync(~0u, in_far ? b : a, (kBack ? lane + 4 - kLanes : lane + kLanes) % 4, 4);
  }
}

// The four numbers of `unit` with halves exchanged, and the first of them negated: neighbours, or those
// of each head's first kExchanged columns, beside which the others are as they are.
template <class Batch, int kCount>
__device__ __forceinline__ void set_rot(Batch& batch, const float (&acc)[kCount], int unit) {
  if constexpr (kExchanged == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) batch.rot[i] = i % 2 ? acc[4 * unit + i - 1] : -acc[4 * unit + i + 1];
  } else if constexpr (kExchanged > 0) {
    const int place = unit % (kHead / 8) * 8, column = place + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float v = acc[4 * unit + i];
      if (place + 8 > kHalf && place < kExchanged) {
        const float other = partner<true>(acc, unit, i);
        if (place + 8 <= kExchanged || column < kExchanged) v = other;
      }
      if (place < kHalf) {
        const float other = partner<false>(acc, unit, i);
        if (place + 8 <= kHalf || column < kHalf) v = -other;
      }
      batch.rot[i] = v;
    }
  }
}

// 1 in each head's first kFirst columns, and 0 in the others.
template <class Batch>
__device__ __forceinline__ void set_first(Batch& batch, int unit) {
  if constexpr (kFirst > 0) {
    const int place = unit % (kHead / 8) * 8, column = place + 2 * (threadIdx.x % 4);
    const bool first = place < kFirst && (place + 8 <= kFirst || column < kFirst);
#pragma unroll
    for (int i = 0; i < 4; ++i) batch.first[i] = first ? 1.0f : 0.0f;
  }
}

}  // namespace fusepass
