// The way of a tile's results from registers to global memory, and of what the epilogue reads of
// matrices the other way.
#pragma once
#include "gemm_sm90_layout.cuh"
#include "gemm_sm90_ptx.cuh"

namespace fusepass {

// The first element of a tile, or of its owner's share: a row of wgmma's A and one of its B. Swapped,
// a column and a row of the output.
struct Place {
  int row, column;
};

// In which of the epilogue's three parts the mat operands are first read, the first and the last.
FUSEPASS_KNOWN constexpr int first_mat_part() {
  int first = 3;
  for (int i = 0; i < kMats; ++i) {
    const int part = Program::mat_part(i);
    if (part >= 0 && part < first) first = part;
  }
  return first;
}
FUSEPASS_KNOWN constexpr int last_mat_part() {
  int last = 0;
  for (int i = 0; i < kMats; ++i) last = Program::mat_part(i) > last ? Program::mat_part(i) : last;
  return last;
}
constexpr int kFirstMatPart = first_mat_part();

// Behind which part the `index`-th of what is stored is put on its way. One output alone after the
// last part, as ever; and none before what it may overwrite, or come beside, is there and read.
FUSEPASS_KNOWN constexpr int put_part(int index) {
  if (kStores == 1) return 2;
  int part = 0;
  for (int i = 0, stored = 0; i < Epilogue::kOutputs; ++i) {
    if (!Epilogue::kIsColumnSum[i] && stored++ == index) part = Epilogue::kOutputPart[i];
  }
  return part > last_mat_part() - 1 ? part : last_mat_part() - 1;
}

FUSEPASS_KNOWN constexpr int last_put_part() {
  int last = 0;
  for (int i = 0; i < kStores; ++i) last = put_part(i) > last ? put_part(i) : last;
  return last;
}

constexpr int kLastPutPart = last_put_part();

// How many outputs' chunks are stored in the same tick as this one's or before.
FUSEPASS_KNOWN constexpr int stored_by(int index) {
  int count = 0;
  for (int i = 0; i < kStores; ++i) count += put_part(i) <= put_part(index);
  return count;
}
FUSEPASS_KNOWN constexpr int stored_before(int index) {
  int count = 0;
  for (int i = 0; i < kStores; ++i) {
    count += put_part(i) < put_part(index) || (put_part(i) == put_part(index) && i < index);
  }
  return count;
}

// The slots of their owner: a warp, whose chunks are 16 rows x kChunk columns; or, where the
// accumulators hold the output transposed, a consumer, whose four warps fill chunks of kChunk rows x
// 64 columns of output together, so that what is stored is whole lines of memory. The owner's first
// thread loads and stores. Chunks go through the slots in turn, from the first one in every tile.
//
// A chunk that is loaded: its slot's barrier completes a phase each time. Who then writes into the slot
// knows that it is free, since it was before it was loaded. Chunks that are only stored wait for the
// stores that read the slot last.
struct Staging {
  static constexpr int kBufferBytes = (kSwapped ? 4 : 1) * kChunkBytes;
  static constexpr int kOwnSlotBytes = (kSwapped ? 4 : 1) * kSlotBytes;
  // A slot is loaded again when its stores have been read, one chunk later; of two slots at once.
  static constexpr int kLag = kSlots > 2 ? 1 : 0;

  const Gemm16Args& args;
  uint32_t slots, full;  // of this owner, and their barriers
  int barrier;           // of the consumer
  int thread;            // of the owner

  __device__ __forceinline__ Staging(const Gemm16Args& args, uint32_t shared, int consumer,
                                     int barrier, int of_consumer)
      : args(args), barrier(barrier), thread(of_consumer % (kSwapped ? 128 : 32)) {
    const int owner = kSwapped ? consumer : consumer * 4 + of_consumer / 32;
    slots = shared + SharedLayout::kStaged + owner * kSlots * kOwnSlotBytes;
    full = shared + SharedLayout::kSlotFull + 8 * owner * kSlots;
  }

  __device__ __forceinline__ uint32_t buffer(int chunk, int index) const {
    return slots + chunk % kSlots * kOwnSlotBytes + index * kBufferBytes;
  }

  // Before a barrier of the consumer that comes before a tile's first put: all buffers are free.
  __device__ __forceinline__ void begin() const {
    if (kSwapped && kMats == 0 && thread == 0) tma_store_wait<0>();
  }

  __device__ __forceinline__ void end() const {
    if (thread == 0) tma_store_wait<0>();
    if (!kSwapped) __syncwarp();
  }

  // ---- matrices of 8 by 8: what eight lanes each point at, of one unit or of it and the next ----

  __device__ __forceinline__ uint32_t matrices(uint32_t from, int unit, bool two) const {
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

  // Four rounded numbers of unit `unit` of a chunk; every second call writes two units.
  template <int kIndex>
  __device__ __forceinline__ void put(uint32_t (&packed)[4], const float (&v)[4], int unit,
                                      int chunk) const {
    const int half = unit % 2 * 2;
    packed[half] = pack2(v[0], v[1]);
    packed[half + 1] = pack2(v[2], v[3]);
    const bool last = unit == kChunkUnits - 1;
    if (half == 0 && !last) return;
    if (!kSwapped && kMats == 0 && unit < 2) {  // The buffer must have been read. A tile's first
                                                // chunk waits for all.
      constexpr int kReading = kStores - 1 - stored_before(kIndex) + kStores * (kSlots - 2) +
                               stored_by(kIndex);
      if (thread == 0) {
        if (chunk == 0) {
          tma_store_wait<0>();
        } else {
          tma_store_wait<kReading>();
        }
      }
      __syncwarp();
    }
    if (half) {
      stmatrix_x4<kSwapped>(matrices(buffer(chunk, kIndex), unit - 1, true), packed);
    } else {
      stmatrix_x2<kSwapped>(matrices(buffer(chunk, kIndex), unit, false), packed);
    }
  }

  // The way back, of a mat operand: unit `unit`, an even one, of a chunk, and the next if there is one.
  __device__ __forceinline__ void get(uint32_t (&packed)[4], int index, int unit, int chunk) const {
    if (unit + 1 < kChunkUnits) {
      ldmatrix_x4<kSwapped>(matrices(buffer(chunk, index), unit, true), packed);
    } else {
      ldmatrix_x2<kSwapped>(matrices(buffer(chunk, index), unit, false), packed);
    }
  }

  // ---- chunks ----

  // Of the owner's share of a tile at `tile`.
  __device__ __forceinline__ Place place(int chunk, Place tile) const {
    return {tile.row + chunk / kBlockChunks * 64, tile.column + chunk % kBlockChunks * kChunk};
  }

  template <int kIndex>
  __device__ __forceinline__ void store(int chunk, Place tile) const {
    fence_async_shared();
    if (kSwapped) {
      if (kMats == 0) {
        // Of the stores so far so many may still read that the next chunk's buffer is free.
        static_assert(!kSwapped || kMats > 0 || kSlots >= 2, "least_slots");
        if (thread == 0) tma_store_wait<kStores * (kSlots - 1) - 1>();
      }
      barrier_sync(barrier, 128);
    } else {
      __syncwarp();
    }
    if (thread == 0) {
      const Place at = place(chunk, tile);
      const TensorMap* map = &args.out[kIndex];
      if (kSwapped) {
        tma_store(map, at.row, at.column, buffer(chunk, kIndex));
      } else {
        tma_store(map, at.column, at.row, buffer(chunk, kIndex));
      }
    }
  }

  // Asks for what a chunk reads; in the first thread, when its slot has been read.
  __device__ __forceinline__ void load(int chunk, Place tile) const {
    const Place at = place(chunk, tile);
    const uint32_t bar = full + 8 * (chunk % kSlots);
    mbarrier_expect(bar, kMats * kBufferBytes);
    const int outer = kSwapped ? at.column : at.row, inner = kSwapped ? at.row : at.column;
#pragma unroll
    for (int i = 0; i < kMats; ++i) tma_load(buffer(chunk, i), &args.mat[i], inner, outer, bar);
  }

  __device__ __forceinline__ void load_first(Place tile) const {
    if constexpr (kMats > 0) {
      if (thread != 0) return;
#pragma unroll
      for (int chunk = 0; chunk < kSlots; ++chunk) load(chunk, tile);
    }
  }

  // After all outputs' stores of the chunk kLag later, or at the tile's end: fills a chunk's slot for
  // the chunk that is in it next, of this tile or of the next one, if there are `more`.
  template <int kPending>
  __device__ __forceinline__ void load_again(int chunk, Place tile, Place next, bool more) const {
    if (kMats == 0 || thread != 0) return;
    const bool same = chunk + kSlots < kTileChunks;
    if (!same && !more) return;
    tma_store_wait<kPending>();
    if (same) {
      load(chunk + kSlots, tile);
    } else {
      load(chunk % kSlots, next);
    }
  }

  // Until what a chunk reads is there. `lap` is the number of tiles before this one.
  __device__ __forceinline__ void wait(int chunk, uint32_t lap) const {
    const int slot = chunk % kSlots, uses = (kTileChunks - slot + kSlots - 1) / kSlots;
    mbarrier_wait(full + 8 * slot, (chunk / kSlots + uses * lap) & 1);
  }
};

}  // namespace fusepass
