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

// Dynamic shared memory of a kernel: ring, staging of its 8 consumer warps, bias, barriers.
constexpr int shared_bytes_with(int tile_m, int tile_n, int stages, int staging) {
  return stages * (tile_m + tile_n) * 128 + 8 * staging * chunk_units(tile_n / 8) * 256 +
         2 * tile_n * 2 + stages * 16;
}

// Buffers through which a warp's chunks go in turn: one is filled while the last is still read; with
// two outputs two are being filled, and a third helps where there is room.
constexpr int staging_buffers(int tile_m, int tile_n, int stages, bool preact) {
  return preact && shared_bytes_with(tile_m, tile_n, stages, 3) <= kSharedLimit ? 3 : 2;
}

constexpr int shared_bytes(int tile_m, int tile_n, int stages, bool preact) {
  return shared_bytes_with(tile_m, tile_n, stages,
                           staging_buffers(tile_m, tile_n, stages, preact));
}

}  // namespace fusepass
