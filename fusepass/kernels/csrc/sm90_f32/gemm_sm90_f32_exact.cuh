// Where the split is not good enough: which elements, and their sums in float64.
//
// An element is computed again, with all others of its consumer's 64 rows of the tile, if what
// splitting may have lost reaches its own last place; if one product may outweigh all others, or
// there are only a few, for then a plain FMA chain is exact to half a place and three products of
// pieces are not; if intermediate sums may overflow, since inf - inf is NaN and must be; or if x or w
// is not finite. Products of float32s are exact in float64, so the result is rounded once: no
// float32 is closer. Where nothing but rows of few elements is unsafe, gemm_sm90_f32_few.cuh sums these
// rows alone.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_f32_few.cuh"
#include "sm90/gemm_sm90_ptx.cuh"
#include "sm90/gemm_sm90_tile.cuh"
#include "split_sm90.cuh"

namespace fusepass {

constexpr int kFragment = kTileN / 2;  // elements of 64 rows of the tile a thread holds
using Fragment = float[kFragment];     // [unit of 8 columns][row + 8 h][column pair]

constexpr int kSumSpan = 64;          // of K, after which a sum is looked at
constexpr int kSumRows = kGroupRows;  // of the tile of a consumer; its columns are kTileN

// What sum_products keeps in shared memory: kSumDepth of K, transposed, of the rows of x and of w.
constexpr int kPitchX = kSumRows + kSumPad, kPitchW = kTileN + kSumPad;

// Four elements of a row from k on, 0 from `end` on.
__device__ __forceinline__ float4 quad(const SplitOperand& from, int row, int k, int end) {
  const float* const first = from.raw + row * from.row_step + k * from.k_step;
  if (from.quads && k + 4 <= end) return *reinterpret_cast<const float4*>(first);
  const auto one = [&](int i) { return k + i < end ? first[i * from.k_step] : 0.0f; };
  return {one(0), one(1), one(2), one(3)};
}

// A thread's share of kRows rows on their way to shared memory: quads of K, two threads a row.
template <int kRows>
struct Strip {
  static_assert(kSumDepth == 8);
  float4 v[kRows / 64];

  __device__ __forceinline__ void load(const SplitOperand& from, int first, int limit, int k,
                                       int end, int thread) {
#pragma unroll
    for (int i = 0; i < kRows / 64; ++i) {
      const int row = min(first + thread / 2 + 64 * i, limit - 1);
      v[i] = quad(from, row, k + 4 * (thread % 2), end);
    }
  }

  __device__ __forceinline__ void store(double* to, int pitch, int thread) const {
    to += 4 * (thread % 2) * pitch + thread / 2;
#pragma unroll
    for (int i = 0; i < kRows / 64; ++i) {
      to[64 * i] = v[i].x;
      to[64 * i + pitch] = v[i].y;
      to[64 * i + 2 * pitch] = v[i].z;
      to[64 * i + 3 * pitch] = v[i].w;
    }
  }
};

// Whether `mine` is true in any of the threads that meet at the barrier.
__device__ __forceinline__ bool barrier_any(int id, int threads, bool mine) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred mine, any;\n"
      "setp.ne.u32 mine, %3, 0;\n"
      "barrier.cta.red.or.pred.aligned any, %1, %2, mine;\n"
      "selp.u32 %0, 1, 0, any;\n}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(uint32_t{mine})
      : "memory");
  return any != 0;
}

// sum (16 x 8 of a warp, in the accumulators' order) += x (16 x 4) * w (4 x 8): a lane gives x's rows
// lane / 4 and + 8 and w's column lane / 4, all at the k of lane % 4.
__device__ __forceinline__ void multiply_add(double* sum, double x, double x_below, double w) {
  asm("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
      : "d"(x), "d"(x_below), "d"(w));
}

// A sum that no float32 could hold on its way is infinite, as it would have been there.
__device__ __forceinline__ void overflow(double& sum) {
  constexpr double kMost = 0x1.ffffffp127;  // rounds to infinity
  if (fabs(sum) >= kMost) sum *= __longlong_as_double(0x7FF0000000000000);
}

// x w^T from `first` up to `end` of K, multiples of kSumSpan but for the last, and `bias` if it is not null, of the 64 rows and a tile's columns
// from (row, column) on, 16 rows a warp, by the 128 threads of a barrier.
__device__ __forceinline__ void sum_products(const Split90Args& args, double (&total)[kFragment],
                                             const float* bias, double* room, int row, int column,
                                             int first, int end, int barrier, int thread) {
  constexpr int kUnits = kTileN / 8;
  const int warp = thread / 32, lane = thread % 32;
  double* const x_room = room;
  double* const w_room = room + kSumDepth * kPitchX;
  const double* const x_mine = x_room + lane % 4 * kPitchX + warp * 16 + lane / 4;
  const double* const w_mine = w_room + lane % 4 * kPitchW + lane / 4;
#pragma unroll
  for (int e = 0; e < kFragment; ++e) {
    total[e] = bias != nullptr ? bias[8 * (e / 4) + lane % 4 * 2 + e % 2] : 0.0f;
  }
  Strip<kSumRows> x;
  Strip<kTileN> w;
  x.load(args.x, row, args.m, first, args.k, thread);
  w.load(args.w, column, args.gemm.n, first, args.k, thread);
#pragma unroll 1
  for (int k = first + kSumDepth; k < end + kSumDepth; k += kSumDepth) {
    x.store(x_room, kPitchX, thread);
    w.store(w_room, kPitchW, thread);
    barrier_sync(barrier, 128);
    x.load(args.x, row, args.m, k, args.k, thread);
    w.load(args.w, column, args.gemm.n, k, args.k, thread);
#pragma unroll
    for (int i = 0; i < kSumDepth; i += 4) {
      const double above = x_mine[i * kPitchX], below = x_mine[i * kPitchX + 8];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        multiply_add(total + 4 * u, above, below, w_mine[i * kPitchW + 8 * u]);
      }
    }
    if (k % kSumSpan == 0) {
#pragma unroll
      for (int e = 0; e < kFragment; ++e) overflow(total[e]);
    }
    barrier_sync(barrier, 128);
  }
}

// What must be summed again on account of an element: nothing, its row that has few elements, or the
// group.
enum Verdict { kKeep = 0, kMend = 1, kSumAgain = 2 };

// `total` is the scaled sum of products.
__device__ __forceinline__ Verdict judge(const SplitRow& x, const SplitRow& w, float total) {
  constexpr float kMost = 3.402823466e38f;
  const float bound = x.loss * w.norm + x.norm * w.loss;
  const int size = exponent_of(x.norm) + exponent_of(w.norm) + 2;
  if (size + x.exponent + w.exponent - 2 * kSplitTop >= 126) return kSumAgain;
  if ((x.kind | w.kind) & kSplitFew) return bound <= kMost ? kMend : kSumAgain;  // NaN: the latter
  const bool lossy = !(fabsf(total) >= bound * 0x1p24f);  // NaN too
  return lossy || (x.kind & w.kind & kSplitDominated) ? kSumAgain : kKeep;
}

// Scales z back, and says what the worst of the thread's elements asks for.
__device__ __forceinline__ int unscale_and_judge(const Split90Args& args, Fragment& z, int row,
                                                 int tile_column, int lane) {
  const int column = tile_column + 2 * (lane % 4);
  const int rows[2] = {min(row, args.m - 1), min(row + 8, args.m - 1)};
  const SplitRow x[2] = {args.x.detail[rows[0]], args.x.detail[rows[1]]};
  int verdict = kKeep;
#pragma unroll
  for (int i = 0; i < kTileN / 4; ++i) {
    const int n = column + 8 * (i / 2) + i % 2, inside = min(n, args.gemm.n - 1);
    const SplitRow w = args.w.detail[inside];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& v = z[4 * (i / 2) + 2 * h + i % 2];
      // Rows and columns beyond the edge hold another's sums: they decide nothing.
      if (row + 8 * h < args.m && n < args.gemm.n) {
        verdict = max(verdict, static_cast<int>(judge(x[h], w, v)));
      }
      v = Scale(max(x[h].exponent + w.exponent - 2 * kSplitTop, -250))(v);
    }
    asm volatile("" ::: "memory");  // one column at a time: fewer registers
  }
  return verdict;
}

}  // namespace fusepass
