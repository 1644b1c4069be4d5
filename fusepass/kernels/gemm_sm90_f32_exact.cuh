// Where the split is not good enough: which elements, and their float32 sums on the CUDA cores.
//
// An element is computed again, with all others of its consumer's 64 x 128, if what splitting may
// have lost reaches its own last place; if one product may outweigh all others, or there are only a
// few, for then a plain FMA chain is exact to half a place and three products of pieces are not; if
// intermediate sums may overflow, since inf - inf is NaN and must be; or if x or w is not finite.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_ptx.cuh"
#include "split_sm90.cuh"

namespace fusepass {

constexpr int kFragment = kSplitTile / 2;  // elements of a 64 x 128 tile a thread holds
using Fragment = float[kFragment];         // [unit of 8 columns][row + 8 h][column pair]

// Moves chain to total, but for what total cannot hold, where the next chain starts. Four additions,
// one of them to spare a register an element.
__device__ __forceinline__ void promote(Fragment& total, Fragment& chain) {
#pragma unroll
  for (int i = 0; i < kFragment; ++i) {
    const float moved = __fsub_rn(__fadd_rn(total[i], chain[i]), total[i]);
    const bool all = !is_finite(fabsf(moved));  // inf - inf is none of the data's
    total[i] = __fadd_rn(total[i], all ? chain[i] : moved);
    chain[i] = all ? 0.0f : __fsub_rn(chain[i], moved);
  }
}

constexpr int kSumChain = 64;  // of K that one float32 chain sums
constexpr int kSumRows = 64;   // of the tile of a consumer; its columns are kSplitTile

// What sum_tile keeps in shared memory: kSumDepth of K, transposed, of the rows of x and of w.
constexpr int kPitchX = kSumRows + 4, kPitchW = kSplitTile + 4;
static_assert(kSumDepth * (kPitchX + kPitchW) == kSumFloats);
constexpr int kPitchZ = 32 + 4;  // and in the end 32 columns of z
static_assert(kSumRows * kPitchZ <= kSumFloats);

// Four elements from k on, 0 from `end` on. Rows are 16-byte aligned where they are contiguous.
__device__ __forceinline__ float4 quad(const float* row, int64_t step, int k, int end) {
  if (step == 1 && k + 4 <= end) return *reinterpret_cast<const float4*>(row + k);
  const auto one = [&](int i) { return k + i < end ? row[(k + i) * step] : 0.0f; };
  return {one(0), one(1), one(2), one(3)};
}

// A thread's share of kRows rows on their way to shared memory: quads of K, four threads a row.
template <int kRows>
struct Strip {
  float4 v[kRows / 32];

  __device__ __forceinline__ void load(const SplitOperand& from, int first, int limit, int k,
                                       int end, int thread) {
#pragma unroll
    for (int i = 0; i < kRows / 32; ++i) {
      const int row = min(first + thread / 4 + 32 * i, limit - 1);
      v[i] = quad(from.raw + row * from.row_step, from.k_step, k + 4 * (thread % 4), end);
    }
  }

  __device__ __forceinline__ void store(float* to, int pitch, int thread) const {
    to += 4 * (thread % 4) * pitch + thread / 4;
#pragma unroll
    for (int i = 0; i < kRows / 32; ++i) {
      to[32 * i] = v[i].x;
      to[32 * i + pitch] = v[i].y;
      to[32 * i + 2 * pitch] = v[i].z;
      to[32 * i + 3 * pitch] = v[i].w;
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

__device__ __forceinline__ void four(const float* from, float* to) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// z = x w^T for the 64 x 128 elements of a consumer from (row, column) on, by FMAs: a CUDA-core GEMM
// of 128 threads, 8 x 8 elements each, which `room` turns into the order of wgmma's accumulators.
__device__ __forceinline__ void sum_tile(const Split90Args& args, Fragment& z, float* room, int row,
                                         int column, int barrier, int thread) {
  const int warp = thread / 32, lane = thread % 32;
  float* const x_room = room;
  float* const w_room = room + kSumDepth * kPitchX;
  // Rows `down` + 0..3 and + 16..19, columns `right` + 0..3 and + 32..35.
  const int down = warp / 2 * 32 + lane / 8 * 4, right = warp % 2 * 64 + lane % 8 * 4;
  Fragment total = {}, chain = {};  // [row][column]
  Strip<kSumRows> x;
  Strip<kSplitTile> w;
  x.load(args.x, row, args.m, 0, args.k, thread);
  w.load(args.w, column, args.gemm.n, 0, args.k, thread);
#pragma unroll 1
  for (int k = kSumDepth; k < args.k + kSumDepth; k += kSumDepth) {
    x.store(x_room, kPitchX, thread);
    w.store(w_room, kPitchW, thread);
    barrier_sync(barrier, 128);
    x.load(args.x, row, args.m, k, args.k, thread);
    w.load(args.w, column, args.gemm.n, k, args.k, thread);
#pragma unroll
    for (int i = 0; i < kSumDepth; ++i) {
      float a[8], b[8];
      four(x_room + i * kPitchX + down, a);
      four(x_room + i * kPitchX + down + 16, a + 4);
      four(w_room + i * kPitchW + right, b);
      four(w_room + i * kPitchW + right + 32, b + 4);
#pragma unroll
      for (int e = 0; e < kFragment; ++e) chain[e] = __fmaf_rn(a[e / 8], b[e % 8], chain[e]);
    }
    if (k % kSumChain == 0) promote(total, chain);
    barrier_sync(barrier, 128);
  }
#pragma unroll
  for (int e = 0; e < kFragment; ++e) total[e] = __fadd_rn(total[e], chain[e]);
#pragma unroll
  for (int part = 0; part < kSplitTile / 32; ++part) {
    if (warp % 2 == part / 2) {
#pragma unroll
      for (int p = 0; p < 8; ++p) {
        const float* v = total + 8 * p + part % 2 * 4;
        *reinterpret_cast<float4*>(room + (down + p % 4 + p / 4 * 16) * kPitchZ + lane % 8 * 4) = {
            v[0], v[1], v[2], v[3]};
      }
    }
    barrier_sync(barrier, 128);
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // units of 8 columns, rows 8 apart
      const int r = warp * 16 + lane / 4 + i % 2 * 8;
      const float2 v = *reinterpret_cast<const float2*>(room + r * kPitchZ + i / 2 * 8 +
                                                        lane % 4 * 2);
      z[16 * part + 4 * (i / 2) + i % 2 * 2] = v.x;
      z[16 * part + 4 * (i / 2) + i % 2 * 2 + 1] = v.y;
    }
    barrier_sync(barrier, 128);
  }
}

// `total` is the scaled sum of products.
__device__ __forceinline__ bool is_unsafe(const SplitRow& x, const SplitRow& w, float x_undo,
                                          float w_undo, float total) {
  if (x.few != 0 || w.few != 0 || (x_undo < 0.0f && w_undo < 0.0f)) return true;
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
  const float x_undo[2] = {args.x.undo[rows[0]], args.x.undo[rows[1]]};
  bool unsafe = false;
#pragma unroll
  for (int i = 0; i < kSplitTile / 4; ++i) {
    const int n = column + 8 * (i / 2) + i % 2, inside = min(n, args.gemm.n - 1);
    const SplitRow w = args.w.detail[inside];
    const float w_undo = args.w.undo[inside];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& v = z[4 * (i / 2) + 2 * h + i % 2];
      // Rows and columns beyond the edge hold another's sums: they decide nothing.
      if (row + 8 * h < args.m && n < args.gemm.n) {
        unsafe |= is_unsafe(x[h], w, x_undo[h], w_undo, v);
      }
      v = Scale(max(x[h].exponent + w.exponent - 2 * kSplitTop, -250))(v);
    }
    asm volatile("" ::: "memory");  // one column at a time: fewer registers
  }
  return unsafe;
}

}  // namespace fusepass
