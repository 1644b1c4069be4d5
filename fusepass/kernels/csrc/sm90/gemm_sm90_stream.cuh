// The way of a tile's results from registers to global memory, and of what the epilogue reads of
// matrices the other way.
#pragma once
#include "gemm_sm90_chunk.cuh"
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

FUSEPASS_KNOWN constexpr bool reads_wide() {
  bool any = false;
  for (int i = 0; i < kMats; ++i) any = any || Program::mat(i) == DType::kFloat32;
  return any;
}
constexpr int kLeastPutPart = last_mat_part() - (reads_wide() ? 0 : 1);

// Behind which part the `index`-th of what is stored is put on its way. One output alone after the
// last part, as ever; and none before what it may overwrite, or come beside, is there and read: in the
// tick before, float32 in the same tick but behind it.
FUSEPASS_KNOWN constexpr int put_part(int index) {
  if (kStores == 1) return 2;
  int part = 0;
  for (int i = 0, stored = 0; i < Epilogue::kOutputs; ++i) {
    if (!Epilogue::kIsColumnSum[i] && stored++ == index) part = Epilogue::kOutputPart[i];
  }
  return part > kLeastPutPart ? part : kLeastPutPart;
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
  static constexpr int kUnits = (kSwapped ? 4 : 1) * kChunkUnits;  // of 16 x 8 elements, of a chunk
  static constexpr int kOwnSlotBytes = kUnits * kGeometry.slot_bytes;
  static constexpr int kLoaded = kUnits * mat_offset(kMats);  // bytes of a chunk's operands
  // A slot is loaded again when its stores have been read, one chunk later; of two slots at once.
  static constexpr int kLag = kSlots > 2 ? 1 : 0;

  const Gemm16Args& args;
  uint32_t slots, full;  // of this owner, and their barriers
  int barrier;           // of the consumer
  int thread;            // of the owner
  int weight = 0;        // of several, whose result the tile is of

  __device__ __forceinline__ Staging(const Gemm16Args& args, uint32_t shared, int consumer,
                                     int barrier, int of_consumer)
      : args(args), barrier(barrier), thread(of_consumer % (kSwapped ? 128 : 32)) {
    const int owner = kSwapped ? consumer : consumer * 4 + of_consumer / 32;
    slots = shared + SharedLayout::kStaged + owner * kSlots * kOwnSlotBytes;
    full = shared + SharedLayout::kSlotFull + 8 * owner * kSlots;
  }

  // `offset`: mat_offset or store_offset.
  __device__ __forceinline__ uint32_t buffer(int chunk, int offset) const {
    return slots + chunk % kSlots * kOwnSlotBytes + offset * kUnits;
  }

  // Before a barrier of the consumer that comes before a tile's first put: all buffers are free.
  __device__ __forceinline__ void begin() const {
    if (kSwapped && kMats == 0 && thread == 0) tma_store_wait<0>();
  }

  __device__ __forceinline__ void end() const {
    if (thread == 0) tma_store_wait<0>();
    if (!kSwapped) __syncwarp();
  }

  // The buffer must have been read. A tile's first chunk waits for all.
  template <int kIndex>
  __device__ __forceinline__ void wait_until_read(int chunk) const {
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

  // Four numbers of unit `unit` of a chunk, rounded to the output's dtype; every second call writes two
  // units. `kept` is what this output's last call left.
  template <int kIndex>
  __device__ __forceinline__ void put(uint32_t (&kept)[4], const float (&v)[4], int unit,
                                      int chunk) const {
    constexpr bool kWide = Program::store(kIndex) == DType::kFloat32;
    const bool second = unit % 2 == 1, waits = !second && unit != kChunkUnits - 1;
    const uint32_t to = buffer(chunk, kOffset<kIndex>);
    uint32_t now[4];
    if (kWide) {
#pragma unroll
      for (int i = 0; i < 4; ++i) now[i] = __float_as_uint(v[i]);
    } else {
      kept[second * 2] = pack2(v[0], v[1]);
      kept[second * 2 + 1] = pack2(v[2], v[3]);
    }
    if (!waits && !kSwapped && kMats == 0 && unit < 2) wait_until_read<kIndex>(chunk);
    if (kWide) {
      if (second) put_wide(to, kept, unit - 1, thread);
      if (!waits) put_wide(to, now, unit, thread);
#pragma unroll
      for (int i = 0; i < 4; ++i) kept[i] = now[i];
    } else if (second) {
      stmatrix_x4<kSwapped>(matrices(to, unit - 1, true, thread), kept);
    } else if (!waits) {
      stmatrix_x2<kSwapped>(matrices(to, unit, false, thread), kept);
    }
  }
  template <int kIndex>
  static constexpr int kOffset = store_offset(kIndex);

  // The way back, of a mat operand: unit `unit` of a chunk; of 16 bits an even one, and the next if
  // there is one.
  template <int kIndex>
  __device__ __forceinline__ void get(uint32_t (&raw)[4], int unit, int chunk) const {
    constexpr int kFrom = mat_offset(kIndex);
    const uint32_t from = buffer(chunk, kFrom);
    if (Program::mat(kIndex) == DType::kFloat32) {
      get_wide(from, raw, unit, thread);
    } else if (Program::mat(kIndex) == DType::kBool) {
      get_bytes(from, raw, unit, thread);
    } else if (unit % 2 == 0 && unit + 1 < kChunkUnits) {
      ldmatrix_x4<kSwapped>(matrices(from, unit, true, thread), raw);
    } else if (unit % 2 == 0) {
      ldmatrix_x2<kSwapped>(matrices(from, unit, false, thread), raw);
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
      constexpr int kFrom = store_offset(kIndex);
      const uint32_t from = buffer(chunk, kFrom);
      boxes<Program::store(kIndex)>(place(chunk, tile), [&](uint32_t at, int inner, int outer) {
        tma_store(&args.out[kSeveral ? weight : kIndex], inner, outer, from + at);
      });
      tma_store_commit();
    }
  }

  // Calls with each box of a chunk of that dtype: where it begins in the buffer, and in the matrix.
  template <DType kType, class F>
  __device__ __forceinline__ static void boxes(Place at, F box) {
    constexpr bool kTwo = kType == DType::kFloat32 && (kSwapped || kSwizzled);
    const int outer = kSwapped ? at.column : at.row, inner = kSwapped ? at.row : at.column;
    box(0, inner, outer);
    if (kTwo) box((kSwapped ? kChunk : 16) * 128, inner + 32, outer);
  }

  // Asks for what a chunk reads; in the first thread, when its slot has been read.
  __device__ __forceinline__ void load(int chunk, Place tile) const {
    const uint32_t bar = full + 8 * (chunk % kSlots);
    mbarrier_expect(bar, kLoaded);
    load_mats<0>(chunk, place(chunk, tile), bar);
  }
  template <int kIndex>
  __device__ __forceinline__ void load_mats(int chunk, Place at, uint32_t bar) const {
    if constexpr (kIndex < kMats) {
      constexpr int kFrom = mat_offset(kIndex);
      const uint32_t to = buffer(chunk, kFrom);
      boxes<Program::mat(kIndex)>(repeated<kIndex>(at), [&](uint32_t in, int inner, int outer) {
        tma_load(to + in, &args.mat[kIndex], inner, outer, bar);
      });
      load_mats<kIndex + 1>(chunk, at, bar);
    }
  }

  // Where a chunk lies in a mat that may be the same for several groups of rows and of columns.
  template <int kIndex>
  __device__ __forceinline__ Place repeated(Place at) const {
    if (kHead == 0) return at;
    return {at.row % args.mat_rows[kIndex], at.column % args.mat_columns[kIndex]};
  }

  __device__ __forceinline__ void load_first(Place tile) const {
    if constexpr (kMats > 0) {
      if (thread != 0) return;
#pragma unroll
      for (int chunk = 0; chunk < kSlots && chunk < kTileChunks; ++chunk) load(chunk, tile);
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
