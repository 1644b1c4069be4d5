// Operands of float32's epilogue on their way to a thread: elements of the rows and columns whose results
// it has, in the accumulators' order; and elements of each dtype in memory.
#pragma once
#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_f32_ptx.cuh"
#include "sm90/gemm_sm90_ptx.cuh"
#include "common/scalars.cuh"

namespace fusepass {

template <DType kType>
struct ElementOf {
  using type = uint16_t;
};
template <>
struct ElementOf<DType::kFloat32> {
  using type = float;
};
template <>
struct ElementOf<DType::kFloat64> {
  using type = double;
};
template <>
struct ElementOf<DType::kBool> {
  using type = bool;
};

template <DType kType>
__device__ __forceinline__ typename ElementOf<kType>::type element_of(float v) {
  if constexpr (kType == DType::kFloat16) {
    uint16_t r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
  } else if constexpr (kType == DType::kBFloat16) {
    uint16_t r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
  } else if constexpr (kType == DType::kBool) {
    return v != 0.0f;
  } else {
    return v;
  }
}

template <DType kType>
__device__ __forceinline__ float load_element(const void* data, int64_t at) {
  const auto* const from = static_cast<const typename ElementOf<kType>::type*>(data) + at;
  if constexpr (kType == DType::kFloat32) {
    return __ldg(from);
  } else if constexpr (kType == DType::kBool) {
    return *from ? 1.0f : 0.0f;
  } else {
    return load_scalar<float>(from, static_cast<int32_t>(kType));
  }
}

// Where a row of an operand begins, in elements.
__device__ __forceinline__ int64_t offset_of_row(const Float32Operand& o, int row) {
  if (row < o.inner) return row * o.row_stride;
  return row / o.inner * o.outer_stride + row % o.inner * o.row_stride;
}

// How many elements' operands are asked for together: as many registers as a tile's sums leave.
template <class E, int kWidth, int kCount>
struct Ahead {
  static constexpr int kOperands = E::kMats + E::kCols;
  static constexpr int kMost = kOperands == 0 ? kWidth : kOperands <= 2 ? 32 : kOperands <= 4 ? 16 : 8;
  static constexpr int kEach = kMost < kWidth ? kWidth : kMost < kCount ? kMost : kCount;
};

// Of row operands: rows `row` and row + 8.
template <class E>
struct RowOperands {
  float v[E::kRows + 1][2];

  __device__ __forceinline__ void read(const Float32Outputs& to, int row) { read_from<0>(to, row); }

  template <class Batch>
  __device__ __forceinline__ void give(Batch& b) const {
    if constexpr (E::kRows > 0) {
#pragma unroll
      for (int j = 0; j < E::kRows; ++j) {
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(b.z) / sizeof(float)); ++i) {
          b.row[j][i] = v[j][i / 2 % 2];
        }
      }
    }
  }

 private:
  template <int kIndex>
  __device__ __forceinline__ void read_from(const Float32Outputs& to, int row) {
    if constexpr (kIndex < E::kRows) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t at = offset_of_row(to.row[kIndex], min(row + 8 * h, to.m - 1));
        v[kIndex][h] = load_element<E::kRowDType[kIndex]>(to.row[kIndex].data, at);
      }
      read_from<kIndex + 1>(to, row);
    }
  }
};

// Whether the mat is one of those that may come through the ring.
template <class E, int kIndex>
__device__ constexpr bool may_be_staged() {
  if constexpr (kIndex < E::kMats && kIndex < kMostStagedMats) {
    return E::kMatDType[kIndex] == DType::kFloat32;
  } else {
    return false;
  }
}

// f(index) for those that do: `staged` is Split90Args's.
template <class E, int kIndex = 0, class F>
__device__ __forceinline__ void each_staged(int32_t staged, F f) {
  if constexpr (kIndex < kMostStagedMats) {
    if constexpr (may_be_staged<E, kIndex>()) {
      if (staged >> kIndex & 1) f(kIndex);
    }
    each_staged<E, kIndex + 1>(staged, f);
  }
}

// Where a thread's first element of each mat lies in shared memory; kNowhere if it is to be read from
// global memory.
struct StagedMats {
  static constexpr uint32_t kNowhere = ~0u;
  uint32_t at[kMostStagedMats] = {kNowhere, kNowhere};

  // `row`: the thread's first within the tile. A row of a box is a line of 128 bytes, whose quads of
  // columns TMA permutes by the row's number.
  static __device__ __forceinline__ uint32_t place(uint32_t stage, int row, int lane) {
    return stage + row * 128 + ((lane % 4 / 2) ^ (row % 8)) * 16 + lane % 2 * 8;
  }
};

// Of col and mat operands: kCount elements, each unit of four two columns in two rows, which lie in one
// group of a col's. What is outside m x n is 0.
template <class E, int kCount>
struct NextOperands {
  static_assert(kCount % 4 == 0);
  float mat[E::kMats + 1][kCount];
  float col[E::kCols + 1][kCount / 2];

  // From element `first` of the thread's on.
  __device__ __forceinline__ void read(const Float32Outputs& to, int row, int column,
                                       const int (&columns)[2], int first,
                                       const StagedMats& staged) {
    read_col<0>(to, row, column, first);
    read_mat<0>(to, row, column, columns, first, staged);
  }

  template <class Batch>
  __device__ __forceinline__ void give(Batch& b, int first) const {
    constexpr int kWidth = sizeof(b.z) / sizeof(float);
    if constexpr (E::kCols > 0) {
#pragma unroll
      for (int j = 0; j < E::kCols; ++j) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) b.col[j][i] = col[j][(first + i) / 4 * 2 + i % 2];
      }
    }
    if constexpr (E::kMats > 0) {
#pragma unroll
      for (int j = 0; j < E::kMats; ++j) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) b.mat[j][i] = mat[j][first + i];
      }
    }
  }

 private:
  template <int kIndex>
  __device__ __forceinline__ void read_col(const Float32Outputs& to, int row, int column,
                                           int first) {
    if constexpr (kIndex < E::kCols) {
      const Float32Operand& o = to.col[kIndex];
      const int64_t begin = offset_of_row(o, min(row, to.m - 1));
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        const int c = column + 8 * (first / 4 + i / 2) + i % 2;
        const int64_t at = begin + min(c, to.n - 1) * o.column_stride;
        col[kIndex][i] = load_element<E::kColDType[kIndex]>(o.data, at);
      }
      read_col<kIndex + 1>(to, row, column, first);
    }
  }

  template <int kIndex>
  __device__ __forceinline__ void read_mat(const Float32Outputs& to, int row, int column,
                                           const int (&columns)[2], int first,
                                           const StagedMats& staged) {
    if constexpr (kIndex < E::kMats) {
      const uint32_t at = may_be_staged<E, kIndex>() ? staged.at[kIndex % kMostStagedMats]
                                                     : StagedMats::kNowhere;
      if (at != StagedMats::kNowhere) {
        read_staged(mat[kIndex], at, first);
      } else {
        read_global<kIndex>(to.mat[kIndex], to.m, row, column, columns, first);
      }
      read_mat<kIndex + 1>(to, row, column, columns, first, staged);
    }
  }

  template <int kIndex>
  __device__ __forceinline__ void read_global(const Float32Operand& o, int m, int row, int column,
                                              const int (&columns)[2], int first) {
    constexpr DType kType = E::kMatDType[kIndex];
    int64_t begin[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      begin[h] = offset_of_row(o, min(row + 8 * h, m - 1)) + column * o.column_stride;
    }
    if (kType == DType::kFloat32 && o.pairs) {
#pragma unroll
      for (int i = 0; i < kCount; i += 2) {
        const int h = i / 2 % 2, c = 8 * ((first + i) / 4);
        const float* const from = static_cast<const float*>(o.data) + begin[h] + c;
        float2 v = {0.0f, 0.0f};
        if (c < columns[h]) v = __ldg(reinterpret_cast<const float2*>(from));
        mat[kIndex][i] = v.x;
        mat[kIndex][i + 1] = v.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int h = i / 2 % 2, c = 8 * ((first + i) / 4) + i % 2;
        const int64_t at = begin[h] + c * o.column_stride;
        mat[kIndex][i] = c < columns[h] ? load_element<kType>(o.data, at) : 0.0f;
      }
    }
  }

  // Units of 8 columns, four a box, two of their floats a read. Two rows of a box whose numbers differ
  // in the last bit only have the same two quads in the same banks, so every second row reads the units
  // in another order.
  __device__ __forceinline__ void read_staged(float (&v)[kCount], uint32_t at, int first) {
    const bool other = at & 128;
    const uint32_t mine = other ? at ^ 64 : at;
#pragma unroll
    for (int box = 0; box + 16 <= kCount; box += 16) {
#pragma unroll
      for (int i = 0; i < 16; i += 2) {
        uint32_t a, b;
        const int unit = i / 4, h = i / 2 % 2;
        load_shared_64((mine ^ 32 * unit) + (first + box) / 16 * kStagedBox + h * 8 * 128, a, b);
        v[box + i] = __uint_as_float(a);
        v[box + i + 1] = __uint_as_float(b);
      }
#pragma unroll
      for (int i = box; i < box + 8; ++i) {
        const float near = v[i], far = v[i + 8];
        v[i] = other ? far : near;
        v[i + 8] = other ? near : far;
      }
    }
  }
};

// Asks for the mat operands of 64 rows of a tile to be brought into the L2 cache, while the tile is
// multiplied: 128 threads, a line each by turns. `staged` are the producer's business.
template <class E>
__device__ __forceinline__ void prefetch_mats(const Float32Outputs& to, int32_t staged,
                                              int first_row, int column, int columns, int thread) {
#pragma unroll
  for (int j = 0; j < E::kMats; ++j) {
    const Float32Operand& o = to.mat[j];
    if (o.column_stride != 1 || staged >> j & 1) continue;
    const int lines = columns * o.bytes / 128 > 0 ? columns * o.bytes / 128 : 1;
    for (int i = thread; i < 64 * lines; i += 128) {
      const int row = first_row + i / lines, at = column + i % lines * (128 / o.bytes);
      if (row >= to.m || at >= to.n) continue;
      prefetch(static_cast<const uint8_t*>(o.data) + (offset_of_row(o, row) + at) * o.bytes);
    }
  }
}

}  // namespace fusepass
