// $0 mul(#) mul(z, _) clamp(#, #) gelu_half: f16, computed in float
#pragma once
#include "common/epilogue_math.cuh"

namespace fusepass {

struct Epilogue {
  using T = float;
  static constexpr int kNumbers = 3, kOperands = 1, kScalars = 5;
  static constexpr int kCols = 0, kRows = 0, kMats = 0, kOutputs = 1;
  static constexpr bool kIsEmpty = false;
  static constexpr bool kReadsZ1 = false;
  static constexpr int kHead = 0, kExchanged = 0, kFirst = 0;
  static constexpr int kOutputPart[] = {2};
  static constexpr bool kIsColumnSum[] = {false};
  static constexpr DType kOutputDType[] = {DType::kFloat16};

  template <int kWidth>
  struct Batch {
    T z[kWidth];
    T out[1][kWidth];
    T v2[kWidth];
    T v3_1[kWidth];
    T v3_2[kWidth];
    T v3_9[kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
    s[0] = from.operand(0);
    s[1] = from.number(0);
    s[2] = mul_rn(s[0], s[1]);
    s[3] = from.number(1);
    s[4] = from.number(2);
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    T v1[kWidth];
    FUSEPASS_EACH v1[i] = b.z[i] * s[2];
    T v2_0[kWidth];
    FUSEPASS_EACH v2_0[i] = max_nan(v1[i], s[3]);
    FUSEPASS_EACH b.v2[i] = min_nan(v2_0[i], s[4]);
    T v3_0[kWidth];
    FUSEPASS_EACH v3_0[i] = fabsf(b.v2[i]);
    FUSEPASS_EACH b.v3_1[i] = fminf(v3_0[i], 3.0e38f);
    FUSEPASS_EACH b.v3_2[i] = fmaf(-0.0002298724721185863f, b.v3_1[i], 0.003888772102072835f);
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
    T v3_4[kWidth];
    FUSEPASS_EACH v3_4[i] = fmaf(b.v3_2[i], b.v3_1[i], -0.029549483209848404f);
    T v3_5[kWidth];
    FUSEPASS_EACH v3_5[i] = fmaf(v3_4[i], b.v3_1[i], 0.1356414556503296f);
    T v3_6[kWidth];
    FUSEPASS_EACH v3_6[i] = fmaf(v3_5[i], b.v3_1[i], -0.43113672733306885f);
    T v3_7[kWidth];
    FUSEPASS_EACH v3_7[i] = fmaf(v3_6[i], b.v3_1[i], -1.8341631889343262f);
    T v3_8[kWidth];
    FUSEPASS_EACH v3_8[i] = fmaf(v3_7[i], b.v3_1[i], -2.30242919921875f);
    FUSEPASS_EACH b.v3_9[i] = v3_8[i] * b.v3_1[i];
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
    T v3_11[kWidth];
    FUSEPASS_EACH v3_11[i] = exp2_approx(b.v3_9[i]);
    T v3_12[kWidth];
    FUSEPASS_EACH v3_12[i] = b.v2[i] + fabsf(b.v2[i]);
    T v3[kWidth];
    FUSEPASS_EACH v3[i] = fmaf(-b.v3_1[i], v3_11[i], v3_12[i]);
    FUSEPASS_EACH b.out[0][i] = v3[i];
  }
};

}  // namespace fusepass
