// The producer's loop of float32's kernels: every tile's stages in turn into the ring.
#pragma once
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"

namespace fusepass {

// Rows of w's tile that a CTA loads: in a cluster of two each loads half, into both.
constexpr int kShareN = kTileN / kCluster;

// A box of w, into every CTA of the cluster.
__device__ __forceinline__ void load_share(uint32_t dst, const TensorMap* w, int inner, int outer,
                                           uint32_t full) {
  if (kCluster > 1) {
    tma_load_multicast(dst, w, inner, outer, full, 3);
  } else {
    tma_load(dst, w, inner, outer, full);
  }
}

// Calls load(k_block, row of x, row of w, stage's address, its barrier) once for each stage that is
// free, the tiles' first rows; the loads must bring Layout::kStage bytes. Of each tile, `segments`
// times `segment_blocks` of its K: one segment of all tiles after the other. Behind each of them
// rest(tile, ring) may fill stages more.
template <class Layout, class Load, class Rest>
__device__ __forceinline__ void fill_ring(const Gemm90Args& args, uint32_t shared, uint32_t rank,
                                          int segments, int segment_blocks, Load load,
                                          Rest rest) {
  tma_prefetch_map(&args.x);
  tma_prefetch_map(&args.w);
  grid_dependency_wait();
  Ring ring;
  const int tiles = args.clusters_m * args.tiles_n;
  for (int t = blockIdx.x / kCluster; t < tiles * segments; t += gridDim.x / kCluster) {
    const Tile tile(args, t % tiles, rank);
    const int first = t / tiles * segment_blocks;
    const int end = min(first + segment_blocks, args.k_blocks);
    for (int k_block = first; k_block < end; ++k_block) {
      const uint32_t full = shared + Layout::kFull + 8 * ring.stage;
      mbarrier_wait(shared + Layout::kEmpty + 8 * ring.stage, ring.phase ^ 1);
      mbarrier_expect(full, Layout::kStage);
      load(k_block, tile.row, tile.column, shared + ring.stage * Layout::kStage, full);
      ring.next();
    }
    rest(tile, ring);
  }
}

template <class Layout, class Load>
__device__ __forceinline__ void fill_ring(const Gemm90Args& args, uint32_t shared, uint32_t rank,
                                          int segments, int segment_blocks, Load load) {
  fill_ring<Layout>(args, shared, rank, segments, segment_blocks, load, [](const Tile&, Ring&) {});
}

}  // namespace fusepass
