// The parameter of the kernel for batches of float32 matrices, laid out the same for host and device.
#pragma once
#include <cstdint>

namespace fusepass {

constexpr int kBmmTileM = 128, kBmmTileN = 64, kBmmTileK = 64;
constexpr int kBmmStages = 6;
// A stage: both pieces of 64 columns by 64 K of w, and four facts of each column.
constexpr int kBmmPieceBytes = kBmmTileN * kBmmTileK * 2;
constexpr int kBmmStageBytes = 2 * kBmmPieceBytes + 4 * kBmmTileN * 4;
constexpr int kBmmThreads = 384;
constexpr int kBmmFactsBytes = kBmmThreads * 32;  // what threads know of their two rows
constexpr int kBmmSharedBytes = kBmmStages * (kBmmStageBytes + 16) + kBmmFactsBytes;

// Matrices of any strides, in elements; an element's place in its matrix is a 32-bit number. A row is one
// of x, or one column of w: what is multiplied runs along k in both.
struct BatchedOperand {
  const float* data;
  int64_t batch_stride;
  int32_t row_stride, k_stride;
};

struct BmmArgs {
  BatchedOperand x, w;
  float* out;  // [batches, m, n] contiguous
  int32_t m, n, k;
  int32_t k_blocks, tiles_m, tiles_n;
  // A CTA's unit of work: 128 rows of a matrix by so many tiles beside one another; batches * tiles_m *
  // strips of them.
  int32_t strip, strips, units;
};

}  // namespace fusepass
