// Sizes that host and device must agree on, from the numbers of a configuration.
#pragma once
#include <initializer_list>

namespace fusepass {

constexpr int kTileK = 64;  // 16-bit elements of a 128-byte row

constexpr int kSharedLimit = 232448;  // bytes of a block on Hopper

// Consumer warpgroups of kernels that say nothing else. Ping-pong has two that own a tile each;
// cooperative ones share a tile's rows, 64 or 128 each.
constexpr int consumers_of(int tile_m, bool pingpong) { return !pingpong && tile_m == 192 ? 3 : 2; }

// The sizes of a configuration that decide how much shared memory it takes; `split` CTAs share a
// tile's K, and each finishes as large a share of its columns. `outputs`: 2 with the pre-activation.
// `gated`: half of the weight's rows of a tile are a second weight's, beside the first's in the sums.
struct Geometry {
  int tile_m, tile_n, stages, consumers, split;
  bool pingpong, swapped;
  int outputs;
  bool gated;
};

// Columns of what a CTA finishes (of the transposed output's, if operands are swapped).
constexpr int finished_columns(const Geometry& g) {
  return g.tile_n / g.split / (g.gated && !g.swapped ? 2 : 1);
}

// Rows of one weight that lie together in a gated kernel's tile, the other's behind them. In the same
// place of each lie the same columns of z and z1, and one thread holds both: sums of wgmma repeat
// every 8 columns, and swapped every 64 rows.
constexpr int rows_of_a_weight(int tile_n, bool swapped) { return swapped ? 64 : tile_n / 2; }

// A consumer's bias: of the tile's columns, or of its own rows where operands are swapped.
constexpr int bias_bytes(const Geometry& g) {
  return 2 * (g.swapped ? g.tile_m / (g.pingpong ? 1 : g.consumers) : g.tile_n);
}

// Dynamic shared memory of a kernel: ring, staging of its consumers' warps, bias, barriers.
constexpr int shared_bytes_with(const Geometry& g, int chunk_units, int staging) {
  return g.stages * (g.tile_m + g.tile_n) * 128 + 4 * g.consumers * staging * chunk_units * 256 +
         g.consumers * bias_bytes(g) + g.stages * 16;
}

// Buffers that the way to memory needs: one is filled, of two outputs two, while the other is still
// read; a warp alone waits for that where it must, the warps that share a transposed chunk do not.
constexpr int least_buffers(const Geometry& g) { return g.swapped && g.outputs == 2 ? 3 : 2; }

// Columns of the tile that are staged at a time, in units of 8, which divide it. As they lie: the
// whole 128-byte swizzle row, or the largest odd number up to 13, whose pitch (an odd number of 16
// bytes) has no bank conflicts; 4 where there is none. Transposed, rows of a chunk are swizzle rows
// anyhow, and each chunk is a barrier: 8 to 3, else more, as far as there is room.
constexpr int chunk_units(const Geometry& g) {
  const int units = finished_columns(g) / 8;
  if (!g.swapped) {
    if (units % 8 == 0) return 8;
    int best = units % 4 == 0 ? 4 : 1;
    for (int d = 3; d <= 13; d += 2) {
      if (units % d == 0) best = d;
    }
    return best;
  }
  for (const int d : {8, 7, 6, 5, 4, 3, 13, 12, 11, 10, 9, 2}) {
    if (units % d == 0 && shared_bytes_with(g, d, least_buffers(g)) <= kSharedLimit) return d;
  }
  return 0;  // there is no such kernel
}

// Buffers through which a warp's chunks go in turn, as many as there is room for, four at most.
constexpr int staging_buffers(const Geometry& g) {
  int buffers = least_buffers(g);
  while (buffers < 4 && shared_bytes_with(g, chunk_units(g), buffers + 1) <= kSharedLimit) {
    ++buffers;
  }
  return buffers;
}

constexpr int shared_bytes(const Geometry& g) {
  return shared_bytes_with(g, chunk_units(g), staging_buffers(g));
}

}  // namespace fusepass
