// out = epilogue(x @ w^T + bias) in TF32 on Hopper, float32 in and out: gemm_sm90.cu's schedules with
// 32 K a stage, which is as many bytes. The tensor maps' type rounds operands on their way into
// shared memory; wgmma alone would cut them. Both operands are K-major: tf32 has no other form.
//
// Macros as in gemm_sm90_tile.cuh.
#define FUSEPASS_BF16 0
#define FUSEPASS_W_IS_KN 0

#include "gemm_sm90_tf32_consumer.cuh"

extern "C" __global__ void __cluster_dims__(FUSEPASS_CLUSTER, 1, 1) __launch_bounds__(384, 1)
    fusepass_gemm(const __grid_constant__ fusepass::Tf32Args args) {
  using namespace fusepass;
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  const uint32_t shared = shared_address(dynamic_shared);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // so that it is known to be uniform
  const uint32_t rank = kCluster > 1 ? cluster_rank() : 0;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kRing; ++s) {
      mbarrier_init(shared + Tf32Shared::kFull + 8 * s, 1);
      mbarrier_init(shared + Tf32Shared::kEmpty + 8 * s,
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
    registers_release<40>();
    if (threadIdx.x == 0) produce(args, shared, rank);
    __syncwarp();
  } else {
    registers_claim<232>();
    consume(args, shared, dynamic_shared, rank, warp / 4 - 1);
  }
  if (kCluster > 1) cluster_sync();  // a peer may still signal this CTA's barriers
}
