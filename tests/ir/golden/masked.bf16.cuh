// where(mat0:bool, _, #), z: bf16, computed in float
#pragma once
#include "common/epilogue_math.cuh"

namespace fusepass {

struct Epilogue {
  using T = float;
  static constexpr int kNumbers = 1, kOperands = 0, kScalars = 1;
  static constexpr int kCols = 0, kRows = 0, kMats = 1, kOutputs = 2;
  static constexpr bool kIsEmpty = false;
  static constexpr bool kReadsZ1 = false;
  static constexpr int kHead = 0, kExchanged = 0, kFirst = 0;
  static constexpr int kOutputPart[] = {0, 0};
  static constexpr bool kIsColumnSum[] = {false, false};
  static constexpr DType kOutputDType[] = {DType::kBFloat16, DType::kBFloat16};
  static constexpr DType kMatDType[] = {DType::kBool};
  static constexpr int kMatFirstRead[] = {0};

  template <int kWidth>
  struct Batch {
    T z[kWidth];
    T mat[1][kWidth];
    T out[2][kWidth];
  };

  template <class From>
  __device__ static void load(T* s, const From& from) {
    s[0] = from.number(0);
  }

  template <int kWidth>
  __device__ static void begin(Batch<kWidth>& b, const T* s) {
    T v0[kWidth];
    FUSEPASS_EACH v0[i] = (b.mat[0][i] != T(0)) ? b.z[i] : s[0];
    FUSEPASS_EACH b.out[0][i] = v0[i];
    FUSEPASS_EACH b.out[1][i] = b.z[i];
  }

  template <int kWidth>
  __device__ static void middle(Batch<kWidth>& b, const T* s) {
  }

  template <int kWidth>
  __device__ static void end(Batch<kWidth>& b, const T* s) {
  }
};

}  // namespace fusepass
