// What every Hopper GEMM's CTA does first: barriers of the ring, then its warps part into a producer
// and consumer warpgroups, and the registers go to the consumers.
#pragma once
#include "gemm_sm90_ptx.cuh"
#include "gemm_sm90_tile.cuh"

#define FUSEPASS_GEMM_KERNEL          \
  __cluster_dims__(FUSEPASS_CLUSTER * FUSEPASS_SPLIT, 1, 1) \
      __launch_bounds__(128 * (::fusepass::kConsumers + 1), 1)

namespace fusepass {

// Calls produce(rank) in one thread, consume(rank, consumer) in the consumers' threads; rank is the
// CTA's place in its cluster. `warp` is this thread's warp of the CTA.
//
// The kernel may have been launched before the one ahead of it in the stream has ended. Consumers
// start when that has; the producer calls grid_dependency_wait() itself, before it reads anything:
// what it can do ahead of that, it does under the other kernel's end. The kernels behind may start
// after that (grid_dependents_launch).
template <class Layout, int kProducerRegisters, int kConsumerRegisters, class Produce, class Consume>
__device__ __forceinline__ void run_roles(uint32_t shared, int warp, Produce produce,
                                          Consume consume) {
  const uint32_t rank = kCluster * kSplit > 1 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kRing; ++s) {
      mbarrier_init(shared + Layout::kFull + 8 * s, 1);
      mbarrier_init(shared + Layout::kEmpty + 8 * s, kCluster * 4 * (kPingpong ? 1 : kConsumers));
    }
    mbarrier_init_fence();
  }
  if (kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }

  if (warp < 4) {
    registers_release<kProducerRegisters>();
    if (threadIdx.x == 0) produce(rank);
    __syncwarp();
    if (kSplit > 1) {  // the consumers exchange their sums, gemm_sm90_shares.cuh
      cluster_sync();
      cluster_sync();
    }
  } else {
    registers_claim<kConsumerRegisters>();
    grid_dependency_wait();
    grid_dependents_launch();
    consume(rank, warp / 4 - 1);
  }
  if (kCluster > 1) cluster_sync();  // a peer may still signal this CTA's barriers
}

__device__ __forceinline__ int uniform_warp() { return uniform(threadIdx.x / 32); }

}  // namespace fusepass
