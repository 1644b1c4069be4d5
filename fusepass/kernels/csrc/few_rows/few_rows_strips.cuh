// A block's share of a strip (few_rows_strips.cu): what a lane loads, multiplies, hands over and adds up.
#pragma once
#include <type_traits>

#include "few_rows_epilogue.cuh"
#include "few_rows_mma.cuh"
#include "few_rows_strips_ptx.cuh"

namespace fusepass {

constexpr DType kDType = FUSEPASS_BF16 ? DType::kBFloat16 : DType::kFloat16;
constexpr int kWarps = FUSEPASS_WARPS, kRows = FUSEPASS_ROWS, kSplit = FUSEPASS_SPLIT;
constexpr bool kWIsKN = FUSEPASS_W_IS_KN;
// Whether there are several weights of one x, each with a result of its own; a strip is of one of them.
constexpr bool kSeveral = FUSEPASS_SEVERAL;
using Args = std::conditional_t<kSeveral, OneOfSeveral, FewRowsArgs>;
using KernelArgs = std::conditional_t<kSeveral, SeveralRowsArgs, FewRowsArgs>;
constexpr int kStrip = 64, kVector = 8, kGroupK = 4 * kVector;
constexpr int kTiles = kStrip / 16, kUnits = kRows / 8;
constexpr int kStepK = kWarps * kGroupK;  // of a block
constexpr int kWidth = 4, kQuads = kStrip / kWidth;  // successive columns that a thread finishes
// A row of a warp's sums, and of a block's, in bytes. Four columns more spread a warp's over the banks.
constexpr int kPitch = 4 * (kStrip + 4), kWarpBytes = kWeights * kRows * kPitch;
constexpr int kSlots = 32, kTheirs = kSlots + kWarps * kWarpBytes;  // behind the barriers
constexpr int kX = kTheirs + (kSplit - 1) * kWeights * kRows * 4 * kStrip;
static_assert(kRows % 8 == 0 && kRows * kQuads <= 32 * kWarps);

// What this block computes of, and sets `strip` to that weight's.
__device__ __forceinline__ const FewRowsArgs& args_of_block(const FewRowsArgs& args, int&) { return args; }
__device__ __forceinline__ OneOfSeveral args_of_block(const SeveralRowsArgs& all, int& strip) {
  int i = 0;
#pragma unroll
  for (int other = 1; other < kMaxWeights; ++other) i += strip >= all.first[other];
  strip -= all.first[i];
  return {{all.w[i]}, {all.ldw[i]}, all.x, all.ldx, all.m, all.n[i], all.k, {all.bias[i]},
          {{all.out[i], kDType, false}}};
}

// What a lane multiplies at a time.
struct Group {
  uint4 w[kWeights][kVector];
};

struct Sums {
  float v[kWeights][kTiles][kUnits][4];
};

__device__ __forceinline__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

struct Lane {
  const Args& args;
  const uint32_t shared;
  int warp, group, member;  // of mma's fragments
  int strip, rank;          // of the cluster, of its weight's, and of the block in it
  int steps;                // of a block
  int begin_k;              // the block's

  __device__ explicit Lane(const Args& args, uint32_t shared, int strip = blockIdx.x / kSplit)
      : args(args),
        shared(shared),
        warp(uniform(threadIdx.x / 32)),
        group(threadIdx.x % 32 / 4),
        member(threadIdx.x % 4),
        strip(strip),
        rank(blockIdx.x % kSplit),
        steps((args.k + kSplit * kStepK - 1) / (kSplit * kStepK)),
        begin_k(rank * steps * kStepK) {}

  // This lane's first k of a step, from the block's on.
  __device__ __forceinline__ int past(int step) const {
    return step * kStepK + warp * kGroupK + member * kVector;
  }

  __device__ __forceinline__ bool inside(int step) const {
    return begin_k + past(step) < args.k;
  }

  // Bytes between rows of x's part: those of a pair of rows lie in other banks.
  __device__ __forceinline__ int x_pitch() const { return 2 * steps * kStepK + 64; }

  // Bytes of a row of x's part.
  __device__ __forceinline__ int x_bytes() const {
    return 2 * max(0, min(steps * kStepK, args.k - begin_k));
  }

  __device__ __forceinline__ void copy_x() const {
    if (threadIdx.x % 32 != 0 || x_bytes() == 0) return;
#pragma unroll
    for (int row = warp; row < kRows; row += kWarps) {
      if (row >= args.m) return;
      const uint16_t* const from = static_cast<const uint16_t*>(args.x) + row * args.ldx + begin_k;
      copy_bytes(shared + kX + row * x_pitch(), from, x_bytes(), shared);
    }
  }

  // What lies beyond an edge is loaded from within: columns that are not in the output come to nothing,
  // and products past K are made zeros.
  __device__ __forceinline__ void load(Group& to, int step) const {
    const int k = min(begin_k + past(step), args.k - kVector);
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      const uint16_t* const base = static_cast<const uint16_t*>(args.w[w]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int c = strip * kStrip + (kWIsKN ? kVector * group : 8 * i + group);
        const int64_t column = c < args.n ? c : 0;
        to.w[w][i] = load_streaming(kWIsKN ? base + (k + i) * args.ldw[w] + column
                                           : base + column * args.ldw[w] + k);
      }
    }
  }

  // Rows of x that are not there are what lies in memory: so are rows of sums, which nobody reads.
  __device__ __forceinline__ void multiply(Sums& sums, Group& of, int step) const {
    uint4 x[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      x[u] = load_shared_16_bytes(shared + kX + (8 * u + group) * x_pitch() + 2 * past(step));
    }
    if (!inside(step)) {
      of = {};
#pragma unroll
      for (int u = 0; u < kUnits; ++u) x[u] = {};
    }
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t a[4];
          fragment(a, of.w[w], tile, half);
#pragma unroll
          for (int u = 0; u < kUnits; ++u) {
            mma(sums.v[w][tile][u], a[0], a[1], a[2], a[3], word(x[u], 2 * half),
                word(x[u], 2 * half + 1));
          }
        }
      }
    }
  }

  // 16 columns by 16 of K. Of a weight [k, n] two k of one column meet in a register.
  __device__ static __forceinline__ void fragment(uint32_t (&a)[4], const uint4 (&w)[kVector],
                                                  int tile, int half) {
    if constexpr (kWIsKN) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const int k = 4 * half + 2 * pair;
        const uint32_t even = word(w[k], tile), odd = word(w[k + 1], tile);
        a[2 * pair] = __byte_perm(even, odd, 0x5410);
        a[2 * pair + 1] = __byte_perm(even, odd, 0x7632);
      }
    } else {
      a[0] = word(w[2 * tile], 2 * half), a[1] = word(w[2 * tile + 1], 2 * half);
      a[2] = word(w[2 * tile], 2 * half + 1), a[3] = word(w[2 * tile + 1], 2 * half + 1);
    }
  }

  // Puts the warp's sums where the rows of the output are rows. Of a tile a lane has two rows of two
  // columns: of a weight [k, n] of neighbours, and of all tiles eight in a row; otherwise eight apart.
  __device__ __forceinline__ void hand_over(const Sums& sums) const {
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = 8 * u + 2 * member + r;
          const uint32_t to = shared + kSlots + warp * kWarpBytes + (w * kRows + row) * kPitch;
          const auto& of = sums.v[w];
          if constexpr (kWIsKN) {
#pragma unroll
            for (int t = 0; t < kTiles; t += 2) {
              store_sums(to + 4 * (kVector * group + 2 * t), of[t][u][r], of[t][u][2 + r],
                         of[t + 1][u][r], of[t + 1][u][2 + r]);
            }
          } else {
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              store_sum(to + 4 * (16 * t + group), of[t][u][r]);
              store_sum(to + 4 * (16 * t + 8 + group), of[t][u][2 + r]);
            }
          }
        }
      }
    }
  }

  // What this thread finishes: four columns of a row of the output.
  __device__ __forceinline__ int row() const { return threadIdx.x / kQuads; }
  __device__ __forceinline__ int quad() const { return threadIdx.x % kQuads; }

  __device__ __forceinline__ Places<kWidth> places() const {
    Places<kWidth> at;
    FUSEPASS_EACH {
      at.row[i] = row();
      at.column[i] = strip * kStrip + kWidth * quad() + i;
      at.inside[i] = at.row[i] < args.m && at.column[i] < args.n;
    }
    return at;
  }

  // Asks for what the first loads will, a line of 128 bytes a thread, and for the bias. (By the unit that copies
  // in bulk it would take a warp's threads one after another.)
  __device__ __forceinline__ void prefetch_weights() const {
    for (int w = 0; w < kWeights && rank == 0 && threadIdx.x == 0; ++w) {
      const uint16_t* const bias = static_cast<const uint16_t*>(args.bias[w]);
      if (bias != nullptr) prefetch(bias + strip * kStrip);
    }
    constexpr int kLines = kWIsKN ? 1 : kStepK / kStrip;  // of 64 elements, a row of a step
    const int line = threadIdx.x / kLines, beside = threadIdx.x % kLines * kStrip;
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      const uint16_t* const base = static_cast<const uint16_t*>(args.w[w]);
      const int k = begin_k + (kWIsKN ? line : beside), c = strip * kStrip + (kWIsKN ? 0 : line);
      if (k < args.k && c < args.n) {
        prefetch(base + (kWIsKN ? k * args.ldw[w] + c : c * args.ldw[w] + k));
      }
    }
  }
};

// The sums of the block's warps, in their order.
__device__ __forceinline__ void add_warps(float (&sum)[kWeights][kWidth], const Lane& lane) {
#pragma unroll
  for (int w = 0; w < kWeights; ++w) {
    const uint32_t from =
        lane.shared + kSlots + (w * kRows + lane.row()) * kPitch + 4 * kWidth * lane.quad();
    load_shared(from, sum[w]);
#pragma unroll
    for (int other = 1; other < kWarps; ++other) {
      float v[kWidth];
      load_shared(from + other * kWarpBytes, v);
      FUSEPASS_EACH sum[w][i] += v[i];
    }
  }
}

// Where a block of a cluster sends a thread's sums of a weight.
__device__ __forceinline__ uint32_t sent(const Lane& lane, int rank, int w) {
  const int row = ((rank - 1) * kWeights + w) * kRows + lane.row();
  return lane.shared + kTheirs + row * 4 * kStrip + 4 * kWidth * lane.quad();
}

__device__ __forceinline__ void add_blocks(float (&sum)[kWeights][kWidth], const Lane& lane) {
#pragma unroll
  for (int other = 1; other < kSplit; ++other) {
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      float v[kWidth];
      load_shared(sent(lane, other, w), v);
      FUSEPASS_EACH sum[w][i] += v[i];
    }
  }
}

}  // namespace fusepass
