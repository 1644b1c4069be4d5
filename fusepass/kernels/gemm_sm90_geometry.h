// Sizes that host and device must agree on, from the numbers of a configuration.
#pragma once

namespace fusepass {

constexpr int kTileK = 64;  // 16-bit elements of a 128-byte row

// How a warp's share of 16 rows goes through the epilogue, in units of 8 columns.
//
// A group is staged in shared memory and fenced together.
constexpr int group_units(int units) {
  int best = 1;
  for (int d = 2; d <= 12; ++d) {
    if (units % d == 0) best = d;
  }
  return best;
}

// A box is what one TMA store moves: a 128- or 64-byte swizzle row, or an odd number of units, whose
// pitch (an odd number of 16 bytes) has no bank conflicts.
constexpr int box_units(int units) {
  int box = group_units(units);
  if (box % 8 == 0) return 8;
  if (box % 4 == 0) return 4;
  return box % 2 == 0 ? box / 2 : box;
}

// Groups staged at a time: one is filled while the last is still read, or one for each output.
constexpr int kStaging = 2;

// Dynamic shared memory of a kernel: ring, staging of its 8 consumer warps, bias, barriers.
constexpr int shared_bytes(int tile_m, int tile_n, int stages) {
  return stages * (tile_m + tile_n) * 128 + 8 * kStaging * group_units(tile_n / 8) * 256 +
         2 * tile_n * 4 + stages * 16;
}

}  // namespace fusepass
