// Everything after a tile's mainloop: its numbers through the epilogue, unit of 8 columns by unit.
#pragma once
#include "gemm_sm90_boundary.cuh"
#include "gemm_sm90_heads.cuh"
#include "gemm_sm90_stream.cuh"
#include "gemm_sm90_sums.cuh"
#include "gemm_sm90_vectors.cuh"

namespace fusepass {

FUSEPASS_KNOWN constexpr int at_least_one(int v) { return v > 0 ? v : 1; }

// One tile's way. What a part of the epilogue reads is asked for from shared memory one tick before,
// as it lies there, and becomes numbers when the part runs.
struct Finish {
  static constexpr int kUnits = kFinishedN / 8, kTotal = kOutBlocks * kUnits;  // of output
  using Batch = Epilogue::Batch<4>;

  const Staging& staging;
  const Vectors& vectors;
  ColumnSums& sums;
  Place tile;
  uint32_t lap;
  uint32_t packed[kStores][4] = {};
  uint32_t mat[at_least_one(kMats)][4];
  RawPair col[at_least_one(Epilogue::kCols)], row[at_least_one(Epilogue::kRows)];

  // ---- operands: every function is for those that are first read in part kPart ----

  template <int kPart, int kIndex = 0>
  __device__ __forceinline__ void ask_cols(int unit) {
    if constexpr (kIndex < Epilogue::kCols) {
      if constexpr (Program::col_part(kIndex) == kPart) {
        ask_vector<Program::col(kIndex), !kSwapped>(col[kIndex], vectors.col<kIndex>(), unit);
      }
      ask_cols<kPart, kIndex + 1>(unit);
    }
  }
  template <int kPart, int kIndex = 0>
  __device__ __forceinline__ void ask_rows(int unit) {
    if constexpr (kIndex < Epilogue::kRows) {
      if constexpr (Program::row_part(kIndex) == kPart) {
        ask_vector<Program::row(kIndex), kSwapped>(row[kIndex], vectors.row<kIndex>(), unit);
      }
      ask_rows<kPart, kIndex + 1>(unit);
    }
  }
  template <DType kType, bool kIsAlong>
  __device__ __forceinline__ void ask_vector(RawPair& raw, uint32_t from, int unit) const {
    if (kIsAlong) {
      vectors.read_along<kType>(raw, from, unit % kUnits);
    } else if (unit % kUnits == 0) {
      vectors.read_across<kType>(raw, from, unit / kUnits);
    }
  }
  template <int kPart, int kIndex = 0>
  __device__ __forceinline__ void ask_mats(int unit) {
    if constexpr (kIndex < Epilogue::kMats) {
      if constexpr (Program::mat_part(kIndex) == kPart) {
        staging.get<kIndex>(mat[kIndex], unit % kChunkUnits, unit / kChunkUnits);
      }
      ask_mats<kPart, kIndex + 1>(unit);
    }
  }

  template <int kPart>
  __device__ __forceinline__ void ask(int unit) {
    if (unit < 0 || unit >= kTotal) return;
    ask_cols<kPart>(unit);
    ask_rows<kPart>(unit);
    if (kMats > 0) {
      if (kPart == kFirstMatPart && unit % kChunkUnits == 0) {
        staging.wait(unit / kChunkUnits, lap);
      }
      ask_mats<kPart>(unit);
    }
  }

  template <int kPart, int kIndex = 0, class B>
  __device__ __forceinline__ void fill_cols(B& b) {
    if constexpr (kIndex < Epilogue::kCols) {
      if constexpr (Program::col_part(kIndex) == kPart) {
        fill_vector<Program::col(kIndex), !kSwapped>(b.col[kIndex], col[kIndex]);
      }
      fill_cols<kPart, kIndex + 1>(b);
    }
  }
  template <int kPart, int kIndex = 0, class B>
  __device__ __forceinline__ void fill_rows(B& b) {
    if constexpr (kIndex < Epilogue::kRows) {
      if constexpr (Program::row_part(kIndex) == kPart) {
        fill_vector<Program::row(kIndex), kSwapped>(b.row[kIndex], row[kIndex]);
      }
      fill_rows<kPart, kIndex + 1>(b);
    }
  }
  template <DType kType, bool kIsAlong>
  __device__ __forceinline__ static void fill_vector(float (&to)[4], const RawPair& raw) {
    to[0] = first_of<kType>(raw);
    to[3] = second_of<kType, kIsAlong>(raw);
    to[1] = kIsAlong ? to[3] : to[0];
    to[2] = kIsAlong ? to[0] : to[3];
  }
  template <int kPart, int kIndex = 0, class B>
  __device__ __forceinline__ void fill_mats(B& b, int unit) {
    if constexpr (kIndex < Epilogue::kMats) {
      if constexpr (Program::mat_part(kIndex) == kPart) {
        const int half = unit % kChunkUnits % 2 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          b.mat[kIndex][i] = number_of<Program::mat(kIndex)>(mat[kIndex], half, i);
        }
      }
      fill_mats<kPart, kIndex + 1>(b, unit);
    }
  }

  // The i-th of a unit, as Staging::get left it; of 16 bits, two units, of which the second is at 2.
  template <DType kType>
  __device__ __forceinline__ static float number_of(const uint32_t (&raw)[4], int half, int i) {
    if (kType == DType::kFloat32) return __uint_as_float(raw[i]);
    if (kType == DType::kBool) {
      const uint32_t byte = kSwapped ? raw[i] : raw[i / 2] & (i % 2 ? 0xFF00 : 0xFF);
      return byte != 0 ? 1.0f : 0.0f;
    }
    const uint32_t pair = raw[half + i / 2];
    return unpack(i % 2 ? pair >> 16 : pair & 0xFFFF);
  }

  // ---- one part of one unit, and the outputs behind it ----

  template <int kPart, int kOutput = 0, int kStored = 0>
  __device__ __forceinline__ void put(Batch& b, int unit) {
    if constexpr (kOutput < Epilogue::kOutputs) {
      constexpr bool kIsSum = Epilogue::kIsColumnSum[kOutput];
      if constexpr (kIsSum && Epilogue::kOutputPart[kOutput] == kPart) {
        sums.add(kOutput - kStored, b.out[kOutput], unit / kUnits, unit % kUnits);
      }
      if constexpr (!kIsSum && put_part(kStored) == kPart) {
        staging.put<kStored>(packed[kStored], b.out[kOutput], unit % kChunkUnits,
                             unit / kChunkUnits);
      }
      put<kPart, kOutput + 1, kStored + !kIsSum>(b, unit);
    } else if constexpr (kStorePreact && put_part(kStores - 1) == kPart && kPart > 0) {
      staging.put<kStores - 1>(packed[kStores - 1], b.z, unit % kChunkUnits, unit / kChunkUnits);
    }
  }

  template <int kPart>
  __device__ __forceinline__ void run(Batch& b, const float* scalars, int unit) {
    fill_cols<kPart>(b);
    fill_rows<kPart>(b);
    fill_mats<kPart>(b, unit);
    if constexpr (kPart == 0) {
      if constexpr (kStorePreact && put_part(kStores - 1) == 0) {
        staging.put<kStores - 1>(packed[kStores - 1], b.z, unit % kChunkUnits, unit / kChunkUnits);
      }
      Epilogue::begin(b, scalars);
    }
    if constexpr (kPart == 1) Epilogue::middle(b, scalars);
    if constexpr (kPart == 2) Epilogue::end(b, scalars);
    put<kPart>(b, unit);
  }

  // Stores the chunks that became full one tick before, kIndex and those behind it that were put on
  // their way behind part kPart of `unit`.
  template <int kPart, int kIndex = kStores - 1>
  __device__ __forceinline__ void store_if_full(int unit) {
    if (unit < 0 || unit >= kTotal || unit % kChunkUnits != kChunkUnits - 1) return;
    if constexpr (kIndex >= 0) {
      store_if_full<kPart, kIndex - 1>(unit);
      if constexpr (put_part(kIndex) == kPart) staging.store<kIndex>(unit / kChunkUnits, tile);
    }
  }
};

template <class Batch>
__device__ __forceinline__ void set_z1(Batch& batch, const float* v) {
  if constexpr (kGated) {  // otherwise the program's batch has none
#pragma unroll
    for (int i = 0; i < 4; ++i) batch.z1[i] = v[i];
  }
}

// Unit of 8 columns by unit, as a pipeline: begin; middle; end. One tick runs each part on another
// unit. A finished chunk is stored a tick later, when its writes to shared memory have gone through.
template <int kCount>
__device__ __forceinline__ void finish(const float (&acc)[kBlocks][kCount], const float* scalars,
                                       const Staging& staging, const Vectors& vectors,
                                       ColumnSums& sums, Place tile, Place next, bool more,
                                       uint32_t lap, int never) {
  using F = Finish;
  F f{staging, vectors, sums, tile, lap};
  Epilogue::Batch<4> batch[3];
  f.ask<0>(0);
#pragma unroll
  for (int tick = 0; tick < F::kTotal + 3; ++tick) {
    if (tick >= 2 && tick < F::kTotal + 2) {
      f.run<2>(batch[(tick - 2) % 3], scalars, tick - 2);
    }
    if (tick >= 1 && tick < F::kTotal + 1) {
      f.run<1>(batch[(tick - 1) % 3], scalars, tick - 1);
    }
    if (tick < F::kTotal) {
      Epilogue::Batch<4>& b = batch[tick % 3];
      // A unit of z1 lies half a tile from the same unit of z, or in the next block.
      const int block = tick / F::kUnits * (kBlocks / kOutBlocks), unit = tick % F::kUnits;
#pragma unroll
      for (int i = 0; i < 4; ++i) b.z[i] = acc[block][4 * unit + i];
      if (kGated) set_z1(b, kSwapped ? &acc[block + 1][4 * unit] : &acc[block][4 * (F::kUnits + unit)]);
      set_rot(b, acc[block], unit);
      set_first(b, unit);
      f.run<0>(b, scalars, tick);
    }
    f.ask<0>(tick + 1);
    f.ask<1>(tick);
    f.ask<2>(tick - 1);
    f.store_if_full<0>(tick - 1);
    f.store_if_full<1>(tick - 2);
    f.store_if_full<2>(tick - 3);
    const int done = tick - 1 - kLastPutPart;
    if (kMats > 0 && done >= 0 && done % kChunkUnits == kChunkUnits - 1) {
      const int chunk = done / kChunkUnits - Staging::kLag;
      if (chunk >= 0) staging.load_again<Staging::kLag * kStores>(chunk, tile, next, more);
    }
    schedule_boundary(never);
  }
  if (kMats > 0 && Staging::kLag == 1) {
    staging.load_again<0>(kTileChunks - 1, tile, next, more);
  }
}

}  // namespace fusepass
