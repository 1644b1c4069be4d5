// out = epilogue(x @ w^T + bias) on Hopper in one persistent launch: a producer warp feeds a ring of
// shared-memory stages by TMA, two consumer warpgroups multiply with wgmma, apply the epilogue to
// their float32 accumulators and store through TMA.
//
// Ping-pong: each consumer owns a whole tile, and while one runs its epilogue the other keeps the
// tensor cores busy. Cooperative: each owns half the rows of a larger tile; neither waits for the
// other but through the ring, so their epilogues overlap as far as the ring reaches.
#include "gemm_sm90_consumer.cuh"
#include "gemm_sm90_producer.cuh"

extern "C" __global__ void __cluster_dims__(FUSEPASS_CLUSTER, 1, 1) __launch_bounds__(384, 1)
    fusepass_gemm(const __grid_constant__ fusepass::Gemm90Args args) {
  using namespace fusepass;
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  const uint32_t shared = shared_address(dynamic_shared);
  const int warp = threadIdx.x / 32;
  const uint32_t rank = kCluster > 1 ? cluster_rank() : 0;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kRing; ++s) {
      mbarrier_init(shared + SharedLayout::kFull + 8 * s, 1);
      mbarrier_init(shared + SharedLayout::kEmpty + 8 * s,
                    kCluster * 4 * (kPingpong ? 1 : kConsumers));
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
    consume(args, shared, rank, warp / 4 - 1);
  }
  if (kCluster > 1) cluster_sync();  // a peer may still signal this CTA's barriers
}
