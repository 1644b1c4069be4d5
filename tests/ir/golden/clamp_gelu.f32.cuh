// gelu clamp(#, #) gelu_within_2: f32, computed in float
#pragma once
#include "common/epilogue_math.cuh"

namespace fusepass {

struct Epilogue {
  using T = float;
  static constexpr int kNumbers = 2, kOperands = 0, kScalars = 2;
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
    T v0_11[kWidth];
    T v2_0[kWidth];
    T v2_1[kWidth];
    T v2_9[kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
    s[0] = from.number(0);
    s[1] = from.number(1);
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    T v0_0[kWidth];
    FUSEPASS_EACH v0_0[i] = fabsf(b.z[i]);
    FUSEPASS_EACH b.v0_1[i] = fminf(v0_0[i], 3.0e38f);
    T v0_3[kWidth];
    FUSEPASS_EACH v0_3[i] = fmaf(-2.8411648145265644e-06f, b.v0_1[i], 3.94543276343029e-05f);
    T v0_4[kWidth];
    FUSEPASS_EACH v0_4[i] = fmaf(v0_3[i], b.v0_1[i], -0.0001865559897851199f);
    T v0_5[kWidth];
    FUSEPASS_EACH v0_5[i] = fmaf(v0_4[i], b.v0_1[i], -0.0001359951711492613f);
    T v0_6[kWidth];
    FUSEPASS_EACH v0_6[i] = fmaf(v0_5[i], b.v0_1[i], 0.007062140386551619f);
    T v0_7[kWidth];
    FUSEPASS_EACH v0_7[i] = fmaf(v0_6[i], b.v0_1[i], -0.05249525234103203f);
    T v0_8[kWidth];
    FUSEPASS_EACH v0_8[i] = fmaf(v0_7[i], b.v0_1[i], -0.45920851826667786f);
    T v0_9[kWidth];
    FUSEPASS_EACH v0_9[i] = fmaf(v0_8[i], b.v0_1[i], -1.1511051654815674f);
    T v0_10[kWidth];
    FUSEPASS_EACH v0_10[i] = fmaf(v0_9[i], b.v0_1[i], -1.0f);
    FUSEPASS_EACH b.v0_11[i] = exp2_approx(v0_10[i]);
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
    T v0_13[kWidth];
    FUSEPASS_EACH v0_13[i] = fminf(b.z[i], 0.0f);
    T v0_14[kWidth];
    FUSEPASS_EACH v0_14[i] = b.z[i] - v0_13[i];
    T v0[kWidth];
    FUSEPASS_EACH v0[i] = fmaf(-b.v0_1[i], b.v0_11[i], v0_14[i]);
    T v1_0[kWidth];
    FUSEPASS_EACH v1_0[i] = max_nan(v0[i], s[0]);
    T v1[kWidth];
    FUSEPASS_EACH v1[i] = min_nan(v1_0[i], s[1]);
    FUSEPASS_EACH b.v2_0[i] = v1[i] * v1[i];
    FUSEPASS_EACH b.v2_1[i] = 0.5f * v1[i];
    T v2_3[kWidth];
    FUSEPASS_EACH v2_3[i] = fmaf(-1.6453334694688238e-08f, b.v2_0[i], 5.186277576285647e-07f);
    T v2_4[kWidth];
    FUSEPASS_EACH v2_4[i] = fmaf(v2_3[i], b.v2_0[i], -8.936764061218128e-06f);
    T v2_5[kWidth];
    FUSEPASS_EACH v2_5[i] = fmaf(v2_4[i], b.v2_0[i], 0.00011439841182436794f);
    T v2_6[kWidth];
    FUSEPASS_EACH v2_6[i] = fmaf(v2_5[i], b.v2_0[i], -0.0011861043749377131f);
    T v2_7[kWidth];
    FUSEPASS_EACH v2_7[i] = fmaf(v2_6[i], b.v2_0[i], 0.009972781874239445f);
    T v2_8[kWidth];
    FUSEPASS_EACH v2_8[i] = fmaf(v2_7[i], b.v2_0[i], -0.06649015843868256f);
    FUSEPASS_EACH b.v2_9[i] = fmaf(v2_8[i], b.v2_0[i], 0.3989422619342804f);
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
    T v2[kWidth];
    FUSEPASS_EACH v2[i] = fmaf(b.v2_0[i], b.v2_9[i], b.v2_1[i]);
    FUSEPASS_EACH b.out[0][i] = v2[i];
  }
};

}  // namespace fusepass
