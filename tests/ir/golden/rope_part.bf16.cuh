// v0 = rot40of80 mul(mat1); mul(mat0) add(v0) where(first40of80, _, z): bf16, computed in float
#pragma once
#include "common/epilogue_math.cuh"

namespace fusepass {

struct Epilogue {
  using T = float;
  static constexpr int kNumbers = 0, kOperands = 0, kScalars = 0;
  static constexpr int kCols = 0, kRows = 0, kMats = 2, kOutputs = 1;
  static constexpr bool kIsEmpty = false;
  static constexpr bool kReadsZ1 = false;
  static constexpr int kHead = 80, kExchanged = 40, kFirst = 40;
  static constexpr int kOutputPart[] = {0};
  static constexpr bool kIsColumnSum[] = {false};
  static constexpr DType kOutputDType[] = {DType::kBFloat16};
  static constexpr DType kMatDType[] = {DType::kBFloat16, DType::kBFloat16};
  static constexpr int kMatFirstRead[] = {0, 0};

  template <int kWidth>
  struct Batch {
    T z[kWidth], rot[kWidth], first[kWidth];
    T mat[2][kWidth];
    T out[1][kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    T v0[kWidth];
    FUSEPASS_EACH v0[i] = b.z[i] * b.mat[0][i];
    T v1[kWidth];
    FUSEPASS_EACH v1[i] = b.rot[i] * b.mat[1][i];
    T v2[kWidth];
    FUSEPASS_EACH v2[i] = v0[i] + v1[i];
    T v3[kWidth];
    FUSEPASS_EACH v3[i] = (b.first[i] != T(0)) ? v2[i] : b.z[i];
    FUSEPASS_EACH b.out[0][i] = v3[i];
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
  }
};

}  // namespace fusepass
