// The one parameter of the kernel of widened batches, laid out the same for host and device.
#pragma once
#include <cstdint>

namespace fusepass {

constexpr int kWidenedRows = 128, kWidenedColumns = 64, kWidenedThreads = 128;
constexpr int kWidenedStages = 2;  // of w, in shared memory

// A batch of matrices of bfloat16; strides in elements, 1 along K.
struct WidenedMatrices {
  const void* data;
  int64_t outer, inner, row;  // strides of the two batch dimensions, and between rows
};

// out[o, i] = scale * x[o, i] w[o, i]^T
struct WidenedArgs {
  WidenedMatrices x, w;     // rows of k elements: m of x, n of w
  float* out;               // [outer, inner, m, n] contiguous
  int32_t m, n, k, inner;   // inner: size of the inner batch dimension
  int32_t pitch;            // widened_pitch(k)
  int32_t tiles;            // of columns that a block computes
  int32_t row_blocks, column_blocks;  // of a matrix of the output
  float scale, scale_rest;  // scale as the sum of two floats
  float root;               // of its magnitude
};

// Bytes from one row in shared memory to the next: an odd multiple of 16, for ldmatrix.
constexpr int widened_pitch(int k) { return (k + 15) / 16 * 32 + 16; }

constexpr int widened_shared_bytes(int k) {
  return (kWidenedRows + kWidenedStages * kWidenedColumns) * widened_pitch(k);
}

}  // namespace fusepass
