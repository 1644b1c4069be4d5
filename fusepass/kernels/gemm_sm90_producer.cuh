// The producer: one thread that keeps the ring of stages full.
#pragma once
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"

namespace fusepass {

// w's share of a stage. In a cluster each CTA loads half of the tile into both.
__device__ __forceinline__ void load_w(const Gemm90Args& args, uint32_t dst, uint32_t full,
                                       int k_block, int column, uint32_t rank) {
#if FUSEPASS_W_IS_KN
  // [k, n] with n contiguous: columns of 64 n, each 64 rows of k; halves are rows of k.
  const int k = k_block * kTileK + rank * (kTileK / kCluster);
  dst += rank * (kTileK / kCluster) * kRowBytes;
#pragma unroll
  for (int c = 0; c < kTileN / 64; ++c) {
    if (kCluster > 1) {
      tma_load_multicast(dst + c * kTileK * kRowBytes, &args.w, column + 64 * c, k, full, 3);
    } else {
      tma_load(dst + c * kTileK * kRowBytes, &args.w, column + 64 * c, k, full);
    }
  }
#else
  if (kCluster > 1) {
    tma_load_multicast(dst + rank * (kBytesW / kCluster), &args.w, k_block * kTileK,
                       column + rank * (kTileN / kCluster), full, 3);
  } else {
    tma_load(dst, &args.w, k_block * kTileK, column, full);
  }
#endif
}

// Brings tensor maps and the first stage's data near while the kernel ahead may still run. What that
// kernel writes into the same memory until then is not missed: it goes through the L2 cache.
__device__ __forceinline__ void prefetch_first(const Gemm90Args& args, uint32_t rank) {
  tma_prefetch_map(&args.x);
  tma_prefetch_map(&args.w);
  tma_prefetch_map(&args.out);
  const Tile tile(args, blockIdx.x / kCluster, rank);
  tma_prefetch(&args.x, 0, tile.row);
#if FUSEPASS_W_IS_KN
  tma_prefetch(&args.w, tile.column, rank * (kTileK / kCluster));
#else
  tma_prefetch(&args.w, 0, tile.column + rank * (kTileN / kCluster));
#endif
}

__device__ __forceinline__ void produce(const Gemm90Args& args, uint32_t shared, uint32_t rank) {
  prefetch_first(args, rank);
  grid_dependency_wait();
  Ring ring;
  const int tiles = args.clusters_m * args.tiles_n;
  for (int t = blockIdx.x / kCluster; t < tiles; t += gridDim.x / kCluster) {
    const Tile tile(args, t, rank);
    for (int k_block = 0; k_block < args.k_blocks; ++k_block) {
      const uint32_t full = shared + SharedLayout::kFull + 8 * ring.stage;
      const uint32_t empty = shared + SharedLayout::kEmpty + 8 * ring.stage;
      const uint32_t stage = shared + ring.stage * kBytesStage;
      mbarrier_wait(empty, ring.phase ^ 1);
      mbarrier_expect(full, kBytesStage);
      tma_load(stage, &args.x, k_block * kTileK, tile.row, full);
      load_w(args, stage + kBytesX, full, k_block, tile.column, rank);
      ring.next();
    }
  }
}

}  // namespace fusepass
