// silu mul(z1): bf16, computed in float
#pragma once
#include "common/epilogue_math.cuh"

namespace fusepass {

struct Epilogue {
  using T = float;
  static constexpr int kNumbers = 0, kOperands = 0, kScalars = 0;
  static constexpr int kCols = 0, kRows = 0, kMats = 0, kOutputs = 1;
  static constexpr bool kIsEmpty = false;
  static constexpr bool kReadsZ1 = true;
  static constexpr int kHead = 0, kExchanged = 0, kFirst = 0;
  static constexpr int kOutputPart[] = {2};
  static constexpr bool kIsColumnSum[] = {false};
  static constexpr DType kOutputDType[] = {DType::kBFloat16};

  template <int kWidth>
  struct Batch {
    T z[kWidth], z1[kWidth];
    T out[1][kWidth];
    T v0_1[kWidth];
    T v0_4[kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    T v0_0[kWidth];
    FUSEPASS_EACH v0_0[i] = b.z[i] * -1.4426950408889634f;
    FUSEPASS_EACH b.v0_1[i] = exp2_approx(v0_0[i]);
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
    T v0_3[kWidth];
    FUSEPASS_EACH v0_3[i] = 1.0f + b.v0_1[i];
    FUSEPASS_EACH b.v0_4[i] = reciprocal_approx(v0_3[i]);
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
    T v0[kWidth];
    FUSEPASS_EACH v0[i] = b.z[i] * b.v0_4[i];
    T v1[kWidth];
    FUSEPASS_EACH v1[i] = v0[i] * b.z1[i];
    FUSEPASS_EACH b.out[0][i] = v1[i];
  }
};

}  // namespace fusepass
