// out = epilogue(x @ w^T + bias) on Hopper in one persistent launch: a producer warp feeds a ring of
// shared-memory stages by TMA, two or three consumer warpgroups multiply with wgmma, apply the
// epilogue to their float32 accumulators and store through TMA.
//
// Ping-pong: each consumer owns a whole tile, and while one runs its epilogue the other keeps the
// tensor cores busy. Cooperative: each owns a share of the rows of a larger tile; neither waits for the
// other but through the ring, so their epilogues overlap as far as the ring reaches.
#include "gemm_sm90_consumer.cuh"
#include "gemm_sm90_producer.cuh"
#include "gemm_sm90_roles.cuh"

extern "C" __global__ void FUSEPASS_GEMM_KERNEL
    fusepass_gemm(const __grid_constant__ fusepass::KernelArgs args) {
  using namespace fusepass;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  if (threadIdx.x == 0) init_slots(shared);
  run_roles<SharedLayout, 24, kConsumers == 3 ? 160 : 240>(
      shared, threadIdx.x / 32, [&](uint32_t rank) { produce(args, shared, rank); },
      [&](uint32_t rank, int consumer) { consume(args, shared, rank, consumer); });
}

// Behind it, where there are column sums: puts together what the tiles left.
extern "C" __global__ void __launch_bounds__(fusepass::kAdderColumns* fusepass::kAdderRows)
    fusepass_column_sums(const __grid_constant__ fusepass::StripArgs args) {
  if (fusepass::kSums > 0) fusepass::add_strips(args);
}
