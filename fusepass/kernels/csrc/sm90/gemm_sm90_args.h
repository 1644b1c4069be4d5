// The one parameter of a Hopper GEMM kernel, laid out the same for host and device.
#pragma once
#include <cstdint>

#include "common/gemm.h"

namespace fusepass {

struct alignas(64) TensorMap {  // a CUtensorMap: opaque to everything but the driver and the TMA unit
  uint64_t opaque[16];
};

// What every kernel is told.
struct Gemm90Args {
  TensorMap x, w;       // swapped, x is the weight
  TensorMap second;     // the second weight, where a kernel multiplies by two
  const void* bias[2];  // of each weight, or null
  // gemm.h's Scalars, in float32.
  float number[kMaxNumbers];
  float operand_value[kMaxOperands];
  const void* operand_pointer[kMaxOperands];
  int32_t operand_dtype[kMaxOperands];
  int32_t n;
  int32_t k_blocks;    // ceil(k / kTileK)
  // Clusters of tiles below one another, and beside one another. A cluster's own tiles lie below one
  // another, or, where it shares x, beside.
  int32_t clusters_m, tiles_n;
  int32_t group;  // rows of clusters walked together before the next column, for L2
};

constexpr int kMaxMats = 4;  // that the 16-bit kernel takes

// A row or col operand: element r of a row is data[(r / inner) * outer_stride + r % inner * stride], and
// element c of a col, beside row r, data[(r / inner) * outer_stride + c * stride].
struct Vector90 {
  const void* data;
  int64_t stride, outer_stride;  // the last 0 of a col that is the same for all rows
  int32_t inner;  // of a col, a multiple of the rows that a consumer finishes of a tile, or all
  int32_t packed;  // 1: a tile's elements lie together, and every second of 16 bits 4-byte aligned
};

// And the 16-bit one.
struct Gemm16Args : Gemm90Args {
  TensorMap out[kMaxOutputs];  // of outputs that are stored, in their order; then z's
  TensorMap mat[kMaxMats];
  // Of a mat that is the same for each group of rows, or of columns: of how many; else all.
  int32_t mat_rows[kMaxMats], mat_columns[kMaxMats];
  Vector90 col[kMaxVectors], row[kMaxVectors];
  // Of each output that is a column sum [ceil(m / kTileN), n]: the sums of a tile's rows.
  float* partial;
  int32_t m;
};

// And of several weights of one x, each with a result of its own, whose map is out's of the same index.
// In the walk over tiles their columns lie beside one another, each weight's in whole tiles.
struct SeveralArgs : Gemm16Args {
  TensorMap weight[kMaxWeights];     // instead of w's, or swapped x's
  const void* bias_of[kMaxWeights];  // or null; bias[0] is one of these, if there is one
  int32_t n_of[kMaxWeights];
  int32_t first[kMaxWeights];  // the column of the walk where a weight's begin; behind the last, none
};
static_assert(kMaxWeights <= kMaxOutputs);
static_assert(sizeof(SeveralArgs) <= 4096, "a kernel's parameter is larger than the driver takes");

// What adds these up: of each sum `strips` rows.
struct StripArgs {
  const float* partial;
  void* out[kMaxOutputs];
  DType dtype[kMaxOutputs];
  int32_t n, strips;
};
constexpr int kAdderColumns = 32, kAdderRows = 8;  // of a block's threads

}  // namespace fusepass
