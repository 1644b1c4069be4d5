// Where the split is not good enough: which elements, and their sums in float64 on the CUDA cores.
//
// An element is computed again, with all others of its consumer's 64 rows of the tile, if what
// splitting may have lost reaches its own last place; if one product may outweigh all others, or
// there are only a few, for then a plain FMA chain is exact to half a place and three products of
// pieces are not; if intermediate sums may overflow, since inf - inf is NaN and must be; or if x or w
// is not finite. Products of float32s are exact in float64, so the result is rounded once: no
// float32 is closer.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"
#include "split_sm90.cuh"

namespace fusepass {

constexpr int kFragment = kTileN / 2;  // elements of 64 rows of the tile a thread holds
using Fragment = float[kFragment];     // [unit of 8 columns][row + 8 h][column pair]

constexpr int kSumRows = 64;  // of the tile of a consumer; its columns are kTileN
constexpr int kHeight = 8, kWidth = kTileN / 16;  // of z, what a thread sums

// What sum_tile keeps in shared memory: kSumDepth of K, transposed, of the rows of x and of w; in
// the end 32 columns of z.
constexpr int kPitchX = kSumRows + kSumPad, kPitchW = kTileN + kSumPad, kPitchZ = 32 + kSumPad;

// Four elements from k on, 0 from `end` on. Rows are 16-byte aligned where they are contiguous.
__device__ __forceinline__ float4 quad(const float* row, int64_t step, int k, int end) {
  if (step == 1 && k + 4 <= end) return *reinterpret_cast<const float4*>(row + k);
  const auto one = [&](int i) { return k + i < end ? row[(k + i) * step] : 0.0f; };
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
      v[i] = quad(from.raw + row * from.row_step, from.k_step, k + 4 * (thread % 2), end);
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

__device__ __forceinline__ void four(const double* from, double* to) {
  const double2 a = *reinterpret_cast<const double2*>(from);
  const double2 b = *reinterpret_cast<const double2*>(from + 2);
  to[0] = a.x, to[1] = a.y, to[2] = b.x, to[3] = b.y;
}

// A sum that no float32 could hold on its way is infinite, as it would have been there.
__device__ __forceinline__ void overflow(double& sum) {
  constexpr double kMost = 0x1.ffffffp127;  // rounds to infinity
  if (fabs(sum) >= kMost) sum *= __longlong_as_double(0x7FF0000000000000);
}

// z = x w^T + bias for a consumer's part of the tile from (row, column) on: a CUDA-core GEMM of 128
// threads, 8 x kWidth elements each, which `room` turns into the order of wgmma's accumulators.
__device__ __forceinline__ void sum_tile(const Split90Args& args, Fragment& z, const float* bias,
                                         double* room, int row, int column, int barrier,
                                         int thread) {
  const int warp = thread / 32, lane = thread % 32;
  double* const x_room = room;
  double* const w_room = room + kSumDepth * kPitchX;
  // Rows `down` + 0..3 and + 16..19, columns `right` + 0..3 and, of wide tiles, + 32..35.
  const int down = warp / 2 * 32 + lane / 8 * 4, right = warp % 2 * (kTileN / 2) + lane % 8 * 4;
  double total[kFragment];  // [row][column]
#pragma unroll
  for (int e = 0; e < kFragment; ++e) total[e] = bias[right + e % kWidth % 4 + e % kWidth / 4 * 32];
  Strip<kSumRows> x;
  Strip<kTileN> w;
  x.load(args.x, row, args.m, 0, args.k, thread);
  w.load(args.w, column, args.gemm.n, 0, args.k, thread);
#pragma unroll 1
  for (int k = kSumDepth; k < args.k + kSumDepth; k += kSumDepth) {
    x.store(x_room, kPitchX, thread);
    w.store(w_room, kPitchW, thread);
    barrier_sync(barrier, 128);
    x.load(args.x, row, args.m, k, args.k, thread);
    w.load(args.w, column, args.gemm.n, k, args.k, thread);
#pragma unroll 2  // of more, loads run ahead and registers out
    for (int i = 0; i < kSumDepth; ++i) {
      double a[kHeight], b[4];
      four(x_room + i * kPitchX + down, a);
      four(x_room + i * kPitchX + down + 16, a + 4);
#pragma unroll
      for (int first = 0; first < kWidth; first += 4) {
        four(w_room + i * kPitchW + right + 8 * first, b);
#pragma unroll
        for (int e = 0; e < 4 * kHeight; ++e) {
          double& sum = total[e / 4 * kWidth + first + e % 4];
          sum = fma(a[e / 4], b[e % 4], sum);
        }
      }
    }
    if (k % 64 == 0) {
#pragma unroll
      for (int e = 0; e < kFragment; ++e) overflow(total[e]);
    }
    barrier_sync(barrier, 128);
  }
  float* const turned = reinterpret_cast<float*>(room);
#pragma unroll
  for (int part = 0; part < kTileN / 32; ++part) {
    if (warp % 2 == part / (kTileN / 64)) {
#pragma unroll
      for (int p = 0; p < kHeight; ++p) {
        const double* v = total + kWidth * p + part % (kTileN / 64) * 4;
        float* to = turned + (down + p % 4 + p / 4 * 16) * kPitchZ + lane % 8 * 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = static_cast<float>(v[i]);
      }
    }
    barrier_sync(barrier, 128);
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // units of 8 columns, rows 8 apart
      const int r = warp * 16 + lane / 4 + i % 2 * 8;
      const float2 v = *reinterpret_cast<const float2*>(turned + r * kPitchZ + i / 2 * 8 +
                                                        lane % 4 * 2);
      z[16 * part + 4 * (i / 2) + i % 2 * 2] = v.x;
      z[16 * part + 4 * (i / 2) + i % 2 * 2 + 1] = v.y;
    }
    barrier_sync(barrier, 128);
  }
}

// `total` is the scaled sum of products.
__device__ __forceinline__ bool is_unsafe(const SplitRow& x, const SplitRow& w, float total) {
  if (((x.kind | w.kind) & kSplitFew) || (x.kind & w.kind & kSplitDominated)) return true;
  const float bound = x.loss * w.norm + x.norm * w.loss;
  if (!(fabsf(total) >= bound * 0x1p24f)) return true;  // NaN too
  const int size = exponent_of(x.norm) + exponent_of(w.norm) + 2;
  return size + x.exponent + w.exponent - 2 * kSplitTop >= 126;
}

// Scales z back, and says whether one of the thread's elements is unsafe.
__device__ __forceinline__ bool unscale_and_judge(const Split90Args& args, Fragment& z, int row,
                                                  int tile_column, int lane) {
  const int column = tile_column + 2 * (lane % 4);
  const int rows[2] = {min(row, args.m - 1), min(row + 8, args.m - 1)};
  const SplitRow x[2] = {args.x.detail[rows[0]], args.x.detail[rows[1]]};
  bool unsafe = false;
#pragma unroll
  for (int i = 0; i < kTileN / 4; ++i) {
    const int n = column + 8 * (i / 2) + i % 2, inside = min(n, args.gemm.n - 1);
    const SplitRow w = args.w.detail[inside];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& v = z[4 * (i / 2) + 2 * h + i % 2];
      // Rows and columns beyond the edge hold another's sums: they decide nothing.
      if (row + 8 * h < args.m && n < args.gemm.n) {
        unsafe |= is_unsafe(x[h], w, v);
      }
      v = Scale(max(x[h].exponent + w.exponent - 2 * kSplitTop, -250))(v);
    }
    asm volatile("" ::: "memory");  // one column at a time: fewer registers
  }
  return unsafe;
}

}  // namespace fusepass
