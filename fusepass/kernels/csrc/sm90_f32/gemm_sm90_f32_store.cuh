// The way of float32 results through the epilogue to memory, and of its operands to it.
#pragma once
#include "sm90/gemm_sm90_epilogue.cuh"
#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_f32_operands.cuh"
#include "sm90/gemm_sm90_tile.cuh"

namespace fusepass {

static_assert(!Epilogue::kReadsZ1, "float32's kernels have no second weight");

// A thread's share of 64 rows in the accumulators' order: rows `row` and row + 8, pairs of columns. They are
// written as they lie: through shared memory, in whole lines, took longer (benchmarks/NOTES-float32.md).
// kOdd: ld is odd, so a pair is two writes; else it is one, and n is even. A kernel is of either kind:
// with a branch the compiler would finish what is before it, few elements at a time.
template <bool kOdd>
struct Float32Store {
  const Float32Outputs& to;
  int row, column;  // of the thread's first element
  int lane;
  int columns[2];  // from there to the edge, in row and row + 8

  __device__ __forceinline__ Float32Store(const Float32Outputs& to, int row, int column, int lane)
      : to(to), row(row), column(column + 2 * (lane % 4)), lane(lane) {
    columns[0] = row < to.m ? to.n - this->column : 0;
    columns[1] = row + 8 < to.m ? to.n - this->column : 0;
  }

  // Those outside m x n are not written. The epilogue works on kWidth elements in step, to hide its
  // latency: few warps share a scheduler. What it reads besides is asked for some steps ahead; all_read()
  // is called when the last of it has been.
  template <int kWidth, int kCount, class E = Epilogue, class AllRead>
  __device__ __forceinline__ void write(const float (&z)[kCount], const float* scalars,
                                        const StagedMats& staged, AllRead all_read) const {
    constexpr int kAhead = Ahead<E, kWidth, kCount>::kEach;
    static_assert(kCount % kAhead == 0 && kAhead % kWidth == 0);
    RowOperands<E> rows;
    rows.read(to, row);
#pragma unroll
    for (int ahead = 0; ahead < kCount; ahead += kAhead) {
      NextOperands<E, kAhead> next;
      next.read(to, row, column, columns, ahead, staged);
      if (ahead + kAhead == kCount) all_read();
#pragma unroll
      for (int first = ahead; first < ahead + kAhead; first += kWidth) {
        typename E::template Batch<kWidth> b;
        FUSEPASS_EACH b.z[i] = z[first + i];
        if (kStorePreact) put<DType::kFloat32>(to.preact, b.z, first);
        rows.give(b);
        next.give(b, first - ahead);
        E::begin(b, scalars);
        E::middle(b, scalars);
        E::end(b, scalars);
        put_all<0, E>(b.out, first);
      }
    }
  }

  // No mat is staged.
  template <int kWidth, int kCount>
  __device__ __forceinline__ void write(const float (&z)[kCount], const float* scalars) const {
    write<kWidth>(z, scalars, StagedMats{}, [] {});
  }

 private:
  template <int kIndex, class E, int kWidth>
  __device__ __forceinline__ void put_all(const float (&v)[E::kOutputs][kWidth], int first) const {
    if constexpr (kIndex < E::kOutputs) {
      constexpr DType kType = E::kOutputDType[kIndex];
      void* const data = to.out[kIndex];
      if constexpr (E::kIsColumnSum[kIndex]) {
        add_rows(static_cast<float*>(data), v[kIndex], first);
      } else {
        put<kType>(data, v[kIndex], first);
      }
      put_all<kIndex + 1, E>(v, first);
    }
  }

  template <DType kType, int kWidth>
  __device__ __forceinline__ void put(void* data, const float (&v)[kWidth], int first) const {
    using Element = typename ElementOf<kType>::type;
    Element* const above = static_cast<Element*>(data) + int64_t{row} * to.ld + column;
    Element* const mine[2] = {above, above + int64_t{8} * to.ld};
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) {
      const int h = i / 2 % 2, c = 8 * ((first + i) / 4);
      Element* const at = mine[h] + c;
      if constexpr (kType == DType::kFloat32 && !kOdd) {
        store_pair_if(at, v[i], v[i + 1], c, columns[h]);
      } else {
        store_if(at, element_of<kType>(v[i]), c, columns[h]);
        store_if(at + 1, element_of<kType>(v[i + 1]), c + 1, columns[h]);
      }
    }
  }

  // The sums of the warp's 16 rows, to their strip [ceil(m / 16), n].
  template <int kWidth>
  __device__ __forceinline__ void add_rows(float* strips, const float (&v)[kWidth], int first) const {
    static_assert(kWidth % 4 == 0);
    float* const mine = strips + int64_t{row / kStripRows} * to.n + column;
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      const int c = 8 * ((first + i) / 4);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float sum = (c + j < columns[0] ? v[i + j] : 0.0f) + (c + j < columns[1] ? v[i + 2 + j] : 0.0f);
#pragma unroll
        for (int d = 4; d < 32; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (lane < 4 && c + j < columns[0]) mine[c + j] = sum;
      }
    }
  }
};

}  // namespace fusepass
