// Column sums of what the epilogue computes. Operands are swapped: along its accumulators a thread has
// rows of the output, all of a tile's between four threads.
#pragma once
#include "gemm_sm90_layout.cuh"
#include "gemm_sm90_ptx.cuh"

namespace fusepass {

struct ColumnSums {
  static constexpr int kEach = kSums > 0 ? kSums : 1;
  float sum[kEach][kOutBlocks][2];
  int inside;  // rows of the output from this thread's first one to the edge

  // Before a tile whose first row of the output is `row`.
  __device__ __forceinline__ void begin(const Gemm16Args& args, int row, int lane) {
    if (kSums == 0) return;
    inside = args.m - row - 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int b = 0; b < kOutBlocks; ++b) sum[i][b][0] = sum[i][b][1] = 0.0f;
    }
  }

  // Two rows of two columns. An addition is left out by its predicate, which a comparison makes where it
  // is needed: of selections ptxas keeps those of a tile's rows in registers of bits, packed and unpacked
  // for each unit.
  __device__ __forceinline__ void add(int index, const float (&v)[4], int block, int unit) {
    float (&s)[2] = sum[index][block];
    asm(
        "{\n.reg .pred p, q;\n"
        "setp.gt.s32 p, %6, %7;\n"
        "setp.gt.s32 q, %6, %8;\n"
        "@p add.f32 %0, %0, %2;\n@p add.f32 %1, %1, %4;\n"
        "@q add.f32 %0, %0, %3;\n@q add.f32 %1, %1, %5;\n}"
        : "+f"(s[0]), "+f"(s[1])
        : "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(inside), "r"(8 * unit), "r"(8 * unit + 1));
  }

  // Writes the sums of the tile at `row` and `column` of the output, the consumer's first column.
  __device__ __forceinline__ void store(const Gemm16Args& args, int row, int column, int thread) const {
    if (kSums == 0) return;
    const int strips = (args.m + kOutN - 1) / kOutN, strip = row / kOutN, lane = thread % 32;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float* to = args.partial + (int64_t{i} * strips + strip) * args.n;
#pragma unroll
      for (int b = 0; b < kOutBlocks; ++b) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float s = sum[i][b][c];
          s += __shfl_xor_sync(~0u, s, 1);
          s += __shfl_xor_sync(~0u, s, 2);
          const int at = column + 64 * b + thread / 32 * 16 + lane / 4 + 8 * c;
          if (lane % 4 == 0 && at < args.n && row < args.m) to[at] = s;
        }
      }
    }
  }
};

// One column a thread of the first row; the threads below it take every kAdderRows-th strip, and their
// sums are added from the first to the last. In float64, which few strips cost nothing.
__device__ __forceinline__ void add_strips(const StripArgs& args) {
  __shared__ double sums[kAdderRows][kAdderColumns];
  const int blocks = (args.n + kAdderColumns - 1) / kAdderColumns;
  const int index = blockIdx.x / blocks, below = threadIdx.x / kAdderColumns;
  const int beside = threadIdx.x % kAdderColumns, column = blockIdx.x % blocks * kAdderColumns + beside;
  grid_dependency_wait();
  grid_dependents_launch();
  double sum = 0.0;
  if (column < args.n) {
    const float* from = args.partial + int64_t{index} * args.strips * args.n + column;
    for (int strip = below; strip < args.strips; strip += kAdderRows) {
      sum += from[int64_t{strip} * args.n];
    }
  }
  sums[below][beside] = sum;
  __syncthreads();
  if (below > 0 || column >= args.n) return;
#pragma unroll
  for (int i = 1; i < kAdderRows; ++i) sum += sums[i][beside];
  const float v = static_cast<float>(sum);
  if (args.dtype[index] == DType::kFloat32) {
    static_cast<float*>(args.out[index])[column] = v;
  } else {
    static_cast<uint16_t*>(args.out[index])[column] = pack2(v, 0.0f) & 0xFFFF;
  }
}

}  // namespace fusepass
