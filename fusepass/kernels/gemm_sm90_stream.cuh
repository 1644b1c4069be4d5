// The way of a tile's results from accumulators to global memory.
#pragma once
#include <type_traits>

#include "gemm_sm90_epilogue.cuh"
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"

namespace fusepass {

// One output's way from a warp's registers to global memory: chunks of 16 rows x kChunk columns, in
// turn through kStaging buffers. Both outputs share the buffers; `chunk` counts over both.
struct WarpStream {
  const TensorMap* map;
  uint32_t staging;  // of this warp
  int lane;

  __device__ __forceinline__ WarpStream(const TensorMap* map, uint32_t staging, int, int thread)
      : map(map), staging(staging + thread / 32 * kStaging * kChunkBytes), lane(thread % 32) {}

  __device__ __forceinline__ void begin() const {}

  __device__ __forceinline__ uint32_t buffer(int chunk) const {
    return staging + chunk % kStaging * kChunkBytes;
  }

  // Four rounded numbers of unit `unit` of a chunk; every second call writes two units.
  __device__ __forceinline__ void put(uint32_t (&packed)[4], const float (&v)[4], int unit,
                                      int chunk) const {
    const int half = unit % 2 * 2;
    packed[half] = pack2(v[0], v[1]);
    packed[half + 1] = pack2(v[2], v[3]);
    const bool last = unit == kChunkUnits - 1;
    if (half == 0 && !last) return;
    if (unit < 2) {  // The buffer must have been read. A tile's first chunk waits for all; with two
                     // outputs one chunk more is still being filled.
      if (lane == 0) {
        if (chunk == 0) {
          tma_store_wait<0>();
        } else {
          tma_store_wait<kStaging - (kStorePreact ? 2 : 1)>();
        }
      }
      __syncwarp();
    }
    // Lanes 0-15 point at the rows of the first unit of 8 columns, 16-31 of the second.
    const uint32_t line = lane & 15;
    const uint32_t row = buffer(chunk) + line * (kChunk * 2);
    if (half) {
      const uint32_t mine = unit - 1 + (lane >> 4);
      stmatrix_x4(row + 16 * (kSwizzled ? mine ^ (line & 7) : mine), packed);
    } else {
      stmatrix_x2(row + 16 * unit, packed);
    }
  }

  __device__ __forceinline__ void store(int chunk, int row, int column) const {
    fence_async_shared();
    __syncwarp();
    if (lane == 0) tma_store(map, column, row, buffer(chunk));
  }

  __device__ __forceinline__ void end() const {
    if (lane == 0) tma_store_wait<0>();
    __syncwarp();
  }
};

// The same where the accumulators hold the output transposed: rows of the tile are columns of the
// output. A consumer's four warps fill a chunk together, kChunk rows x 64 columns of output, so that
// what is stored is whole lines of memory; its first thread stores it.
struct ConsumerStream {
  const TensorMap* map;
  uint32_t staging;  // of this consumer
  int barrier, thread;

  __device__ __forceinline__ ConsumerStream(const TensorMap* map, uint32_t staging, int barrier,
                                            int thread)
      : map(map), staging(staging), barrier(barrier), thread(thread) {}

  __device__ __forceinline__ uint32_t buffer(int chunk) const {
    return staging + chunk % kStaging * (4 * kChunkBytes);
  }

  // Before a barrier of the consumer that comes before a tile's first put: all buffers are free.
  __device__ __forceinline__ void begin() const {
    if (thread == 0) tma_store_wait<0>();
  }

  // As WarpStream's. A buffer is free since the barrier in the store before.
  __device__ __forceinline__ void put(uint32_t (&packed)[4], const float (&v)[4], int unit,
                                      int chunk) const {
    const int half = unit % 2 * 2;
    packed[half] = pack2(v[0], v[1]);
    packed[half + 1] = pack2(v[2], v[3]);
    if (half == 0 && unit != kChunkUnits - 1) return;
    // Eight lanes each point at the rows of a matrix: columns 0-7 and 8-15 of the warp's 16, of the
    // first unit of 8 rows, then of the second.
    const uint32_t lane = thread % 32, line = lane & 7, columns = thread / 32 * 2 + (lane >> 3 & 1);
    const uint32_t row = buffer(chunk) + line * 128 + 16 * (columns ^ line);
    if (half) {
      stmatrix_transposed_x4(row + (unit - 1 + (lane >> 4)) * 1024, packed);
    } else {
      stmatrix_transposed_x2(row + unit * 1024, packed);
    }
  }

  // `row` and `column` of the tile: column and row of the output.
  __device__ __forceinline__ void store(int chunk, int row, int column) const {
    // Of the stores so far so many may still read that the next chunk's buffer, with two outputs
    // the one's after it, is free.
    constexpr int kReading = kStaging - (kStorePreact ? 3 : 2);
    static_assert(kReading >= 0 || !kSwapped, "least_buffers");
    fence_async_shared();
    if (thread == 0) tma_store_wait<kReading>();
    barrier_sync(barrier, 128);
    if (thread == 0) tma_store(map, row, column, buffer(chunk));
  }

  __device__ __forceinline__ void end() const {
    if (thread == 0) tma_store_wait<0>();
  }
};

using Stream = std::conditional_t<kSwapped, ConsumerStream, WarpStream>;

}  // namespace fusepass

