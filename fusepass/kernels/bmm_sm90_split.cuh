// Splitting 64 rows by 64 K of a float32 operand into two float16 pieces, by the 128 threads of a
// warpgroup, in registers. Each row is scaled by a power of two of its own in each 64 of K.
//
// A thread has rows `row` and row + 8 of its warp's 16, and of each 16 of K four that lie together: that is
// wgmma's order of an A operand but for the order of K within the 16, which both operands share.
#pragma once
#include "bmm_sm90_args.h"
#include "split_sm90.cuh"

namespace fusepass {

constexpr int kBmmLeast = -64, kBmmMost = 54;  // exponents by which a row is scaled

// 64 rows by 64 K, a thread's share.
struct Block64 {
  float v[2][16];

  // `row` is the thread's first; rows from `limit` on are the last, elements from k_end on 0. kQuads:
  // four of K that lie together are one aligned read, and k_end is a multiple of 4.
  template <bool kQuads>
  __device__ __forceinline__ void load(const BatchedOperand& from, int batch, int row, int limit,
                                       int k, int k_end, int lane) {
    const float* const matrix = from.data + batch * from.batch_stride;
    k += 4 * (lane % 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int place = min(row + 8 * h, limit - 1) * from.row_stride + k * from.k_stride;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float* const to = v[h] + 4 * j;
        if (kQuads) {
          float4 quad = {0.0f, 0.0f, 0.0f, 0.0f};
          if (k + 16 * j < k_end) quad = *reinterpret_cast<const float4*>(matrix + place + 16 * j);
          to[0] = quad.x, to[1] = quad.y, to[2] = quad.z, to[3] = quad.w;
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            to[i] = k + 16 * j + i < k_end ? matrix[place] : 0.0f;
            place += (i < 3 ? 1 : 13) * from.k_stride;
            asm volatile("" : "+r"(place));  // one place after the other: fewer registers
          }
        }
      }
    }
  }
};

// The pieces of a Block64: of 16 K the rows `row` and row + 8 at the first two of K, then at the others.
struct Pieces64 {
  uint32_t high[4][4], low[4][4];
};

// What a row says about its products (gemm_sm90_f32_exact.cuh has the reasons).
enum RowKind {
  kRowAgain = 1,      // sums with it are computed again: few elements, too large, or not finite
  kRowDominated = 2,  // one element holds a quarter of the row's square sum
  kRowLossy = 4,      // some elements lost digits
  kRowLarge = 8,      // too large, or not finite
};

struct RowVerdict {
  float norm1;  // no less than the sum of the magnitudes
  float loss;   // no less than what any element lost
  int kind;
};

// Facts of a row, gathered over all of K, 64 at a time.
struct RowFacts {
  float largest, count, squares, loss;

  __device__ __forceinline__ void reset() { largest = count = squares = loss = 0.0f; }

  // Looks at 64 of K, of which each of four lanes has 16. Returns the exponent to scale them by.
  __device__ __forceinline__ int take(const float (&v)[16]) {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) most = max_or_nan(most, fabsf(v[i]));
    most = max_or_nan(most, __shfl_xor_sync(~0u, most, 1));
    most = max_or_nan(most, __shfl_xor_sync(~0u, most, 2));
    // What counts is above 2^-24 of the row's largest, which is not known yet: it is counted by 2^-20
    // of the largest so far, and from the start where that leaves its four binades.
    const float before = largest;
    largest = max_or_nan(largest, most);
    if ((__float_as_int(before) ^ __float_as_int(largest)) >> 25 != 0) count = 0.0f;
    const float counts = fmaxf(largest * 0x1p-20f, 0x1p-126f);
    const int e = min(max((__float_as_int(most) >> 23) - 127, kBmmLeast), kBmmMost);
    const float whole = power_of_two(e - 28);
    bool lossy = false;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float magnitude = fabsf(v[i]);
      count += magnitude >= counts ? 1.0f : 0.0f;
      squares = fmaf(v[i], v[i], squares);
      lossy |= magnitude < whole && magnitude != 0.0f;
    }
    // Scaled by 2^(14 - e), low pieces end at 2^-35.
    if (lossy) loss = fmaxf(loss, power_of_two(e - 50));
    return e;
  }

  // Of the four lanes together.
  __device__ __forceinline__ RowVerdict verdict(int k) const {
    float all_count = count, all_squares = squares, all_loss = loss;
#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
      all_count += __shfl_xor_sync(~0u, all_count, d);
      all_squares += __shfl_xor_sync(~0u, all_squares, d);
      all_loss = fmaxf(all_loss, __shfl_xor_sync(~0u, all_loss, d));
    }
    const bool is_large = !(largest < power_of_two(kBmmMost + 1));  // NaN too
    const bool dominated = largest > 0.0f && 4.0f * largest * largest >= all_squares;
    // Beside one that outweighs the others it takes more of them for eager to err as much.
    const bool few = largest > 0.0f && all_count < (dominated ? 4 * kSplitLeast : kSplitLeast);
    const float count_k = static_cast<float>(k);
    // By Cauchy and Schwarz; squares of less than 2^-74 may have vanished.
    const float norm1 = 1.001f * sqrtf(count_k * all_squares) + count_k * 0x1p-74f;
    const int kind = (is_large || few ? kRowAgain : 0) | (dominated ? kRowDominated : 0) |
                     (all_loss > 0.0f ? kRowLossy : 0) | (is_large ? kRowLarge : 0);
    return {norm1, all_loss, kind};
  }
};

// Splits a block; back[h] undoes the scale of row h.
__device__ __forceinline__ void split_block(const Block64& block, RowFacts (&facts)[2],
                                            Pieces64& pieces, float (&back)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int e = facts[h].take(block.v[h]);
    const float scale = power_of_two(kSplitTop - e);
    back[h] = power_of_two(e - kSplitTop);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* const v = block.v[h] + 4 * j;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Pair p = split_pair(v[2 * i] * scale, v[2 * i + 1] * scale);
        pieces.high[j][2 * i + h] = p.hi;
        pieces.low[j][2 * i + h] = p.lo;
      }
    }
  }
}

}  // namespace fusepass
