// The epilogue's stages in float32's own accuracy, and the way of float32 results to memory.
#pragma once
#include "gemm_sm90_epilogue.cuh"
#include "gemm_sm90_tile.cuh"
#include "stages.cuh"

namespace fusepass {
namespace full {

struct Operands {
  static constexpr int kScalars = 0;
  __device__ static float apply(float v, const float*) { return v; }
};
struct Mul {
  static constexpr int kScalars = 1;
  __device__ static float apply(float v, const float* s) { return stage_mul(v, s[0]); }
};
struct Div {
  static constexpr int kScalars = 1;
  __device__ static float apply(float v, const float* s) { return stage_div(v, s[0]); }
};
struct Clamp {
  static constexpr int kScalars = 2;
  __device__ static float apply(float v, const float* s) { return stage_clamp(v, s[0], s[1]); }
};
struct Gelu {
  static constexpr int kScalars = 0;
  __device__ static float apply(float v, const float*) { return stage_gelu(v); }
};
struct GeluTanh {
  static constexpr int kScalars = 0;
  __device__ static float apply(float v, const float*) { return stage_gelu_tanh(v); }
};

template <class... kStages>
struct Stages {
  static constexpr int kScalars = (0 + ... + kStages::kScalars);

  // Every stage on all of v before the next: few warps share a scheduler, and the compiler keeps
  // the order it is given, so one element after the other would wait out every latency.
  template <int kWidth>
  __device__ static void apply(float (&v)[kWidth], const float* scalars) {
    const auto stage = [&](auto one) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[i] = one.apply(v[i], scalars);
      scalars += one.kScalars;
    };
    (stage(kStages{}), ...);
  }
};

template <class... kStages, class kNext>
constexpr Stages<kStages..., kNext> operator|(Stages<kStages...>, kNext) {
  return {};
}

// FUSEPASS_STAGES is written `mul | clamp | gelu`, with the names of fusepass/stages.py;
// gemm_sm90_epilogue.cuh says what `operands` is.
constexpr Operands nothing{};  // does as little
constexpr Operands operands{};
constexpr Mul mul{};
constexpr Div div{};
constexpr Clamp clamp{};
constexpr Gelu gelu{};
constexpr GeluTanh gelu_tanh{};
constexpr Gelu gelu_within_2{};  // of no use where float32's digits count
using Epilogue = decltype(Stages<>{} | FUSEPASS_STAGES);

}  // namespace full

// A thread's share of 64 rows in the accumulators' order: rows `row` and row + 8, pairs of columns.
struct Float32Store {
  float* out;     // where the first element goes
  float* preact;  // likewise; used only with kStorePreact
  int64_t below;  // elements from row to row + 8
  int columns[2];  // from the first element to the edge, in row and row + 8
  bool pairs;      // n is even: a pair is one write

  __device__ __forceinline__ Float32Store(float* out, float* preact, int m, int n, int row,
                                          int column, int lane) {
    column += 2 * (lane % 4);
    const int64_t first = int64_t{row} * n + column;
    this->out = out + first;
    this->preact = preact + first;
    below = int64_t{8} * n;
    columns[0] = row < m ? n - column : 0;
    columns[1] = row + 8 < m ? n - column : 0;
    pairs = n % 2 == 0;
  }

  // Those outside m x n are not written. `f` works on kWidth elements in step, to hide its latency:
  // few warps share a scheduler.
  template <int kWidth, int kCount, class F>
  __device__ __forceinline__ void write(const float (&z)[kCount], F f) const {
    static_assert(kCount % kWidth == 0);
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      float v[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[i] = z[first + i];
      if (kStorePreact) put(preact, v, first);
      f(v);
      put(out, v, first);
    }
  }

 private:
  template <int kWidth>
  __device__ __forceinline__ void put(float* to, const float (&v)[kWidth], int first) const {
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) {
      const int h = i / 2 % 2, c = 8 * ((first + i) / 4);
      float* const at = to + h * below + c;
      if (pairs) {
        if (c < columns[h]) *reinterpret_cast<float2*>(at) = {v[i], v[i + 1]};
      } else {
        if (c < columns[h]) at[0] = v[i];
        if (c + 1 < columns[h]) at[1] = v[i + 1];
      }
    }
  }
};

}  // namespace fusepass
