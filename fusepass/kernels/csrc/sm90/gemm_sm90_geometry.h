// Sizes that host and device must agree on, from the numbers of a configuration.
#pragma once
#include <initializer_list>

// Of functions whose values are known when a kernel is compiled.
#ifdef __CUDACC__
#define FUSEPASS_KNOWN __host__ __device__
#else
#define FUSEPASS_KNOWN
#endif

namespace fusepass {

constexpr int kTileK = 64;  // 16-bit elements of a 128-byte row

constexpr int kSharedLimit = 232448;  // bytes of a block on Hopper

// Consumer warpgroups of kernels that say nothing else. Ping-pong has two that own a tile each;
// cooperative ones share a tile's rows, 64 or 128 each.
constexpr int consumers_of(int tile_m, bool pingpong) { return !pingpong && tile_m == 192 ? 3 : 2; }

// The sizes of a configuration and of a program that decide how much shared memory a kernel takes;
// `split` CTAs share a tile's K, and each finishes as large a share of its columns.
struct Geometry {
  int tile_m, tile_n, stages, consumers, split;
  bool pingpong, swapped;
  int stores;     // outputs of m x n
  int mats;       // operands of m x n
  int slot_bytes;  // of 16 x 8 elements, see bytes_of_slot
  int col_bytes;  // of all col operands, a column
  int row_bytes;  // of all row operands, a row
  // Half of the weight's rows of a tile are a second weight's, beside the first's in the sums.
  bool gated;
  bool bytes;  // whether a mat operand is of bool
};

// Columns of what a CTA finishes (of the transposed output's, if operands are swapped).
constexpr int finished_columns(const Geometry& g) {
  return g.tile_n / g.split / (g.gated && !g.swapped ? 2 : 1);
}

// Rows of one weight that lie together in a gated kernel's tile, the other's behind them. In the same
// place of each lie the same columns of z and z1, and one thread holds both: sums of wgmma repeat
// every 8 columns, and swapped every 64 rows.
constexpr int rows_of_a_weight(int tile_n, bool swapped) { return swapped ? 64 : tile_n / 2; }

// Rows of wgmma's A of a tile that one consumer has.
constexpr int consumer_rows(const Geometry& g) { return g.tile_m / (g.pingpong ? 1 : g.consumers); }

// And rows of output, swapped of its transpose, that it finishes.
constexpr int finished_rows(const Geometry& g) {
  return consumer_rows(g) / (g.gated && g.swapped ? 2 : 1);
}

// A consumer's bias: of the tile's columns, or of its own rows where operands are swapped.
constexpr int bias_bytes(const Geometry& g) { return 2 * (g.swapped ? consumer_rows(g) : g.tile_n); }

// A consumer's col and row operands.
constexpr int vector_bytes(const Geometry& g) {
  const int columns = finished_columns(g), rows = finished_rows(g);
  return g.swapped ? g.col_bytes * rows + g.row_bytes * columns
                   : g.col_bytes * columns + g.row_bytes * rows;
}

// Chunks on their way: a slot has a buffer for each mat operand, and for each output that overwrites
// none of them. One overwrites the first mat operand with elements of its size that no output before it
// overwrites: which of `number` of sizes `mats` the last of `outputs` of sizes `stores` does, or -1.
FUSEPASS_KNOWN constexpr int overwritten(const int* mats, int number, const int* stores, int outputs) {
  int found = -1;
  for (int i = 0, taken = 0; i < outputs; ++i) {
    found = -1;
    for (int j = 0; j < number && found < 0; ++j) {
      if (!(taken >> j & 1) && mats[j] == stores[i]) found = j;
    }
    if (found >= 0) taken |= 1 << found;
  }
  return found;
}

// Bytes of 16 x 8 elements of the whole slot.
FUSEPASS_KNOWN constexpr int bytes_of_slot(const int* mats, int number, const int* stores, int outputs) {
  int sum = 0;
  for (int i = 0; i < number; ++i) sum += 128 * mats[i];
  for (int i = 0; i < outputs; ++i) {
    sum += overwritten(mats, number, stores, i + 1) >= 0 ? 0 : 128 * stores[i];
  }
  return sum;
}

// Those who wait for a slot to be filled: each warp, or each consumer where operands are swapped.
constexpr int slot_owners(const Geometry& g) { return g.consumers * (g.swapped ? 1 : 4); }

// Dynamic shared memory of a kernel: ring, slots of its consumers' warps, bias, vectors, barriers.
constexpr int shared_bytes_with(const Geometry& g, int chunk_units, int slots) {
  return g.stages * (g.tile_m + g.tile_n) * 128 +
         4 * g.consumers * slots * chunk_units * g.slot_bytes +
         g.consumers * (bias_bytes(g) + vector_bytes(g)) + g.stages * 16 +
         (g.mats > 0 ? 8 * slot_owners(g) * slots : 0);
}

// Slots that the way to memory needs. A warp alone waits for a buffer where it must; the warps that
// share a transposed chunk do not; and what is loaded into one slot comes beside work on another.
constexpr int least_slots(const Geometry& g) { return g.swapped || g.mats > 0 ? 2 : 1; }

constexpr bool has_room(const Geometry& g, int chunk_units) {
  return shared_bytes_with(g, chunk_units, least_slots(g)) <= kSharedLimit;
}

// Units from which on a chunk of operands is asked for, behind a store, before it is waited for: see
// gemm_sm90_finish.cuh. With fewer a warp would wait for what it has not asked for.
constexpr int kLeastLoaded = 4;

// A chunk of bool is lines of 64 bytes, which TMA permutes in patterns of 512. What lies behind it is
// permuted in patterns of 1024, where lines are of 128 bytes.
constexpr bool is_aligned(const Geometry& g, int chunk_units) {
  if (!g.bytes) return true;
  return g.swapped ? 4 * chunk_units * g.slot_bytes % 1024 == 0 : chunk_units == 8;
}

// Columns of the tile that are staged at a time, in units of 8, which divide it. As they lie: the
// whole 128-byte swizzle row, or the largest odd number up to 13, whose pitch (an odd number of 16
// bytes) has no bank conflicts; 4 where there is none. Transposed, rows of a chunk are swizzle rows
// anyhow, and each chunk is a barrier: 8 to 3, else more. All as far as there is room.
constexpr int chunk_units(const Geometry& g) {
  const int units = finished_columns(g) / 8, least = g.mats > 0 ? kLeastLoaded : 2;
  if (g.swapped) {
    for (const int d : {8, 7, 6, 5, 4, 3, 13, 12, 11, 10, 9, 2}) {
      if (units % d == 0 && d >= least && is_aligned(g, d) && has_room(g, d)) return d;
    }
  } else {
    for (const int d : {8, 13, 11, 9, 7, 5, 3, 4}) {
      if (units % d == 0 && d >= least && is_aligned(g, d) && has_room(g, d)) return d;
    }
  }
  return 0;  // there is no such kernel
}

// Chunks of a tile that a warp, or a consumer where operands are swapped, finishes.
constexpr int tile_chunks(const Geometry& g) {
  return finished_rows(g) / 64 * (finished_columns(g) / 8 / chunk_units(g));
}

// Slots through which chunks go in turn, as many as there is room for: of outputs alone, four buffers
// do; operands come as far ahead as can be.
constexpr int staging_slots(const Geometry& g) {
  const int enough = g.mats > 0 ? tile_chunks(g) : 1024 / g.slot_bytes;
  int slots = least_slots(g);
  while (slots < enough && shared_bytes_with(g, chunk_units(g), slots + 1) <= kSharedLimit) ++slots;
  return slots;
}

constexpr int shared_bytes(const Geometry& g) {
  return shared_bytes_with(g, chunk_units(g), staging_slots(g));
}

}  // namespace fusepass
