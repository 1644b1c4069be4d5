// The same in float32, every product and every sum an FMA: as exact as a sum in this order can be, and
// for so few rows still bound by the weight's bytes. Of a long K a lane's sum is in two levels, so that
// its error grows with the root of a few terms instead of with that of all: after kChain products it is
// added to the sums before it, and begins anew.
#include "common/gemm.h"

namespace fusepass {
using Element = float;
constexpr DType kDType = DType::kFloat32;
}  // namespace fusepass

#include "few_rows_walk.cuh"

namespace fusepass {

constexpr int kChain = FUSEPASS_CHAIN;
static_assert((kRows & (kRows - 1)) == 0 && kBatch % 8 == 0);

// A lane's part of K of kColumns columns by kRows rows of x. The four lanes of a group have other parts
// of K of the same; in the end each has the whole sums of a quarter of them.
struct ProductsF32 {
  static constexpr int kColumns = kBatch / 8, kSums = kColumns * kRows;
  static constexpr int kMine = kSums / 4, kWidth = kMine < 4 ? kMine : 4, kJobs = kMine / kWidth;
  static_assert(kSums % 4 == 0 && kMine % kWidth == 0);

  static constexpr int kChainSteps = kChain / (kVector * kDepth);
  static_assert(kChain % (kVector * kDepth) == 0);

  struct Sums {
    float v[kWeights][kSums];  // column * kRows + row
    float before[kWeights][kChain > 0 ? kSums : 1];  // of the same, the chains that have ended
  };

  __device__ static __forceinline__ float number(const uint4& v, int i) {
    return __uint_as_float(i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w);
  }

  __device__ static __forceinline__ void multiply(const Lane& lane, Sums& sums, const Step& of,
                                                  int step) {
    const int first = lane.first_k(step);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const uint4 x = lane.load_x(row, first + d * kGroupK);
#pragma unroll
        for (int w = 0; w < kWeights; ++w) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            float& sum = sums.v[w][c * kRows + row];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              const float a = kWIsKN ? number(of.w[w][d][k], c) : number(of.w[w][d][c], k);
              sum = fmaf(a, number(x, k), sum);
            }
          }
        }
      }
    }
    if constexpr (kChain > 0) {
      if (step % kChainSteps == kChainSteps - 1) end_chains(sums);
    }
  }

  __device__ static __forceinline__ void end_chains(Sums& sums) {
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        sums.before[w][i] += sums.v[w][i];
        sums.v[w][i] = 0.0f;
      }
    }
  }

  // Adds the four lanes' parts: each lane gives away what it does not keep, first half, then a quarter.
  __device__ static __forceinline__ void share(const Lane& lane, Sums& sums) {
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      float* const v = sums.v[w];
      if constexpr (kChain > 0) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) v[i] += sums.before[w][i];
      }
      exchange<kSums / 2>(v, lane.member & 2, 2);
      exchange<kSums / 4>(v, lane.member & 1, 1);
    }
  }

  // Keeps the upper or the lower `kKept` of twice as many, with the partner's of the same added.
  template <int kKept>
  __device__ static __forceinline__ void exchange(float* v, bool upper, int partner) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const float low = v[i], high = v[i + kKept];
      const float theirs = __shfl_xor_sync(~0u, upper ? low : high, partner);
      v[i] = (upper ? high : low) + theirs;
    }
  }

  __device__ static __forceinline__ void collect(const Sums& sums, int w, int job,
                                                 float (&to)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to[i] = sums.v[w][job * kWidth + i];
  }

  __device__ static __forceinline__ Places<kWidth> places(const Lane& lane, int batch, int job) {
    Places<kWidth> at;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const int sum = lane.member * kMine + job * kWidth + i;
      at.row[i] = sum % kRows;
      at.column[i] = lane.column(batch, sum / kRows);
      at.inside[i] = at.row[i] < lane.args.m && at.column[i] < lane.args.n;
    }
    return at;
  }
};

}  // namespace fusepass

FUSEPASS_FEW_ROWS_KERNEL fusepass_few_rows(const __grid_constant__ fusepass::FewRowsArgs args) {
  fusepass::run_few_rows<fusepass::ProductsF32>(args);
}
