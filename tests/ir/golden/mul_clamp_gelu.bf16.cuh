// mul(#) clamp(#, #) gelu_half_within_1: bf16, computed in float
#pragma once
#include "common/epilogue_math.cuh"

namespace fusepass {

struct Epilogue {
  using T = float;
  static constexpr int kNumbers = 3, kOperands = 0, kScalars = 3;
  static constexpr int kCols = 0, kRows = 0, kMats = 0, kOutputs = 1;
  static constexpr bool kIsEmpty = false;
  static constexpr bool kReadsZ1 = false;
  static constexpr int kHead = 0, kExchanged = 0, kFirst = 0;
  static constexpr int kOutputPart[] = {2};
  static constexpr bool kIsColumnSum[] = {false};
  static constexpr DType kOutputDType[] = {DType::kBFloat16};

  template <int kWidth>
  struct Batch {
    T z[kWidth];
    T out[1][kWidth];
    T v1[kWidth];
    T v2_0[kWidth];
    T v2_5[kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
    s[0] = from.number(0);
    s[1] = from.number(1);
    s[2] = from.number(2);
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    T v0[kWidth];
    FUSEPASS_EACH v0[i] = b.z[i] * s[0];
    T v1_0[kWidth];
    FUSEPASS_EACH v1_0[i] = max_nan(v0[i], s[1]);
    FUSEPASS_EACH b.v1[i] = min_nan(v1_0[i], s[2]);
    FUSEPASS_EACH b.v2_0[i] = b.v1[i] * b.v1[i];
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
    T v2_2[kWidth];
    FUSEPASS_EACH v2_2[i] = fmaf(0.04507050990806431f, b.v2_0[i], -0.2341319567452646f);
    T v2_3[kWidth];
    FUSEPASS_EACH v2_3[i] = fmaf(v2_2[i], b.v2_0[i], 0.6048424609651729f);
    T v2_4[kWidth];
    FUSEPASS_EACH v2_4[i] = fmaf(v2_3[i], b.v2_0[i], -1.0565176255640187f);
    FUSEPASS_EACH b.v2_5[i] = fmaf(v2_4[i], b.v2_0[i], 1.5952401132536724f);
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
    T v2[kWidth];
    FUSEPASS_EACH v2[i] = fmaf(b.v2_0[i], b.v2_5[i], b.v1[i]);
    FUSEPASS_EACH b.out[0][i] = v2[i];
  }
};

}  // namespace fusepass
