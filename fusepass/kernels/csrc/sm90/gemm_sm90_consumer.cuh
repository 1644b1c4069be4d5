// A consumer warpgroup: mainloop and epilogue of its tiles.
#pragma once
#include "gemm_sm90_finish.cuh"
#include "gemm_sm90_layout.cuh"
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_shares.cuh"
#include "gemm_sm90_wgmma.cuh"

namespace fusepass {

// Named barriers; 0 is __syncthreads.
constexpr int kTurn = 1;   // + consumer: its turn in the mainloop (ping-pong)
constexpr int kGroup = 4;  // + consumer: its four warps

// Gives a stage back to the producers that fill it: one arrival a warp and CTA of the cluster.
__device__ __forceinline__ void release(uint32_t empty, int lane) {
  if (kCluster > 1) {
    if (lane < kCluster) mbarrier_arrive_remote(empty, lane);
  } else {
    if (lane == 0) mbarrier_arrive(empty);
  }
}

// Asks for the bias of the tile's columns, or of this consumer's rows where operands are swapped, to
// arrive in shared memory some time before the consumer's next tile. It lies there as the weights'
// rows lie in a stage. `weight`: the tile's, of several.
template <class Args>
__device__ __forceinline__ void fetch_bias(const Args& args, uint32_t bias, int first, int weight,
                                           int thread) {
  constexpr int kPairs = (kSwapped ? 64 * kBlocks : kTileN) / 2;
  constexpr int kTurn = (kGated ? kRowsOfAWeight : 2 * kPairs) / 2;
#pragma unroll
  for (int i = 0; i < kPairs; i += 128) {
    const int pair = i + thread;  // n is even and the bias 4-byte aligned
    if (pair < kPairs) {
      const int turn = kGated ? pair / kTurn : 0;
      const int at = first / 2 + turn / 2 * kTurn + pair - turn * kTurn;
      const void* of = turn % 2 ? args.bias[1] : args.bias[0];
      int columns = args.n;
      if constexpr (kSeveral) of = args.bias_of[weight], columns = args.n_of[weight];
      const bool inside = 2 * at < columns && (!(kGated || kSeveral) || of != nullptr);
      const void* from = static_cast<const uint32_t*>(of) + (inside ? at : 0);
      copy_async_4(bias + 4 * pair, inside ? from : &args, inside ? 4 : 0);
    }
  }
}

// Without a bias a tile's first product sets the accumulators, where the epilogue leaves registers for
// the two ways of it; elsewhere they start from zero.
constexpr bool kFirstSets = kSplit == 1 && Epilogue::kIsEmpty;

__device__ __forceinline__ void start_from_zero(Accumulators& acc) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) acc[b][i] = 0.0f;
  }
}

// A number of the bias, which lies at a multiple of 4 in shared memory, for the accumulators to start
// from. fp16: ptxas would convert it for each of them between the products, and have these wait for
// one another; not so behind an integer operation with a zero that it does not know.
__device__ __forceinline__ float bias_number(uint16_t bits, uint32_t address) {
  const float v = unpack(bits);
  return FUSEPASS_BF16 ? v : __uint_as_float(__float_as_uint(v) ^ (address & 3));
}

// Starts a tile's accumulators from the bias: here it costs a consumer nothing while the other has
// its turn; in the epilogue every read would wait behind the tensor cores' own.
__device__ __forceinline__ void start_from_bias(Accumulators& acc, uint32_t bias, int thread) {
  if (kSwapped) {
    const uint32_t mine = bias + 2 * (thread / 32 * 16 + thread % 32 / 4);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const float above = bias_number(load_shared_16(mine + 128 * b), bias);
      const float below = bias_number(load_shared_16(mine + 128 * b + 16), bias);
#pragma unroll
      for (int i = 0; i < kAccumulators; i += 4) {
        acc[b][i] = acc[b][i + 1] = above;
        acc[b][i + 2] = acc[b][i + 3] = below;
      }
    }
    return;
  }
  bias += 4 * (thread % 4);
#pragma unroll
  for (int u = 0; u < kTileN / 8; ++u) {
    const uint32_t pair = load_shared(bias + 16 * u);
    const float even = bias_number(pair & 0xFFFF, bias), odd = bias_number(pair >> 16, bias);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      acc[b][4 * u] = acc[b][4 * u + 2] = even;
      acc[b][4 * u + 1] = acc[b][4 * u + 3] = odd;
    }
  }
}

// Whatever makes the accumulators happens before this, not between the multiplications.
__device__ __forceinline__ void pin(Accumulators& acc) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) asm volatile("" : "+f"(acc[b][i])::"memory");
  }
}

// Multiplies one tile, onto what the accumulators hold if `started`; one group of wgmma stays in
// flight, so a stage is given back one step late. On return the last group is still in flight, and
// `ring` is past the tile.
__device__ __forceinline__ uint32_t mainloop(Accumulators& acc, uint32_t shared, Ring& ring,
                                             int k_blocks, int first_row, bool started, int lane) {
  uint32_t previous = 0;
  first_row = uniform(first_row);
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    const uint32_t stage = uniform(shared + ring.stage * kBytesStage);
    mbarrier_wait(shared + SharedLayout::kFull + 8 * ring.stage, ring.phase);
    const uint32_t x = descriptor_low(stage + first_row * kRowBytes, 16);
    const uint32_t w = descriptor_low(stage + kBytesX, kTileK * kRowBytes);
    // 16 of K are 32 bytes of a row, or 16 rows.
    constexpr int kStepX = (FUSEPASS_X_IS_KM ? 16 * kRowBytes : 32) >> 4;
    constexpr int kStepW = (FUSEPASS_W_IS_KN ? 16 * kRowBytes : 32) >> 4;
    const uint32_t first = kFirstSets ? started | k_block : 1;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        wgmma(acc[b], descriptor(x + (b * 64 * kRowBytes >> 4) + step * kStepX),
              descriptor(w + step * kStepW), step == 0 ? first : 1);
      }
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (k_block > 0) release(previous, lane);
    previous = shared + SharedLayout::kEmpty + 8 * ring.stage;
    ring.next();
  }
  return previous;
}

// The consumers' part of the kernel's start, before its first barrier.
__device__ __forceinline__ void init_slots(uint32_t shared) {
  constexpr int kBarriers = kMats > 0 ? kSlotOwners * kSlots : 0;
  for (int i = 0; i < kBarriers; ++i) mbarrier_init(shared + SharedLayout::kSlotFull + 8 * i, 1);
}

__device__ __forceinline__ void consume(const KernelArgs& args, uint32_t shared, uint32_t rank,
                                        int consumer) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  float scalars[Epilogue::kScalars + 1];
  Epilogue::load(scalars, GemmScalars{args});
#ifdef FUSEPASS_APART
  scalars[Epilogue::kScalars] = __int_as_float(args.k_blocks);
#endif

  Staging staging(args, shared, consumer, kGroup + consumer, thread);
  const Vectors vectors(shared, consumer, thread);
  ColumnSums sums;
  const int first_row = kPingpong ? 0 : consumer * kBlocks * 64;
  const int first_out = first_row / (kGated && kSwapped ? 2 : 1);
  const int tiles = args.clusters_m * args.tiles_n, clusters = gridDim.x / (kCluster * kSplit);
  const Steps steps(args, rank);

  Ring ring;
  if (kPingpong) {
    ring.skip(consumer * steps.count);
    if (consumer == kConsumers - 1) barrier_arrive(kTurn + 0, 256);
  }
  // The bias of a tile that a cluster shares is in the sum of its first CTA.
  const bool has_bias = (args.bias[0] != nullptr || (kGated && args.bias[1] != nullptr)) &&
                        (kSplit == 1 || rank == 0);
  const uint32_t bias = shared + SharedLayout::kBias + SharedLayout::kBiasBytes * consumer;
  const auto bias_of = [&](const Tile& of) { return kSwapped ? of.row + first_out : of.column; };
  // What the consumer finishes of a tile, and a warp stores.
  const auto share = [&](const Tile& of) {
    return Place{of.row + first_out, of.column + (kSplit > 1 ? int(rank) * kFinishedN : 0)};
  };
  const auto stored = [&](Place at) {
    return Place{at.row + (kSwapped ? 0 : warp * 16), at.column};
  };
  const int stride = clusters * (kPingpong ? kConsumers : 1);
  int t = blockIdx.x / (kCluster * kSplit) + (kPingpong ? consumer * clusters : 0);
  Tile tile(args, t, rank);
  if (has_bias && t < tiles) fetch_bias(args, bias, bias_of(tile), tile.weight, thread);

  Accumulators acc;
  for (uint32_t lap = 0; t < tiles; t += stride, ++lap) {
    const Place mine = share(tile);
    staging.begin();
    if (has_bias) {
      copy_async_wait();
      barrier_sync(kGroup + consumer, 128);
      start_from_bias(acc, bias, thread);
    } else if (!kFirstSets) {
      start_from_zero(acc);
    }
    if (kHasVectors) {
      if (!has_bias) barrier_sync(kGroup + consumer, 128);  // the last tile's have been read
      vectors.fetch(args, mine);
      copy_async_commit();
    }
    pin(acc);
    barrier_sync((kPingpong ? kTurn : kGroup) + consumer, kPingpong ? 256 : 128);
    if (kMats > 0 && lap == 0) {  // behind the first loads of the mainloop
      mbarrier_wait(shared + SharedLayout::kFull + 8 * ring.stage, ring.phase);
      staging.load_first(stored(mine));
    }
    const uint32_t last = mainloop(acc, shared, ring, steps.count, first_row, has_bias, lane);
    if (kPingpong) {
      barrier_arrive(kTurn + (consumer + 1) % kConsumers, 256);
      ring.skip((kConsumers - 1) * steps.count);
    }
    // Where the next tile lies is worked out while the last products are still under way.
    const Tile next(args, t + stride, rank);
    const bool more = t + stride < tiles;
    if (has_bias && more) fetch_bias(args, bias, bias_of(next), next.weight, thread);
    wgmma_wait<0>();
    if (kSplit == 1 || steps.count > 0) release(last, lane);
    if (kHasVectors) {
      copy_async_commit();
      copy_async_wait_but_one();
      barrier_sync(kGroup + consumer, 128);
    }
    sums.begin(args, mine.column, lane);
    staging.weight = tile.weight;
    const Place here = stored(mine), there = stored(share(next));
    if constexpr (kSplit == 1) {
      finish(acc, scalars, staging, vectors, sums, here, there, more, lap, args.k_blocks);
    } else {
      Finished sum;
      exchange(acc, sum, shared, rank, consumer, thread);
      finish(sum, scalars, staging, vectors, sums, here, there, more, lap, args.k_blocks);
    }
    sums.store(args, mine.column, mine.row, thread);
    tile = next;
  }
  staging.end();
}

}  // namespace fusepass
