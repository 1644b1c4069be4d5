// Sizes that host and device must agree on, from the numbers of a configuration.
#pragma once

namespace fusepass {

constexpr int kTileK = 64;  // 16-bit elements of a 128-byte row

// Columns of the tile that are staged at a time, in units of 8, which divide it: the whole 128-byte
// swizzle row, or the largest odd number up to 13, whose pitch (an odd number of 16 bytes) has no
// bank conflicts; 4 where there is none. Rows of a transposed chunk are swizzle rows anyhow.
constexpr int chunk_units(int units, bool transposed) {
  if (units % 8 == 0) return 8;
  int best = transposed ? 2 : units % 4 == 0 ? 4 : 1;
  for (int d = 3; d <= (transposed ? 7 : 13); d += transposed ? 1 : 2) {
    if (units % d == 0) best = d;
  }
  return best;
}

constexpr int kSharedLimit = 232448;  // bytes of a block on Hopper

// Consumer warpgroups. Ping-pong has two that own a tile each; cooperative ones share a tile's rows,
// 64 or 128 each.
constexpr int consumers_of(int tile_m, bool pingpong) { return !pingpong && tile_m == 192 ? 3 : 2; }

// The sizes of a configuration that decide how much shared memory it takes; `split` CTAs share a
// tile's K, and each finishes as large a share of its columns.
struct Geometry {
  int tile_m, tile_n, stages, consumers, split;
  bool swapped;
};

constexpr int chunk_units(const Geometry& g) {
  return chunk_units(g.tile_n / g.split / 8, g.swapped);
}

// A consumer's bias: of the tile's columns, or of its rows where operands are swapped.
constexpr int bias_bytes(const Geometry& g) {
  return (g.tile_m > g.tile_n ? g.tile_m : g.tile_n) * 2;
}

// Dynamic shared memory of a kernel: ring, staging of its consumers' warps, bias, barriers.
constexpr int shared_bytes_with(const Geometry& g, int staging) {
  return g.stages * (g.tile_m + g.tile_n) * 128 +
         4 * g.consumers * staging * chunk_units(g) * 256 + g.consumers * bias_bytes(g) +
         g.stages * 16;
}

// Buffers through which a warp's chunks go in turn, as many as there is room for, four at most: one
// is filled, with two outputs two are, while the others are still read.
constexpr int staging_buffers(const Geometry& g) {
  int buffers = 2;
  while (buffers < 4 && shared_bytes_with(g, buffers + 1) <= kSharedLimit) ++buffers;
  return buffers;
}

constexpr int shared_bytes(const Geometry& g) { return shared_bytes_with(g, staging_buffers(g)); }

}  // namespace fusepass
