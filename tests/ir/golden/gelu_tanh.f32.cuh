// gelu_tanh: f32, computed in float
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
  static constexpr int kOutputPart[] = {2};
  static constexpr bool kIsColumnSum[] = {false};
  static constexpr DType kOutputDType[] = {DType::kFloat32};

  template <int kWidth>
  struct Batch {
    T z[kWidth];
    T out[1][kWidth];
    T v0_1[kWidth];
    T v0_5[kWidth];
    T v0_11[kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    T v0_0[kWidth];
    FUSEPASS_EACH v0_0[i] = fabsf(b.z[i]);
    FUSEPASS_EACH b.v0_1[i] = fminf(v0_0[i], 3.0e38f);
    T v0_2[kWidth];
    FUSEPASS_EACH v0_2[i] = b.v0_1[i] * b.v0_1[i];
    T v0_3[kWidth];
    FUSEPASS_EACH v0_3[i] = fmaf(v0_2[i], -0.10294324110680834f, -2.302208198144325f);
    T v0_4[kWidth];
    FUSEPASS_EACH v0_4[i] = v0_3[i] * b.v0_1[i];
    FUSEPASS_EACH b.v0_5[i] = exp2_approx(v0_4[i]);
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
    T v0_7[kWidth];
    FUSEPASS_EACH v0_7[i] = 1.0f + b.v0_5[i];
    T v0_8[kWidth];
    FUSEPASS_EACH v0_8[i] = reciprocal_approx(v0_7[i]);
    T v0_9[kWidth];
    FUSEPASS_EACH v0_9[i] = fmaf(-v0_7[i], v0_8[i], 1.0f);
    T v0_10[kWidth];
    FUSEPASS_EACH v0_10[i] = fmaf(v0_8[i], v0_9[i], v0_8[i]);
    FUSEPASS_EACH b.v0_11[i] = b.v0_5[i] * v0_10[i];
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
    T v0_13[kWidth];
    FUSEPASS_EACH v0_13[i] = fminf(b.z[i], 0.0f);
    T v0_14[kWidth];
    FUSEPASS_EACH v0_14[i] = b.z[i] - v0_13[i];
    T v0[kWidth];
    FUSEPASS_EACH v0[i] = fmaf(-b.v0_1[i], b.v0_11[i], v0_14[i]);
    FUSEPASS_EACH b.out[0][i] = v0[i];
  }
};

}  // namespace fusepass
