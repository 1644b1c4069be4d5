// The way of float32 results through the epilogue to memory.
#pragma once
#include "gemm_sm90_epilogue.cuh"
#include "gemm_sm90_tile.cuh"

namespace fusepass {

static_assert(Epilogue::kOutputs == 1 && !Epilogue::kReadsZ1 &&
                  Epilogue::kCols + Epilogue::kRows + Epilogue::kMats == 0,
              "z and scalars are all that float32's epilogue reads; one result is all it stores");

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

  // Those outside m x n are not written. The epilogue works on kWidth elements in step, to hide its
  // latency: few warps share a scheduler.
  template <int kWidth, int kCount>
  __device__ __forceinline__ void write(const float (&z)[kCount], const float* scalars) const {
    static_assert(kCount % kWidth == 0);
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      Epilogue::Batch<kWidth> b;
      FUSEPASS_EACH b.z[i] = z[first + i];
      if (kStorePreact) put(preact, b.z, first);
      Epilogue::begin(b, scalars);
      Epilogue::middle(b, scalars);
      Epilogue::end(b, scalars);
      put(out, b.out[0], first);
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
