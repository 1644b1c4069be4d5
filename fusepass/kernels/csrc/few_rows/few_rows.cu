// out = epilogue(x @ w^T + bias) in 16 bits for a few rows of x: every byte of the weight is read once,
// straight into the registers of mma.sync, whose rows are the weight's and whose columns are x's rows.
#include "common/gemm.h"

namespace fusepass {
using Element = uint16_t;
constexpr DType kDType = FUSEPASS_BF16 ? DType::kBFloat16 : DType::kFloat16;
}  // namespace fusepass

#include "few_rows_mma.cuh"
#include "few_rows_walk.cuh"

namespace fusepass {

static_assert(kRows % 8 == 0 && kBatch % 16 == 0 && !kWIsKN);

// Tiles of 16 columns by units of 8 rows of x.
struct Products16 {
  static constexpr int kTiles = kBatch / 16, kUnits = kRows / 8;
  static constexpr int kJobs = kTiles * kUnits, kWidth = 4;

  struct Sums {
    float v[kWeights][kJobs][4];
  };

  __device__ static __forceinline__ void multiply(const Lane& lane, Sums& sums, const Step& of,
                                                  int step) {
    const int first = lane.first_k(step);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      uint4 x[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) x[u] = lane.load_x(8 * u + lane.group, first + d * kGroupK);
#pragma unroll
      for (int w = 0; w < kWeights; ++w) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int u = 0; u < kUnits; ++u) {
            multiply_tile(sums.v[w][tile * kUnits + u], of.w[w][d], tile, x[u]);
          }
        }
      }
    }
  }

  // Rows `group` and `group` + 8 of a tile are two loads, each with 8 of K.
  __device__ static __forceinline__ void multiply_tile(float (&sum)[4], const uint4 (&w)[kLoads],
                                                       int tile, const uint4& x) {
    const uint4 &upper = w[2 * tile], &lower = w[2 * tile + 1];
    mma(sum, upper.x, lower.x, upper.y, lower.y, x.x, x.y);
    mma(sum, upper.z, lower.z, upper.w, lower.w, x.z, x.w);
  }

  __device__ static __forceinline__ void share(const Lane&, Sums&) {}

  __device__ static __forceinline__ void collect(const Sums& sums, int w, int job, float (&to)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = sums.v[w][job][i];
  }

  __device__ static __forceinline__ Places<4> places(const Lane& lane, int batch, int job) {
    Places<4> at;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      at.row[i] = 8 * (job % kUnits) + 2 * lane.member + i % 2;
      at.column[i] = lane.column(batch, 2 * (job / kUnits) + i / 2);
      at.inside[i] = at.row[i] < lane.args.m && at.column[i] < lane.args.n;
    }
    return at;
  }
};

}  // namespace fusepass

FUSEPASS_FEW_ROWS_KERNEL fusepass_few_rows(const __grid_constant__ fusepass::FewRowsArgs args) {
  fusepass::run_few_rows<fusepass::Products16>(args);
}
