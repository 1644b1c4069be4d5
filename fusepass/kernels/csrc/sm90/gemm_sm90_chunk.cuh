// Where a thread's numbers of a unit lie in a chunk's buffer: 16 rows x kChunk columns of a warp; or,
// where the accumulators hold the output transposed, kChunk rows x 64 columns of a consumer.
#pragma once
#include "gemm_sm90_layout.cuh"
#include "gemm_sm90_ptx.cuh"

namespace fusepass {

// Of 16 bits, matrices of 8 by 8: what eight lanes each point at, of one unit or of it and the next.
// `thread` is the warp's, swapped the consumer's.
__device__ __forceinline__ uint32_t matrices(uint32_t from, int unit, bool two, int thread) {
  const uint32_t lane = thread % 32;
  if (kSwapped) {  // columns 0-7 and 8-15 of the warp's 16, of the first 8 rows, then of the second
    const uint32_t line = lane & 7, columns = thread / 32 * 2 + (lane >> 3 & 1);
    const uint32_t row = from + line * 128 + 16 * (columns ^ line);
    return two ? row + (unit + (lane >> 4)) * 1024 : row + unit * 1024;
  }
  // Lanes 0-15 point at the rows of the first unit of 8 columns, 16-31 of the second.
  const uint32_t line = lane & 15;
  const uint32_t row = from + line * (kChunk * 2);
  if (!two) return row + 16 * unit;
  const uint32_t mine = unit + (lane >> 4);
  return row + 16 * (kSwizzled ? mine ^ (line & 7) : mine);
}

// Where this thread's first number of float32 of a unit lies, and the others from there on: plain, two
// and, 8 rows below, two more; swapped, of two columns, 8 apart, two rows. Lines of 128 bytes are
// swizzle rows, of 32 columns; otherwise the pitch keeps banks apart.
template <int kNumber>
__device__ __forceinline__ uint32_t wide(uint32_t from, int unit, int thread) {
  const uint32_t lane = thread % 32;
  uint32_t line, column;
  if (kSwapped) {
    line = 8 * unit + 2 * (lane % 4) + kNumber % 2;
    column = thread / 32 * 16 + lane / 4 + kNumber / 2 * 8;
  } else {
    line = lane / 4 + kNumber / 2 * 8;
    column = 8 * unit + 2 * (lane % 4) + kNumber % 2;
  }
  if (!kSwapped && !kSwizzled) return from + line * (kChunk * 4) + column * 4;
  constexpr uint32_t kLines = kSwapped ? kChunk : 16;
  const uint32_t inside = column % 32;
  return from + column / 32 * (kLines * 128) + line * 128 + 16 * ((inside / 4) ^ (line & 7)) +
         inside % 4 * 4;
}

__device__ __forceinline__ void put_wide(uint32_t to, const uint32_t (&v)[4], int unit, int thread) {
  if (kSwapped) {
    store_shared(wide<0>(to, unit, thread), v[0]);
    store_shared(wide<1>(to, unit, thread), v[1]);
    store_shared(wide<2>(to, unit, thread), v[2]);
    store_shared(wide<3>(to, unit, thread), v[3]);
  } else {
    store_shared_64(wide<0>(to, unit, thread), v[0], v[1]);
    store_shared_64(wide<2>(to, unit, thread), v[2], v[3]);
  }
}

__device__ __forceinline__ void get_wide(uint32_t from, uint32_t (&v)[4], int unit, int thread) {
  if (kSwapped) {
    v[0] = load_shared(wide<0>(from, unit, thread));
    v[1] = load_shared(wide<1>(from, unit, thread));
    v[2] = load_shared(wide<2>(from, unit, thread));
    v[3] = load_shared(wide<3>(from, unit, thread));
  } else {
    load_shared_64(wide<0>(from, unit, thread), v[0], v[1]);
    load_shared_64(wide<2>(from, unit, thread), v[2], v[3]);
  }
}

// Of bool, the same four elements. Lines are of 64 bytes, whose four 16 are permuted by the number of
// the pair of lines, so that a warp's reads meet in no bank. Plain, two columns are one read.
__device__ __forceinline__ void get_bytes(uint32_t from, uint32_t (&v)[4], int unit, int thread) {
  const uint32_t lane = thread % 32;
  if (kSwapped) {
    const uint32_t pair = lane % 4;
    from += unit * 512 + pair * 128 + 16 * (thread / 32 ^ pair) + lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = load_shared_8(from + i % 2 * 64 + i / 2 * 8);
  } else {
    from += lane / 4 * 64 + 16 * (unit / 2 ^ lane / 8) + unit % 2 * 8 + lane % 4 * 2;
    v[0] = load_shared_16(from);
    v[1] = load_shared_16(from + 8 * 64);
  }
}

}  // namespace fusepass
