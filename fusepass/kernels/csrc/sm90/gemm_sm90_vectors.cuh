// Col and row operands of a tile, by the way of shared memory. Along the accumulators' columns a
// thread has two neighbours in each unit of 8, across them two rows, 8 apart, in each block of 64.
#pragma once
#include "gemm_sm90_stream.cuh"

namespace fusepass {

// Two numbers of an operand as they lie in memory: a pair of 16 bits in the first, or one in each.
using RawPair = uint32_t[2];

template <DType kType>
__device__ __forceinline__ float first_of(const RawPair& raw) {
  return kType == DType::kFloat32 ? __uint_as_float(raw[0]) : unpack(raw[0] & 0xFFFF);
}
template <DType kType, bool kPacked>
__device__ __forceinline__ float second_of(const RawPair& raw) {
  if (kType == DType::kFloat32) return __uint_as_float(raw[1]);
  return kPacked ? unpack(raw[0] >> 16) : unpack(raw[1] & 0xFFFF);
}

struct Vectors {
  static constexpr int kAlong = kFinishedN, kAcross = 64 * kOutBlocks;  // elements of a consumer's tile
  static constexpr int kColumns = kSwapped ? kAcross : kAlong, kRows = kSwapped ? kAlong : kAcross;

  uint32_t base;  // of this consumer
  int thread;     // of the consumer

  __device__ __forceinline__ Vectors(uint32_t shared, int consumer, int thread)
      : base(shared + SharedLayout::kVectors + consumer * SharedLayout::kVectorBytes),
        thread(thread) {}

  template <int kIndex>
  __device__ __forceinline__ uint32_t col() const {
    constexpr int kBefore = Program::col_offset(kIndex) * kColumns;
    return base + kBefore;
  }
  template <int kIndex>
  __device__ __forceinline__ uint32_t row() const {
    constexpr int kCols = Program::col_offset(Epilogue::kCols) * kColumns;
    constexpr int kBefore = kCols + Program::row_offset(kIndex) * kRows;
    return base + kBefore;
  }

  // Asks for a tile's numbers, all those inside [0, limit) from `first` on, of `v`, whose first lies at
  // `data`; they are there after copy_async_wait and a barrier of the consumer.
  template <int kBytes, bool kIsRow>
  __device__ __forceinline__ void fetch(uint32_t to, const uint8_t* data, const Vector90& v, int first,
                                        int count, int limit) const {
    if (v.packed) {
      constexpr int kEach = 4 / kBytes;
      for (int i = thread * kEach; i < count; i += 128 * kEach) {
        const int left = limit - first - i;
        const uint8_t* from = left > 0 ? data + int64_t{first + i} * kBytes : data;
        copy_async_4(to + i * kBytes, from, left >= kEach ? 4 : left > 0 ? kBytes : 0);
      }
      return;
    }
    for (int i = thread; i < count; i += 128) {
      const int at = min(first + i, limit - 1);
      const int64_t place =
          kIsRow ? at / v.inner * v.outer_stride + at % v.inner * v.stride : at * v.stride;
      if (kBytes == 4) {
        store_shared(to + 4 * i, reinterpret_cast<const uint32_t*>(data)[place]);
      } else {
        store_shared_16(to + 2 * i, reinterpret_cast<const uint16_t*>(data)[place]);
      }
    }
  }

  __device__ __forceinline__ void fetch(const Gemm16Args& args, Place tile) const {
    const int column = kSwapped ? tile.row : tile.column, row = kSwapped ? tile.column : tile.row;
    fetch_cols<0>(args, column, row);
    fetch_rows<0>(args, row, kRows);
  }

  // Of the group that all kRows rows from `row` on lie in, as far as they are rows of the output.
  template <int kIndex>
  __device__ __forceinline__ void fetch_cols(const Gemm16Args& args, int first, int row) const {
    if constexpr (kIndex < Epilogue::kCols) {
      constexpr int kBytes = size_of(Program::col(kIndex));
      const Vector90& v = args.col[kIndex];
      const uint8_t* data = static_cast<const uint8_t*>(v.data);
      if (v.outer_stride != 0) data += min(row, args.m - 1) / v.inner * v.outer_stride * kBytes;
      fetch<kBytes, false>(col<kIndex>(), data, v, first, kColumns, args.n);
      fetch_cols<kIndex + 1>(args, first, row);
    }
  }
  template <int kIndex>
  __device__ __forceinline__ void fetch_rows(const Gemm16Args& args, int first, int count) const {
    if constexpr (kIndex < Epilogue::kRows) {
      const Vector90& v = args.row[kIndex];
      fetch<size_of(Program::row(kIndex)), true>(
          row<kIndex>(), static_cast<const uint8_t*>(v.data), v, first, count, args.m);
      fetch_rows<kIndex + 1>(args, first, count);
    }
  }

  // What this thread has of an operand at `from`, in a unit (along) or a block (across).
  template <DType kType>
  __device__ __forceinline__ void read_along(RawPair& raw, uint32_t from, int unit) const {
    const int at = 8 * unit + 2 * (thread % 4);
    if (kType == DType::kFloat32) {
      load_shared_64(from + 4 * at, raw[0], raw[1]);
    } else {
      raw[0] = load_shared(from + 2 * at);
    }
  }
  template <DType kType>
  __device__ __forceinline__ void read_across(RawPair& raw, uint32_t from, int block) const {
    const int at = 64 * block + thread / 32 * 16 + thread % 32 / 4;
    if (kType == DType::kFloat32) {
      raw[0] = load_shared(from + 4 * at);
      raw[1] = load_shared(from + 4 * at + 32);
    } else {
      raw[0] = load_shared_16(from + 2 * at);
      raw[1] = load_shared_16(from + 2 * at + 16);
    }
  }
};

}  // namespace fusepass
