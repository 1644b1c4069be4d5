// out = epilogue(x @ w^T + bias) in float32 accuracy on Hopper's 16-bit tensor cores, from operands
// split into float16 pieces (split_sm90.cu): x w = hi hi + 2^-11 (hi lo + lo hi), lo lo being below
// the last place. One persistent launch: a producer warp feeds a ring of stages that hold both
// pieces of both operands, and two consumer warpgroups take half of the rows of a tile each.
//
// A tensor core cuts, where an FMA rounds, so a long chain drifts. The chain of hi hi is therefore
// 64 of K, and then added to a float32 by an ordinary addition while the tensor cores work on the
// corrections, whose own drift is 2^-11 of that and may go on to the end.
//
// Macros: FUSEPASS_RING, FUSEPASS_CLUSTER, FUSEPASS_PREACT and FUSEPASS_STAGES as in
// gemm_sm90_tile.cuh; the tile is fixed.
#define FUSEPASS_TILE_M 128
#define FUSEPASS_TILE_N 128
#define FUSEPASS_UNITS 16
#define FUSEPASS_PINGPONG 0
#define FUSEPASS_BF16 0
#define FUSEPASS_W_IS_KN 0

#include "gemm_sm90_f32_consumer.cuh"
#include "gemm_sm90_f32_producer.cuh"

extern "C" __global__ void __cluster_dims__(FUSEPASS_CLUSTER, 1, 1) __launch_bounds__(384, 1)
    fusepass_gemm(const __grid_constant__ fusepass::Split90Args args) {
  using namespace fusepass;
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  const uint32_t shared = shared_address(dynamic_shared);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // so that it is known to be uniform
  const uint32_t rank = kCluster > 1 ? cluster_rank() : 0;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kRing; ++s) {
      mbarrier_init(shared + SplitShared::kFull + 8 * s, 1);
      mbarrier_init(shared + SplitShared::kEmpty + 8 * s, kCluster * 4 * kConsumers);
    }
    mbarrier_init_fence();
  }
  if (kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }

  if (warp < 4) {
    registers_release<24>();
    if (threadIdx.x == 0) produce(args, shared, rank);
    __syncwarp();
  } else {
    registers_claim<240>();
    consume(args, shared, dynamic_shared, rank, warp / 4 - 1);
  }
  if (kCluster > 1) cluster_sync();  // a peer may still signal this CTA's barriers
}

// The pre-pass travels in the same cubin: one build, one load.
#include "split_sm90.cu"
