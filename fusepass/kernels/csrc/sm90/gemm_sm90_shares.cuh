// A cluster's CTAs have each summed a share of a tile's K; here they exchange these sums through one
// another's shared memory, and each finishes a share of the tile's columns. The order of the additions
// is that of the CTAs: the same bits every time.
#pragma once
#include "gemm_sm90_layout.cuh"
#include "gemm_sm90_ptx.cuh"

namespace fusepass {

using Accumulators = float[kBlocks][kAccumulators];
using Finished = float[kBlocks][kAccumulators / kSplit];  // a CTA's share of the tile

constexpr int kShareUnits = kFinishedN / 8;  // of 8 columns, four numbers a thread
// What a CTA receives lies where the ring was: of each CTA, consumer, block and unit 16 bytes a thread.
constexpr int kUnitBytes = 128 * 16;
constexpr int kSumBytes = kConsumers * kBlocks * kShareUnits * kUnitBytes;
static_assert(kSplit == 1 || kSplit * kSumBytes <= SharedLayout::kStaged);

// `acc` is this CTA's sum of the whole tile, `sum` all the CTAs' of its share. Every thread of the
// cluster passes two barriers meanwhile; the ring must have been read, and is not filled again.
__device__ __forceinline__ void exchange(const Accumulators& acc, Finished& sum, uint32_t shared,
                                         uint32_t rank, int consumer, int thread) {
  const uint32_t mine = shared + consumer * kBlocks * kShareUnits * kUnitBytes + thread * 16;
  const auto place = [](int b, int u) { return (b * kShareUnits + u) * kUnitBytes; };
  cluster_sync();  // no CTA reads its ring any more
#pragma unroll
  for (int to = 0; to < kSplit; ++to) {
    const uint32_t there = shared_of(to, mine + rank * kSumBytes);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int u = 0; u < kShareUnits; ++u) {
        const float* v = acc[b] + 4 * (to * kShareUnits + u);
        if (to != rank) {
          store_cluster(there + place(b, u), v);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[b][4 * u + i] = v[i];
        }
      }
    }
  }
  cluster_sync();
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int u = 0; u < kShareUnits; ++u) {
      float total[4];
#pragma unroll
      for (int from = 0; from < kSplit; ++from) {
        float v[4];
        if (from == rank) {
#pragma unroll
          for (int i = 0; i < 4; ++i) v[i] = sum[b][4 * u + i];
        } else {
          load_shared(mine + from * kSumBytes + place(b, u), v);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i] = from == 0 ? v[i] : total[i] + v[i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[b][4 * u + i] = total[i];
    }
  }
}

}  // namespace fusepass
