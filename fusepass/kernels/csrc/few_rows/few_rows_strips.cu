// out = epilogue(x @ w^T + bias) in 16 bits for up to 16 rows of x, of a weight of either order: one
// strip of 64 columns of the output a cluster, whose blocks share K.
//
// A block copies its part of x into shared memory. Its warps go through its part of K in steps, each taking
// 32 of K of all columns of the strip, straight into the registers of mma.sync; so a block reads whole lines
// of either order. The warps' sums meet in shared memory, a row of the output after another; the first block
// of a cluster adds those of the others, in the blocks' order, and runs the epilogue, whose operands it has
// asked for behind the first weights.
//
// A lane takes 16 successive bytes: of a weight [n, k] eight of K of every eighth column, of a weight [k, n]
// eight columns of eight successive k. Either are the same 8 of K, of which it needs x's 16 bytes, too, for
// the order of K within a product is free.
//
// The kernel may start while the one ahead of it still runs. Until that has ended it only asks for the
// first weights to come to the L2 cache, by which no write passes.
//
// Macros (kernels/plan/few.py writes them): FUSEPASS_WARPS; FUSEPASS_ROWS, 8 or 16; FUSEPASS_SPLIT, blocks of
// a cluster; FUSEPASS_BLOCKS, of a multiprocessor; FUSEPASS_W_IS_KN; FUSEPASS_SEVERAL, whether strips are of
// several weights of one x, without an epilogue; FUSEPASS_PREACT; FUSEPASS_BF16.
#include "few_rows_strips.cuh"

extern "C" __global__ void __cluster_dims__(FUSEPASS_SPLIT, 1, 1)
    __launch_bounds__(32 * FUSEPASS_WARPS, FUSEPASS_BLOCKS)
        fusepass_few_rows(const __grid_constant__ fusepass::KernelArgs all) {
  using namespace fusepass;
  int strip = blockIdx.x / kSplit;
  const auto& args = args_of_block(all, strip);
  extern __shared__ __align__(128) uint8_t memory[];
  const uint32_t shared = shared_address(memory), others = shared + 8;
  const Lane lane(args, shared, strip);
  if (threadIdx.x == 0) {
    mbarrier_init(shared, 1);
    mbarrier_init(others, 1);
    mbarrier_init_fence();
    mbarrier_expect(shared, args.m * lane.x_bytes());
    mbarrier_expect(others, (kSplit - 1) * kWeights * args.m * 4 * kStrip);
  }
  if (kSplit > 1) cluster_arrive();
  lane.prefetch_weights();
  grid_dependency_wait();

  Group group;
  lane.load(group, 0);
  __syncthreads();  // the barriers are there
  lane.copy_x();
  float scalars[Epilogue::kScalars + 1], bias[kWeights][kWidth] = {};
  Epilogue::Batch<kWidth> batch;
  const bool finishes = lane.rank == 0 && lane.row() < args.m;
  if (finishes) {
    Epilogue::load(scalars, FewRowsScalars{args});
    read_operands<Epilogue>(batch, args, lane.places());
    load_biases<kDType>(bias, args, lane.places());  // last: no cache may have them
  }
  Sums sums = {};
  mbarrier_wait(shared, 0);
#pragma unroll 1
  for (int step = 0;; ++step) {
    const bool more = step + 1 < lane.steps;
    if (!more) grid_dependents_launch();
    lane.multiply(sums, group, step);
    if (!more) break;
    lane.load(group, step + 1);
  }
  lane.hand_over(sums);
  __syncthreads();
  if (kSplit > 1) cluster_wait();  // the first block's barriers are there
  if (lane.row() >= args.m) return;

  float sum[kWeights][kWidth];
  add_warps(sum, lane);
  if (kSplit > 1) {
    if (lane.rank > 0) {
#pragma unroll
      for (int w = 0; w < kWeights; ++w) {
        send(shared_of(0, sent(lane, lane.rank, w)), sum[w], shared_of(0, others));
      }
      return;
    }
    mbarrier_wait(others, 0);
    add_blocks(sum, lane);
  }
  finish<kDType>(sum, bias, batch, args, lane.places(), scalars);
}
