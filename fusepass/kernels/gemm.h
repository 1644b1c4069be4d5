// What the binding hands to a kernel: one GEMM with its epilogue, as plain data.
// No torch header here or in anything that includes it from the device side.
#pragma once
#include <cstdint>

namespace fusepass {

constexpr int kMaxStages = 8;    // fusepass/stages.py: MAX_STAGES
constexpr int kMaxScalars = 16;  // fusepass/stages.py: MAX_SCALARS

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3, kBool = 4 };

// The scalars of an epilogue in stage order: mul(a) clamp(b, c) gelu -> a, b, c.
// A slot whose `pointer` is not null is read from device memory (one element of `dtype`) by the
// kernel; otherwise `value` is the number. Read no slot beyond the epilogue's own.
struct Scalars {
  double value[kMaxScalars];
  const void* pointer[kMaxScalars];
  int32_t dtype[kMaxScalars];
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
