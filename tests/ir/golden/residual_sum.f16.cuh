// v0 = gelu; v0 mul(col0:f32) add(mat0), v0 col_sum: f16, computed in float
#pragma once
#include "common/epilogue_math.cuh"

namespace fusepass {

struct Epilogue {
  using T = float;
  static constexpr int kNumbers = 0, kOperands = 0, kScalars = 0;
  static constexpr int kCols = 1, kRows = 0, kMats = 1, kOutputs = 2;
  static constexpr bool kIsEmpty = false;
  static constexpr bool kReadsZ1 = false;
  static constexpr int kHead = 0, kExchanged = 0, kFirst = 0;
  static constexpr int kOutputPart[] = {2, 2};
  static constexpr bool kIsColumnSum[] = {false, true};
  static constexpr DType kOutputDType[] = {DType::kFloat16, DType::kFloat16};
  static constexpr DType kColDType[] = {DType::kFloat32};
  static constexpr int kColFirstRead[] = {2};
  static constexpr DType kMatDType[] = {DType::kFloat16};
  static constexpr int kMatFirstRead[] = {2};

  template <int kWidth>
  struct Batch {
    T z[kWidth];
    T col[1][kWidth];
    T mat[1][kWidth];
    T out[2][kWidth];
    T v0_0[kWidth];
    T v0_2[kWidth];
    T v0_3[kWidth];
    T v0_10[kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    FUSEPASS_EACH b.v0_0[i] = 0.5f * b.z[i];
    T v0_1[kWidth];
    FUSEPASS_EACH v0_1[i] = fabsf(b.v0_0[i]);
    FUSEPASS_EACH b.v0_2[i] = fminf(v0_1[i], 3.0e38f);
    FUSEPASS_EACH b.v0_3[i] = fmaf(-0.0002298724721185863f, b.v0_2[i], 0.003888772102072835f);
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
    T v0_5[kWidth];
    FUSEPASS_EACH v0_5[i] = fmaf(b.v0_3[i], b.v0_2[i], -0.029549483209848404f);
    T v0_6[kWidth];
    FUSEPASS_EACH v0_6[i] = fmaf(v0_5[i], b.v0_2[i], 0.1356414556503296f);
    T v0_7[kWidth];
    FUSEPASS_EACH v0_7[i] = fmaf(v0_6[i], b.v0_2[i], -0.43113672733306885f);
    T v0_8[kWidth];
    FUSEPASS_EACH v0_8[i] = fmaf(v0_7[i], b.v0_2[i], -1.8341631889343262f);
    T v0_9[kWidth];
    FUSEPASS_EACH v0_9[i] = fmaf(v0_8[i], b.v0_2[i], -2.30242919921875f);
    FUSEPASS_EACH b.v0_10[i] = v0_9[i] * b.v0_2[i];
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
    T v0_12[kWidth];
    FUSEPASS_EACH v0_12[i] = exp2_approx(b.v0_10[i]);
    T v0_13[kWidth];
    FUSEPASS_EACH v0_13[i] = b.v0_0[i] + fabsf(b.v0_0[i]);
    T v0[kWidth];
    FUSEPASS_EACH v0[i] = fmaf(-b.v0_2[i], v0_12[i], v0_13[i]);
    T v1[kWidth];
    FUSEPASS_EACH v1[i] = v0[i] * b.col[0][i];
    T v2[kWidth];
    FUSEPASS_EACH v2[i] = v1[i] + b.mat[0][i];
    FUSEPASS_EACH b.out[0][i] = v2[i];
    FUSEPASS_EACH b.out[1][i] = v0[i];
  }
};

}  // namespace fusepass
