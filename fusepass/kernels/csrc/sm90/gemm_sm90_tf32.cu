// out = epilogue(x @ w^T + bias) in TF32 on Hopper, float32 in and out: gemm_sm90.cu's schedules with
// 32 K a stage, which is as many bytes. The tensor maps' type rounds operands on their way into
// shared memory; wgmma alone would cut them. Both operands are K-major: tf32 has no other form.
//
// Macros as in gemm_sm90_tile.cuh.
#define FUSEPASS_BF16 0
#define FUSEPASS_W_IS_KN 0

#include "gemm_sm90_roles.cuh"
#include "gemm_sm90_tf32_consumer.cuh"

extern "C" __global__ void FUSEPASS_GEMM_KERNEL
    fusepass_gemm(const __grid_constant__ fusepass::Tf32Args args) {
  using namespace fusepass;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  run_roles<Tf32Shared, 40, 232>(
      shared, uniform_warp(), [&](uint32_t rank) { produce(args, shared, rank); },
      [&](uint32_t rank, int consumer) { consume(args, shared, memory, rank, consumer); });
}
