// What the binding hands to a kernel: one GEMM with its epilogue, as plain data.
// No torch header here or in anything that includes it from the device side.
#pragma once
#include <cstdint>

namespace fusepass {

// The limits of fusepass/ir/epilogue.py.
constexpr int kMaxNumbers = 32;   // MAX_NUMBERS
constexpr int kMaxOperands = 16;  // MAX_OPERANDS["$"]
constexpr int kMaxVectors = 8;    // MAX_OPERANDS of each of "col", "row" and "mat"
constexpr int kMaxOutputs = 4;    // MAX_OUTPUTS
constexpr int kMaxWeights = 4;    // MAX_WEIGHTS of fusepass/kernels/calls.py

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3, kBool = 4 };

// What an epilogue reads besides z: the numbers of its lowered program, and what the call's operands
// $0, $1, … are. An operand whose `pointer` is not null is read from device memory (one element of
// `dtype`) by the kernel; otherwise `value` is the number. Read none beyond the epilogue's own.
struct Scalars {
  double number[kMaxNumbers];
  double value[kMaxOperands];
  const void* pointer[kMaxOperands];
  int32_t dtype[kMaxOperands];
};

// A col, row or mat operand: its element at row r and column c of the [m, n] problem is
// data[(r / inner) * outer_stride + (r % inner) * row_stride + c * column_stride], strides in elements.
// A stride may be 0: row_stride is for a col, column_stride is for a row, and any is where a tensor is
// expanded. Rows that are evenly spaced have inner = m. A col is the same for all rows, which is inner = m
// and outer_stride = 0, or for those of a group, `inner` of them, of which there are several.
struct Operand {
  const void* data;  // null where the epilogue has no such operand
  DType dtype;
  int64_t inner, outer_stride, row_stride, column_stride;
};

// One output of the epilogue.
struct Result {
  void* data;  // store: [m, n] contiguous; col_sum: [n] contiguous; null where there is none
  DType dtype;
  bool column_sum;
};

// out = epilogue(z, z1, operands) of z = x @ w[0]^T + bias[0] and, where there is a second weight, of
// z1 = x @ w[1]^T + bias[1]; every pointer is device memory.
struct GemmProblem {
  const void* x;        // [m, k] rows `ldx` apart; or, if x_is_km, [k, m] rows `ldx` apart
  const void* w[2];     // [n, k] rows `ldw` apart; or, if w_is_kn, [k, n] rows `ldw` apart; w[1] or null
  const void* bias[2];  // [n] contiguous, or null
  Result out[kMaxOutputs];
  Operand col[kMaxVectors], row[kMaxVectors], mat[kMaxVectors];
  // Of each mat, n; or a part of it, where the operand is the same for each so many columns: column c
  // of the problem then reads its column c % mat_columns.
  int64_t mat_columns[kMaxVectors];
  int64_t m, n, k, ldx, ldw[2];
  DType dtype;          // of x, the weights and the biases
  bool x_is_km, w_is_kn;
  Scalars scalars;

  // linear_with_preact's second output, z, in x's dtype; or null.
  void* preact() const { return out[1].data; }
};

}  // namespace fusepass
