// gelu~f32: f32, computed in float
#pragma once
#include "common/epilogue_math.cuh"

namespace fusepass {

struct Epilogue {
  using T = float;
  static constexpr int kNumbers = 0, kOperands = 0, kScalars = 0;
  static constexpr int kCols = 0, kRows = 0, kMats = 0, kOutputs = 1;
  static constexpr bool kIsEmpty = false;
  static constexpr bool kReadsZ1 = false;
  static constexpr int kHead = 0, kExchanged = 0, kFirst = 0;
  static constexpr int kOutputPart[] = {0};
  static constexpr bool kIsColumnSum[] = {false};
  static constexpr DType kOutputDType[] = {DType::kFloat32};

  template <int kWidth>
  struct Batch {
    T z[kWidth];
    T out[1][kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    T v0[kWidth];
    FUSEPASS_EACH v0[i] = b.z[i] * T(0.5) * (T(1) + erf(b.z[i] * T(0.70710678118654752440)));
    FUSEPASS_EACH b.out[0][i] = v0[i];
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
  }
};

}  // namespace fusepass
