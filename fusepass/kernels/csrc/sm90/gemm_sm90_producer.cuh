// The producer: one thread that keeps the ring of stages full.
#pragma once
#include "gemm_sm90_layout.cuh"
#include "gemm_sm90_ptx.cuh"

namespace fusepass {

// One operand's share of a stage, a tile of `kRows` rows: all of it, or, if the CTAs of a cluster
// `kShared` it, half, into both. `kBoth`: its rows are `map`'s and `second`'s by turns.
template <int kRows, bool kTransposed, bool kShared, bool kBoth>
__device__ __forceinline__ void load_operand(const TensorMap* map, const TensorMap* second,
                                             uint32_t dst, uint32_t full, int k, int first,
                                             uint32_t rank) {
  constexpr int kCtas = kShared ? kCluster : 1;
  const auto load = [&](uint32_t to, bool other, int inner, int outer) {
    const TensorMap* from = kBoth && other ? second : map;
    if (kCtas > 1) {
      tma_load_multicast(to, from, inner, outer, full, 3);
    } else {
      tma_load(to, from, inner, outer, full);
    }
  };
  const uint32_t share = kCtas > 1 ? rank : 0;
  constexpr int kTurn = kBoth ? kRowsOfAWeight : kRows;
  constexpr int kTurns = kRows / kTurn;
  if (kTransposed) {  // [k, rows], rows contiguous: 64 rows by 64 of k at a time; halves are of k
#pragma unroll
    for (int c = 0; c < kRows / 64; ++c) {
      const int turn = 64 * c / kTurn, row = turn / 2 * kTurn + 64 * c % kTurn;
      load(dst + (c * kTileK + share * (kTileK / kCtas)) * kRowBytes, turn % 2 == 1, first + row,
           k + share * (kTileK / kCtas));
    }
  } else if (kBoth) {  // of a pair one CTA loads the one weight's rows, one the other's
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (kCtas > 1 && turn % 2 != share) continue;
      load(dst + turn * kTurn * kRowBytes, turn % 2 == 1, k, first + turn / 2 * kTurn);
    }
  } else {
    load(dst + share * (kRows / kCtas) * kRowBytes, false, k, first + share * (kRows / kCtas));
  }
}

// The map of the weight that a tile is of, and those of wgmma's operands.
__device__ __forceinline__ const TensorMap* map_of_weight(const Gemm16Args& args, const Tile&) {
  return kSwapped ? &args.x : &args.w;
}
__device__ __forceinline__ const TensorMap* map_of_weight(const SeveralArgs& args, const Tile& tile) {
  return &args.weight[tile.weight];
}
__device__ __forceinline__ const TensorMap* map_of_x(const KernelArgs& args, const Tile& tile) {
  return kSwapped ? map_of_weight(args, tile) : &args.x;
}
__device__ __forceinline__ const TensorMap* map_of_w(const KernelArgs& args, const Tile& tile) {
  return kSwapped ? &args.w : map_of_weight(args, tile);
}

__device__ __forceinline__ void load_x(const KernelArgs& args, uint32_t stage, uint32_t full, int k,
                                       const Tile& tile, uint32_t rank) {
  load_operand<kTileM, FUSEPASS_X_IS_KM, kSharesX, kGated && kSwapped>(
      map_of_x(args, tile), &args.second, stage, full, k, tile.row, rank);
}

__device__ __forceinline__ void load_w(const KernelArgs& args, uint32_t stage, uint32_t full, int k,
                                       const Tile& tile, uint32_t rank) {
  load_operand<kTileN, FUSEPASS_W_IS_KN, !kSharesX, kGated && !kSwapped>(
      map_of_w(args, tile), &args.second, stage + kBytesX, full, k, tile.column, rank);
}

// The first box of what load_operand loads, into the L2 cache.
template <int kRows, bool kTransposed, bool kShared, bool kBoth>
__device__ __forceinline__ void prefetch_share(const TensorMap* map, const TensorMap* second, int k,
                                               int first, uint32_t rank) {
  constexpr int kCtas = kShared ? kCluster : 1;
  const uint32_t share = kCtas > 1 ? rank : 0;
  if (kTransposed) {
    tma_prefetch(map, first, k + share * (kTileK / kCtas));
  } else if (kBoth) {
    tma_prefetch(share ? second : map, k, first);
  } else {
    tma_prefetch(map, k, first + share * (kRows / kCtas));
  }
}

// Brings tensor maps and the first stage's data near while the kernel ahead may still run. What that
// kernel writes into the same memory until then is not missed: it goes through the L2 cache.
__device__ __forceinline__ void prefetch_first(const KernelArgs& args, uint32_t rank) {
  tma_prefetch_map(&args.x);
  tma_prefetch_map(&args.w);
  tma_prefetch_map(&args.out[0]);
  const Tile tile(args, blockIdx.x / (kCluster * kSplit), rank);
  const int k = Steps(args, rank).first * kTileK;
  if (kSeveral) tma_prefetch_map(map_of_weight(args, tile));
  prefetch_share<kTileM, FUSEPASS_X_IS_KM, kSharesX, kGated && kSwapped>(
      map_of_x(args, tile), &args.second, k, tile.row, rank);
  prefetch_share<kTileN, FUSEPASS_W_IS_KN, !kSharesX, kGated && !kSwapped>(
      map_of_w(args, tile), &args.second, k, tile.column, rank);
}

__device__ __forceinline__ void produce(const KernelArgs& args, uint32_t shared, uint32_t rank) {
  prefetch_first(args, rank);
  grid_dependency_wait();
  Ring ring;
  const int tiles = args.clusters_m * args.tiles_n, clusters = gridDim.x / (kCluster * kSplit);
  const Steps steps(args, rank);
  for (int t = blockIdx.x / (kCluster * kSplit); t < tiles; t += clusters) {
    const Tile tile(args, t, rank);
    for (int step = 0; step < steps.count; ++step) {
      const uint32_t full = shared + SharedLayout::kFull + 8 * ring.stage;
      const uint32_t empty = shared + SharedLayout::kEmpty + 8 * ring.stage;
      const uint32_t stage = shared + ring.stage * kBytesStage;
      const int k = (steps.first + step) * kTileK;
      mbarrier_wait(empty, ring.phase ^ 1);
      mbarrier_expect(full, kBytesStage);
      load_x(args, stage, full, k, tile, rank);
      load_w(args, stage, full, k, tile, rank);
      ring.next();
    }
  }
}

}  // namespace fusepass
