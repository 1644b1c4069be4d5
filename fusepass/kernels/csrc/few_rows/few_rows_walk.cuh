// What the few-row kernels of all dtypes share: how the weight is read, how the sums of a block's warps
// come together, and when.
//
// A block's warps share K: each takes every kWarps-th step of K of the same kBatch columns of the output
// (rows of the weight), so that together they read whole stretches of memory. Their sums meet in shared
// memory, where one of the warps, each time another, adds them in the warps' order and runs the
// epilogue; no warp waits for it but to use the same memory again two batches later.
//
// The order of K within a product is free, if both operands have the same. A lane takes 16 successive
// bytes of K of a weight [n, k], for which it needs the same 16 bytes' K of x; of a weight [k, n] it takes
// 16 bytes of columns at each of these k.
//
// The kernel may start while the one ahead of it still runs. Until that has ended it only asks for the
// first weights to come to the L2 cache, by which no write passes.
//
// Macros (kernels/plan/few.py writes them): FUSEPASS_WARPS; FUSEPASS_ROWS of x, at least as many as there
// are; FUSEPASS_BATCH, kBatch; FUSEPASS_DEPTH, groups a step; FUSEPASS_BLOCKS, of a multiprocessor;
// FUSEPASS_W_IS_KN; FUSEPASS_PREACT, 1 if z is a result, too; FUSEPASS_BF16 of 16-bit dtypes;
// FUSEPASS_CHAIN of float32: products that a lane adds one after another, 0 for all of its own.
#pragma once
#include <type_traits>

#include "few_rows_epilogue.cuh"
#include "sm90/gemm_sm90_ptx.cuh"

namespace fusepass {

constexpr int kWarps = FUSEPASS_WARPS, kRows = FUSEPASS_ROWS, kBatch = FUSEPASS_BATCH;
constexpr int kDepth = FUSEPASS_DEPTH;
constexpr bool kWIsKN = FUSEPASS_W_IS_KN;
constexpr int kVector = 16 / sizeof(Element);  // elements of 16 bytes
constexpr int kGroupK = 4 * kVector;           // K of a group: of four lanes' vectors
constexpr int kLoads = kWIsKN ? kVector : kBatch / 8;  // of 16 bytes, a lane, weight and group
constexpr int kStepK = kWarps * kDepth * kGroupK;      // K that the block's warps take together
static_assert(!kWIsKN || kBatch == 8 * kVector, "a vector of columns for each of 8 groups of lanes");
static_assert((kWarps & (kWarps - 1)) == 0);

// What the sums of a block's warps are added in. In float32 the roundings of so few large sums would be
// most of the error of a result.
using Total = std::conditional_t<kDType == DType::kFloat32, double, float>;

// 16 bytes of each load of a step.
struct Step { uint4 w[kWeights][kDepth][kLoads]; };

// Zeros if not `inside`. What is read once need not push x out of the L1 cache.
__device__ __forceinline__ uint4 load_streaming(const void* p, bool inside) {
  uint4 v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@p ld.global.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p), "r"(uint32_t{inside}));
  return v;
}

__device__ __forceinline__ void prefetch_bytes(const void* p, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}

template <int kCount>
__device__ __forceinline__ void store_shared(uint32_t address, const float* v) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  if constexpr (kCount == 4) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(address + 4 * i), "f"(v[i]) : "memory");
    }
  }
}

template <int kCount>
__device__ __forceinline__ void load_sums(uint32_t address, float (&v)[kCount]) {
  if constexpr (kCount == 4) {
    load_shared(address, v);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = __uint_as_float(load_shared(address + 4 * i));
  }
}

// Where a lane stands: member `member` of group `group` of its warp, as in mma's fragments.
struct Lane {
  const FewRowsArgs& args;
  int warp, group, member;

  __device__ explicit Lane(const FewRowsArgs& args)
      : args(args), warp(uniform(threadIdx.x / 32)),
        group(threadIdx.x % 32 / 4), member(threadIdx.x % 4) {}

  // The output's column of which this lane loads, at `which` 0, 1, ..., one element of K (of [n, k])
  // or of the columns (of [k, n]).
  __device__ __forceinline__ int column(int batch, int which) const {
    return batch * kBatch + (kWIsKN ? kVector * group + which : 8 * which + group);
  }

  // This lane's first k of a step.
  __device__ __forceinline__ int first_k(int step) const {
    return (step * kWarps + warp) * (kDepth * kGroupK) + kVector * member;
  }

  __device__ __forceinline__ void load(Step& to, int batch, int step) const {
    const int first = first_k(step);
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      const Element* const base = static_cast<const Element*>(args.w[w]);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int c = column(batch, kWIsKN ? 0 : i);
        const bool known = c < args.n;
        const int64_t at = known ? c : 0;
        const Element* const from =
            kWIsKN ? base + (first + i) * args.ldw[w] + at : base + at * args.ldw[w] + first;
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
          const int k = first + d * kGroupK + (kWIsKN ? i : 0);
          const int64_t past = (kWIsKN ? args.ldw[w] : 1) * (d * kGroupK);
          to.w[w][d][i] = load_streaming(from + past, known && k < args.k);
        }
      }
    }
  }

  // kVector elements of a row of x from `k` on; zeros where there are none.
  __device__ __forceinline__ uint4 load_x(int row, int k) const {
    if (row >= args.m || k >= args.k) return make_uint4(0, 0, 0, 0);
    const Element* const from = static_cast<const Element*>(args.x) + row * args.ldx + k;
    return *reinterpret_cast<const uint4*>(from);
  }

  // Asks for the block's first batch.
  __device__ void prefetch(int batch) const {
    const int columns = min(kBatch, args.n - batch * kBatch);
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      const Element* const base = static_cast<const Element*>(args.w[w]);
      const int lines = kWIsKN ? args.k : columns;
      const uint32_t bytes = (kWIsKN ? columns : args.k) * sizeof(Element);
      for (int i = threadIdx.x; i < lines; i += 32 * kWarps) {
        const int64_t at = kWIsKN ? i * args.ldw[w] + batch * kBatch
                                  : (int64_t{batch} * kBatch + i) * args.ldw[w];
        prefetch_bytes(base + at, bytes);
      }
    }
  }
};

// What a warp does, step by step, with all of its batches. Products:
//   Sums                                       what a lane sums up, with zeros to begin with
//   kJobs, kWidth                              pieces of a batch, each finished by a warp, and of a lane
//   multiply(lane, sums, of, step)             adds a step's products
//   share(lane, sums)                          makes whole what lanes have parts of
//   collect(sums, w, job, float (&to)[kWidth])  a piece
//   places(lane, batch, job)                   where these numbers lie in the output
template <class Products>
struct Walk {
  static constexpr int kJobs = Products::kJobs, kWidth = Products::kWidth;
  static constexpr int kPieceBytes = 32 * 4 * kWidth;
  static constexpr int kSlotBytes = kWeights * kJobs * kPieceBytes;  // a warp's sums of a batch
  static constexpr int kFull = 2 * kWarps * kSlotBytes, kEmpty = kFull + 16;  // barriers, two of each

  const Lane lane;
  const uint32_t shared;
  const float* const scalars;
  const int steps;      // of a batch
  int batch, step = 0;  // multiplied next
  int count = 0;        // of batches handed over
  typename Products::Sums sums = {};

  __device__ Walk(const FewRowsArgs& args, uint32_t shared, const float* scalars)
      : lane(args),
        shared(shared),
        scalars(scalars),
        steps((args.k + kStepK - 1) / kStepK),
        batch(blockIdx.x) {}

  __device__ static void init_barriers(uint32_t shared) {
    for (int slot = 0; slot < 2; ++slot) {
      mbarrier_init(shared + kFull + 8 * slot, 32 * kWarps);
      mbarrier_init(shared + kEmpty + 8 * slot, 32 * kJobs);
    }
  }

  __device__ __forceinline__ void run() {
    Step even, odd;  // one is multiplied while the other is loaded
    lane.load(even, batch, 0);
    do {
      load_next(odd);
      if (!multiply(even)) break;
      load_next(even);
    } while (multiply(odd));
    finish_jobs(count - 1, batch - gridDim.x);
  }

  // Loads what comes after the present step.
  __device__ __forceinline__ void load_next(Step& to) const {
    const bool last = step + 1 == steps;
    const int next = last ? batch + gridDim.x : batch;
    if (next < lane.args.batches) lane.load(to, next, last ? 0 : step + 1);
    if (next + static_cast<int>(gridDim.x) >= lane.args.batches) grid_dependents_launch();
  }

  // Multiplies the present step; false behind the last one.
  __device__ __forceinline__ bool multiply(const Step& of) {
    Products::multiply(lane, sums, of, step);
    if (++step < steps) return true;
    step = 0;
    hand_over();
    // The batch before: by now the other warps have handed that over, too.
    if (count > 1) finish_jobs(count - 2, batch - gridDim.x);
    batch += gridDim.x;
    return batch < lane.args.batches;
  }

  __device__ uint32_t slots(int which) const { return shared + which % 2 * kWarps * kSlotBytes; }

  __device__ __forceinline__ void hand_over() {
    const int slot = count % 2;
    if (count > 1) mbarrier_wait(shared + kEmpty + 8 * slot, (count / 2 - 1) & 1);
    Products::share(lane, sums);
    const uint32_t mine = slots(count) + lane.warp * kSlotBytes + threadIdx.x % 32 * (4 * kWidth);
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
#pragma unroll
      for (int job = 0; job < kJobs; ++job) {
        float v[kWidth];
        Products::collect(sums, w, job, v);
        store_shared<kWidth>(mine + (w * kJobs + job) * kPieceBytes, v);
      }
    }
    sums = {};
    mbarrier_arrive(shared + kFull + 8 * slot);  // every lane: racecheck knows of no other order
    ++count;
  }

  // This warp's pieces of the `which`-th batch.
  __device__ __forceinline__ void finish_jobs(int which, int of_batch) const {
#pragma unroll 1
    for (int job = (lane.warp - which * kJobs) & (kWarps - 1); job < kJobs; job += kWarps) {
      mbarrier_wait(shared + kFull + 8 * (which % 2), which / 2 & 1);
      finish_piece(slots(which), of_batch, job);
      mbarrier_arrive(shared + kEmpty + 8 * (which % 2));
    }
  }

  // One piece: the sums of all warps in their order.
  __device__ __forceinline__ void finish_piece(uint32_t slots, int of_batch, int job) const {
    float sum[kWeights][kWidth];
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      const uint32_t from = slots + (w * kJobs + job) * kPieceBytes + threadIdx.x % 32 * (4 * kWidth);
      float v[kWidth];
      load_sums(from, v);
      Total total[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) total[i] = v[i];
#pragma unroll
      for (int other = 1; other < kWarps; ++other) {
        load_sums(from + other * kSlotBytes, v);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) total[i] += v[i];
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[w][i] = static_cast<float>(total[i]);
    }
    finish<kDType>(sum, lane.args, Products::places(lane, of_batch, job), scalars);
  }
};

template <class Products>
__device__ __forceinline__ void run_few_rows(const FewRowsArgs& args) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  if (threadIdx.x == 0) Walk<Products>::init_barriers(shared);
  __syncthreads();
  Lane(args).prefetch(blockIdx.x);
  grid_dependency_wait();
  float scalars[Epilogue::kScalars + 1];
  Epilogue::load(scalars, FewRowsScalars{args});
  Walk<Products>(args, shared, scalars).run();
}

}  // namespace fusepass

#define FUSEPASS_FEW_ROWS_KERNEL \
  extern "C" __global__ void __launch_bounds__(32 * FUSEPASS_WARPS, FUSEPASS_BLOCKS)
