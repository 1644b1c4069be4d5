// The parameters of the pointwise kernels, laid out the same for host and device.
#pragma once
#include <cstdint>

#include "common/gemm.h"

namespace fusepass {

constexpr int kPointwiseThreads = 128;
constexpr int kPointwiseBytes = 32;  // of z, a thread of the kernel that sees no rows
constexpr int kPointwiseLane = 16;   // of z's columns, a thread of the kernel of tiles, one row

// As the kernel computes it: T is double for float64, else float.
template <typename T>
struct PointwiseScalars {
  T number[kMaxNumbers];
  T value[kMaxOperands];
};

struct PointwiseArgs {
  const void* z;
  const void* z1;          // null unless the epilogue reads it
  void* out[kMaxOutputs];  // of the program's outputs, as gemm.h's Result; one may be z or z1
  int64_t numel;           // of z
  bool aligned;            // z, z1 and the outputs that are stored, to 16 bytes
  const void* pointer[kMaxOperands];
  int32_t dtype[kMaxOperands];
  union {
    PointwiseScalars<float> narrow;
    PointwiseScalars<double> wide;
  };
};

// Of the kernel of tiles: a warp takes `rows` rows, every fourth of its block's, and as many columns as
// its threads have lanes.
struct PointwiseTileArgs {
  PointwiseArgs all;
  int64_t m, n;
  int32_t rows;
  Operand col[kMaxVectors], row[kMaxVectors], mat[kMaxVectors];
  int64_t mat_columns[kMaxVectors];  // as gemm.h's
  void* partial;  // of T: [sums, blocks of rows, n]; null without column sums
};

// Of the kernel that adds up the partial sums, in order.
struct ColumnSumsArgs {
  const void* partial;  // of T
  int64_t parts, n;
  void* out[kMaxOutputs];
  int32_t dtype[kMaxOutputs];
};

constexpr int kSumColumns = 32, kSumStrips = 8;  // threads of a block: columns, and parts beside one another

}  // namespace fusepass
