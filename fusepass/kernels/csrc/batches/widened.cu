// Batches of float32 matrices that were widened from bfloat16: their products are exact in float32, so
// that one product of 16-bit tensor cores has all of their digits, and only sums are rounded.
//
// A tensor core cuts addends two bits below the last place of the largest, and its sum to float32. Over
// all of K that is more than float32's own rounding. So of every 8 of K, the fewest that an instruction
// takes, a sum p starts from 0; a second instruction, p minus the same products, gives what p was cut by,
// which is added up apart. Two sums p meet before they are added to those before them. (float16's subnormals
// are aligned as if they were normal numbers, and lose their digits.)
//
// A block computes 128 rows by some tiles of 64 columns: x's rows stay in shared memory, of w the next
// tile arrives while one is multiplied. Four warps have 32 rows each, and 16 columns at a time.
#include <cstdint>

#include "widened_args.h"
#include "widened_ptx.cuh"

namespace fusepass {
namespace {

constexpr int kRows = kWidenedRows, kColumns = kWidenedColumns, kThreads = kWidenedThreads;
constexpr int kStrip = 16;  // columns that a warp has at a time
static_assert(kRows == kThreads && kColumns % kStrip == 0);

// Where column c of 16 stands in shared memory: a lane then has four columns beside one another.
__device__ __forceinline__ int place_of(int c) {
  return (c & ~15) | (c & 2) << 2 | (c & 12) >> 1 | (c & 1);
}

// Copies `count` rows of K from `first` on, of which `rows` there are; the rest, and K up to the next 16,
// is zero.
template <int kCount, bool kPlaced>
__device__ __forceinline__ void copy_rows(uint32_t to, const WidenedMatrices& from,
                                          const uint16_t* base, int first, int rows, int k, int pitch) {
  const int units = (k + 15) / 16 * 2;
  const int row_step = kThreads / units, unit_step = kThreads % units;
  int row = threadIdx.x / units, unit = threadIdx.x % units;
  while (row < kCount) {
    const bool there = first + row < rows && unit * 8 < k;
    const uint16_t* const at = there ? base + (first + row) * from.row + unit * 8 : base;
    copy_async(to + (kPlaced ? place_of(row) : row) * pitch + unit * 16, at, there);
    row += row_step, unit += unit_step;
    if (unit >= units) unit -= units, ++row;
  }
}

struct Sums {
  float high[2][kStrip / 8][4], rest[2][kStrip / 8][4];  // of 16 rows by 8 columns each
};

// Of 16 of K.
__device__ __forceinline__ void add_products(Sums& sums, const Fragment (&a)[2],
                                             const Fragment (&b)[kStrip / 16]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t minus[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) minus[e] = a[i].v[e] ^ 0x80008000u;
#pragma unroll
    for (int j = 0; j < kStrip / 8; ++j) {
      const uint32_t b0 = b[j / 2].v[j % 2 * 2], b1 = b[j / 2].v[j % 2 * 2 + 1];
      const float zero[4] = {};
      float first[4], second[4], cut_first[4], cut_second[4];
      multiply(first, a[i].v[0], a[i].v[1], b0, zero);
      multiply(second, a[i].v[2], a[i].v[3], b1, zero);
      multiply(cut_first, minus[0], minus[1], b0, first);
      multiply(cut_second, minus[2], minus[3], b1, second);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums.high[i][j][e] += first[e] + second[e];
        sums.rest[i][j][e] -= cut_first[e];
        sums.rest[i][j][e] -= cut_second[e];
      }
    }
  }
}

__device__ __forceinline__ float widened(uint16_t bits) {
  return __uint_as_float(uint32_t{bits} << 16);
}

// One element as eager computes it, both factors scaled before: what only the scale keeps in range.
__device__ __forceinline__ float element(const char* x, const char* w, int k, float scale,
                                         float root) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < k; ++i) {
    const float a = widened(reinterpret_cast<const uint16_t*>(x)[i]) * copysignf(root, scale);
    const float b = widened(reinterpret_cast<const uint16_t*>(w)[i]) * root;
    sum = fmaf(a, b, sum);
  }
  return sum;
}

// A lane's part of a warp's tile of 32 by 16: rows lane / 4 + 8 i, columns 4 (lane % 4) + 16 j and the
// three beside it.
struct Part {
  float* out;         // row 0, column 0 of the lane
  int rows, columns;  // of the output, from there on
  int64_t n;
  bool whole;         // whether vectors of four are whole and aligned
};

__device__ __forceinline__ void store(const Part& part, int row, int column, const float4& v) {
  if (row >= part.rows) return;
  float* const at = part.out + row * part.n + column;
  if (part.whole) {
    if (column < part.columns) store_vector(at, v);
    return;
  }
  if (column < part.columns) at[0] = v.x;
  if (column + 1 < part.columns) at[1] = v.y;
  if (column + 2 < part.columns) at[2] = v.z;
  if (column + 3 < part.columns) at[3] = v.w;
}

// Scales and stores; whether all that the lane has is finite.
__device__ __forceinline__ bool store_sums(const WidenedArgs& args, const Part& part,
                                           const Sums& sums) {
  const auto scaled = [&](int i, int j, int e) {
    const float high = sums.high[i][j][e];
    return fmaf(high, args.scale, fmaf(high, args.scale_rest, sums.rest[i][j][e] * args.scale));
  };
  float check = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kStrip / 16; ++j) {
      const int t = i / 2, e = i % 2 * 2;
      const float4 v{scaled(t, 2 * j, e), scaled(t, 2 * j, e + 1), scaled(t, 2 * j + 1, e),
                     scaled(t, 2 * j + 1, e + 1)};
      check = fmaf(v.x, 0.f, fmaf(v.y, 0.f, fmaf(v.z, 0.f, fmaf(v.w, 0.f, check))));
      store(part, 8 * i, 16 * j, v);
    }
  }
  return check == 0;
}

// Computes again what the lane has stored and is not finite. x and w: its row 0 and the tile's first.
__device__ __forceinline__ void mend(const WidenedArgs& args, const Part& part, const char* x,
                                     const char* w, int column) {
  const int pitch = args.pitch;
#pragma unroll 1
  for (int i = 0; i < 4 * kStrip / 4; ++i) {
    const int row = i / (kStrip / 4) * 8, c = i % 4 + i / 4 % (kStrip / 16) * 16;
    if (row >= part.rows || c >= part.columns) continue;
    float* const at = part.out + row * part.n + c;
    if (fabsf(*at) <= 3.402823466e38f) continue;
    *at = element(x + row * pitch, w + place_of(column + c) * pitch, args.k, args.scale, args.root);
  }
}

// The tile of w at `w`, `column` being its first in the output.
__device__ __forceinline__ void compute_tile(const WidenedArgs& args, char* shared, uint32_t x,
                                             uint32_t w, uint32_t origin, float* out, int row,
                                             int column) {
  const int lane = threadIdx.x % 32, pitch = args.pitch;
  const int steps = (args.k + 15) / 16;
  const int warp_row = threadIdx.x / 32 * 32;
  const uint32_t a_at = x + (warp_row + lane % 16) * pitch + lane / 16 * 16;
  const uint32_t b_at = w + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 16;
#pragma unroll 1
  for (int strip = 0; strip < kColumns; strip += kStrip) {
    Sums sums{};
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      Fragment a[2], b[kStrip / 16];
#pragma unroll
      for (int i = 0; i < 2; ++i) a[i] = load_fragment(a_at + 16 * i * pitch + step * 32);
#pragma unroll
      for (int j = 0; j < kStrip / 16; ++j) {
        b[j] = load_fragment(b_at + (strip + 16 * j) * pitch + step * 32);
      }
      add_products(sums, a, b);
    }
    const int my_row = warp_row + lane / 4, my_column = strip + lane % 4 * 4;
    const int64_t n = args.n;
    const Part part{out + (row + my_row) * n + column + my_column, args.m - row - my_row,
                    args.n - column - my_column, n, args.n % 4 == 0};
    if (!store_sums(args, part, sums)) {
      mend(args, part, shared + (x - origin) + my_row * pitch, shared + (w - origin), my_column);
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 5)
    fusepass_widened(const __grid_constant__ WidenedArgs args) {
  extern __shared__ __align__(16) char shared[];
  const uint32_t origin = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int blocks = args.row_blocks * args.column_blocks;
  const int batch = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const int row = block / args.column_blocks * kRows;
  const int column = block % args.column_blocks * args.tiles * kColumns;
  const int64_t outer = batch / args.inner, inner = batch % args.inner;
  const auto base_of = [&](const WidenedMatrices& v) {
    return static_cast<const uint16_t*>(v.data) + outer * v.outer + inner * v.inner;
  };
  const uint16_t* const w = base_of(args.w);
  float* const out = args.out + int64_t{batch} * args.m * args.n;
  const int pitch = args.pitch;
  const int rest = (args.n - column + kColumns - 1) / kColumns;
  const int tiles = rest < args.tiles ? rest : args.tiles;
  const auto stage_of = [&](int tile) {
    return origin + (kRows + tile % kWidenedStages * kColumns) * pitch;
  };
  const auto fetch = [&](int tile) {
    if (tile < tiles) {
      copy_rows<kColumns, true>(stage_of(tile), args.w, w, column + tile * kColumns, args.n, args.k,
                                 pitch);
    }
    end_copies();
  };
  copy_rows<kRows, false>(origin, args.x, base_of(args.x), row, args.m, args.k, pitch);
  fetch(0);
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    fetch(tile + 1);
    await_copies();
    __syncthreads();
    compute_tile(args, shared, origin, stage_of(tile), origin, out, row, column + tile * kColumns);
    __syncthreads();
  }
}

}  // namespace fusepass
