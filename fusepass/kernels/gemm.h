// What the binding hands to a kernel: one GEMM with its epilogue, as plain data.
// No torch header here or in anything that includes it from the device side.
#pragma once
#include <cstdint>

namespace fusepass {

constexpr int kMaxNumbers = 32;   // fusepass/ir/epilogue.py: MAX_NUMBERS
constexpr int kMaxOperands = 16;  // and MAX_OPERANDS["$"]

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

// out = epilogue(x @ w^T + bias); every pointer is device memory.
struct GemmProblem {
  const void* x;      // [m, k] rows `ldx` elements apart; or, if x_is_km, [k, m] rows `ldx` apart
  const void* w;      // [n, k] rows `ldw` apart; or, if w_is_kn, [k, n] rows `ldw` apart
  const void* bias;   // [n] contiguous, the dtype of x; or null
  void* out;          // [m, n] contiguous
  void* preact;       // [m, n] contiguous pre-activation, or null
  int64_t m, n, k, ldx, ldw;
  DType dtype;        // of x, w, bias, out and preact
  bool x_is_km, w_is_kn;
  Scalars scalars;
};

}  // namespace fusepass
