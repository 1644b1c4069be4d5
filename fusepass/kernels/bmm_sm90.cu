// out[b] = x[b] w[b] of batches of float32 matrices, in float32 accuracy, on Hopper's 16-bit tensor
// cores: the arithmetic of gemm_sm90_f32.cu without its pre-pass. Attention's products have a short K
// or a narrow N, and pieces of their operands in memory would cost as much as the product.
//
// A persistent CTA takes 128 rows of a matrix by some tiles of 64 columns, and walks its tiles' K in
// steps of 64 in three warpgroups:
//   splitter:  w's 64 x 64 of the next step from memory into registers | pieces of this step into a
//              stage of the ring, as soon as it is free | the stage is full
//   consumers: x's 64 rows x 64 of the next step into registers | pieces of this one stay in registers, as
//              wgmma's A operand | the stage is full: multiply, add to float32 sums | it is free
// Where K is one step, x's pieces serve all the tiles of the unit.
//
// Each row of x, and column of w, has a power of two of its own in each step, so a step's sums are
// scaled back before they are added: nothing needs to be known of K that was not yet read. What
// splitting lost, and what else makes a sum unsafe, is gathered on the way; rows with such a sum are
// computed again, by their warp, in float64 (bmm_sm90_again.cuh).
#include "bmm_sm90_consumer.cuh"
#include "bmm_sm90_splitter.cuh"

namespace fusepass {

template <bool kQuadsX, bool kQuadsW>
__device__ __forceinline__ void multiply_batches(const BmmArgs& args) {
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kBmmStages; ++s) {
      mbarrier_init(shared + kFull + 8 * s, 128);
      mbarrier_init(shared + kEmpty + 8 * s, 8);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  grid_dependency_wait();
  grid_dependents_launch();
  const int warpgroup = static_cast<int>(uniform(threadIdx.x / 128));
  static_assert(kSplitterRegisters + 2 * kConsumerRegisters <= 3 * kRegistersAtLaunch);
  if (warpgroup == 0) {
    registers_release<kSplitterRegisters>();
    produce<kQuadsW>(args, shared, memory);
  } else {
    registers_claim<kConsumerRegisters>();
    consume<kQuadsX>(args, shared, memory, warpgroup - 1);
  }
}

}  // namespace fusepass

// By how x and w are read: by quads of K, or element by element with any strides.
#define FUSEPASS_BMM(name, x, w)                                           \
  extern "C" __global__ void __launch_bounds__(fusepass::kBmmThreads, 1)   \
      fusepass_bmm_##name(const __grid_constant__ fusepass::BmmArgs args) { \
    fusepass::multiply_batches<x, w>(args);                                \
  }
FUSEPASS_BMM(quads_quads, true, true)
FUSEPASS_BMM(quads_any, true, false)
FUSEPASS_BMM(any_quads, false, true)
FUSEPASS_BMM(any_any, false, false)
