// out = epilogue(x @ w^T + bias) in float32 accuracy on Hopper's 16-bit tensor cores, from operands
// split into float16 pieces (split_sm90.cu): x w = hi hi + 2^-11 (hi lo + lo hi), lo lo being below
// the last place. One persistent launch: a producer warp feeds a ring of stages that hold both
// pieces of both operands, and two consumer warpgroups take half of the rows of a tile each.
//
// A tensor core cuts, where an FMA rounds, so a long chain drifts. The chain of hi hi is therefore
// 32 of K, and then added to a float32 by an ordinary addition while the tensor cores work on the
// corrections, whose own drift is 2^-11 of that and may go on to the end.
//
// Behind a tile's products the producer puts its first mats into the ring, a stage each, so that the
// epilogue finds them in shared memory: read from global memory when the products are done, each took
// as long as a quarter of the products of 1024 of K.
//
// Where tiles are few and K is long, K is cut into segments: a CTA's unit of work is then a tile's
// share of one, whose sums go to memory, and fusepass_sum puts them together.
//
// Macros: FUSEPASS_TILE_N, 128 or 64, FUSEPASS_UNITS, FUSEPASS_RING, FUSEPASS_CLUSTER,
// FUSEPASS_X_IS_KM, FUSEPASS_W_IS_KN, FUSEPASS_PREACT as in gemm_sm90_tile.cuh;
// FUSEPASS_SEGMENTS, 1 if K is cut; FUSEPASS_ODD_N, 1 if N is odd.
#define FUSEPASS_TILE_M 128
#define FUSEPASS_PINGPONG 0
#define FUSEPASS_BF16 0

#include "gemm_sm90_f32_consumer.cuh"
#include "gemm_sm90_f32_producer.cuh"
#include "gemm_sm90_f32_sum.cuh"
#include "sm90/gemm_sm90_roles.cuh"

extern "C" __global__ void FUSEPASS_GEMM_KERNEL
    fusepass_gemm(const __grid_constant__ fusepass::Split90Args args) {
  using namespace fusepass;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  run_roles<SplitShared, 24, 240>(
      shared, uniform_warp(), [&](uint32_t rank) { produce(args, shared, rank); },
      [&](uint32_t rank, int consumer) { consume(args, shared, memory, rank, consumer); });
}

#if FUSEPASS_SEGMENTS
extern "C" __global__ void __launch_bounds__(128 * fusepass::kAdders)
    fusepass_sum(const __grid_constant__ fusepass::Split90Args args) {
  extern __shared__ __align__(1024) uint8_t memory[];
  fusepass::grid_dependency_wait();
  fusepass::grid_dependents_launch();
  fusepass::sum_segments(args, memory);
}
#endif
