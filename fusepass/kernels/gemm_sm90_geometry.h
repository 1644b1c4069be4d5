// Sizes that host and device must agree on, from the numbers of a configuration.
#pragma once

namespace fusepass {

constexpr int kTileK = 64;  // 16-bit elements of a 128-byte row

// Columns of output that a warp stages at a time, in units of 8: the whole 128-byte swizzle row, or
// the largest odd divisor up to 13, whose pitch (an odd number of 16 bytes) has no bank conflicts.
constexpr int chunk_units(int units) {
  if (units % 8 == 0) return 8;
  int best = 1;
  for (int d = 3; d <= 13; d += 2) {
    if (units % d == 0) best = d;
  }
  return best;
}

constexpr int kSharedLimit = 232448;  // bytes of a block on Hopper

// Consumer warpgroups. Ping-pong has two that own a tile each; cooperative ones share a tile's rows,
// 64 or 128 each.
constexpr int consumers_of(int tile_m, bool pingpong) { return !pingpong && tile_m == 192 ? 3 : 2; }

// The sizes of a configuration that decide how much shared memory it takes.
struct Geometry {
  int tile_m, tile_n, stages, consumers;
};

// Dynamic shared memory of a kernel: ring, staging of its consumers' warps, bias, barriers.
constexpr int shared_bytes_with(const Geometry& g, int staging) {
  return g.stages * (g.tile_m + g.tile_n) * 128 +
         4 * g.consumers * staging * chunk_units(g.tile_n / 8) * 256 + g.consumers * g.tile_n * 2 +
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
