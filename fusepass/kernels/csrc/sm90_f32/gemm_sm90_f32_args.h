// What float32's kernels are told, laid out the same for host and device: TF32, and the split kernel
// with its pre-pass.
#pragma once
#include <cstdint>

#include "sm90/gemm_sm90_args.h"

namespace fusepass {

// A row's largest magnitude, in [2^e, 2^(e+1)), is scaled into [2^kSplitTop, 2^(kSplitTop+1)): as
// far up as float16 reaches with a binade to spare, so that as much as possible stays above its
// subnormals.
constexpr int kSplitTop = 14;
constexpr int kSplitLow = 11;      // low pieces are stored times 2^kSplitLow
constexpr float kSplitWhole = 1.0f / (1 << 14);  // of a scaled element from which nothing is lost
constexpr float kSplitCounts = 1.0f / (1 << 10);  // and from which it counts: 2^-24 of the largest
constexpr int kSplitModerate = 50;  // |e| up to which one multiplication undoes both scales
constexpr int kSplitLeast = 8;     // elements that count, or a row has few
constexpr int kSplitThreads = 256;  // of the pre-pass, a CTA
constexpr int kSplitShorter = 512, kSplitShort = 1024;  // K of a row of which a warp can hold two
constexpr int kSplitShorterBlocks = 4, kSplitShortBlocks = 2;  // of a multiprocessor, then
constexpr int kSplitLong = 8192;  // K of a row that a CTA can hold
constexpr int kSplitTile = 128;  // rows of output a CTA computes

// Bytes of pieces: an x of more than kSplitMuch is split in parts of kSplitEnough or some more, and so is the
// larger operand where both together have more than kSplitTooMuch, if that takes little longer. A part more
// takes kSplitPart seconds, in which nothing is multiplied; else so many products are, and their
// additions, a second.
constexpr int64_t kSplitMuch = 96 << 20, kSplitEnough = 48 << 20, kSplitTooMuch = 512 << 20;
// Where parts of x can lie in the output, the last one has kSplitRoom of its own at most. Of parts of more
// than one size there are no more than kSplitMostParts.
constexpr int64_t kSplitRoom = 16 << 20;
constexpr int64_t kSplitMostParts = 5;
constexpr double kSplitPart = 9e-6, kSplitRate = 1e14, kSplitLittle = 0.01;

// Of a matrix stored [k, rows]: a cluster of up to kSplitMostShares CTAs takes kSplitStrip rows, each
// CTA a share of k, at most kSplitShare if it can be, by kSplitColumnThreads threads, or twice as many
// where strips are few.
constexpr int kSplitStrip = 32;
constexpr int kSplitMostShares = 8;
constexpr int kSplitShare = 512;
constexpr int kSplitColumnThreads = 512;

// Bytes of a consumer's scratch where it must sum a tile itself: kSumDepth of K of 64 rows and the
// columns, as doubles.
constexpr int kSumDepth = 8;
constexpr int kSumPad = 4;  // doubles, between one K and the next: no bank conflicts
constexpr int split_sum_bytes(int tile_n) {
  return kSumDepth * (64 + tile_n + 2 * kSumPad) * 8;
}

// Floats that a consumer finishes its part of a tile with: undo and bias a column, undo a row.
constexpr int split_facts(int tile_n) { return 2 * tile_n + 64; }

// Dynamic shared memory: ring of stages of 64 K, hi and lo of both operands; for each consumer its
// facts and its scratch; barriers.
constexpr int split_shared_bytes(int tile_n, int stages) {
  return stages * 2 * (kSplitTile + tile_n) * 128 +
         2 * (split_facts(tile_n) * 4 + split_sum_bytes(tile_n)) + stages * 16;
}

constexpr int kMostSumBlocks = 8;  // of a cluster that sums a group in float64
// Warpgroups of a block that adds segments, as many as there are registers for, and its dynamic shared
// memory: all their sums.
constexpr int split_adders(int tile_n) { return tile_n <= 64 ? 3 : 2; }
constexpr int split_adders_bytes(int tile_n) { return split_adders(tile_n) * 128 * (tile_n / 2) * 8; }

// What a row lost in splitting, asked for only where `undo` says so.
struct SplitRow {
  int32_t exponent;  // e
  float norm;        // of the scaled row
  float loss;        // norm of what elements far below the largest lost; inf if the row is not finite
  int32_t kind;      // kSplitFew and kSplitDominated; how many count, kSplitLeast at most, from bit
                     // kSplitSeen on; from kSplitCount on the length of its list
};
constexpr int kSplitFew = 1;        // fewer than kSplitLeast elements are above 2^-24 of the largest
constexpr int kSplitCount = 8;      // bit; 0 is a row that has no list
constexpr int kSplitListed = 16;    // elements of a list at most
constexpr int kSplitSeen = 2, kSplitSeenMask = 15;
constexpr int kSplitDominated = 2;  // one element holds a quarter of the row's square sum

// One operand split: 16-bit pieces in the order of the operand, `detail` and `undo` of each row.
// undo = 2^(e - kSplitTop); negative if the row is dominated; NaN if it lost digits, has few
// elements, is not finite or has an exponent that is not moderate.
struct SplitOperand {
  const float* raw;  // as the caller has it: element (row, k) at raw[row * row_step + k * k_step]
  int64_t row_step, k_step;
  bool quads;  // every fourth k of a row is 16-byte aligned, and contiguous
  const float* undo;
  const SplitRow* detail;
  const int32_t* list;  // kSplitListed a row: where elements are that are not 0
};

// Where K is split in parts, each with scales of its own: what is known of the rows of one, `step` rows
// behind those of the part before it.
struct SplitParts {
  const SplitRow* detail;
  int64_t step;
};

// gemm.h's Operand, with 32-bit rows.
struct Float32Operand {
  const void* data;
  int64_t outer_stride, row_stride, column_stride;
  int32_t inner;
  int32_t bytes;  // of an element
  bool pairs;     // of float32: every second element of a row is 8-byte aligned, and contiguous
};

// The first of a program's mats may follow a tile's products through the ring, a stage each, if they
// are float32 and TMA takes them: boxes of kStagedColumns columns and all rows of the tile. So many, to
// leave the next tile's products a stage of their own.
constexpr int kMostStagedMats = 2;
constexpr int kStagedColumns = 32;
constexpr int kStagedBox = kSplitTile * kStagedColumns * 4;  // bytes

// What float32's epilogue reads and writes, besides z and scalars, of an m x n problem.
struct Float32Outputs {
  void* out[kMaxOutputs];  // a column sum's are strips: float [ceil(m / kStripRows), n]
  float* preact;           // or null
  Float32Operand col[kMaxVectors], row[kMaxVectors], mat[kMaxVectors];
  int32_t m, n;
  int32_t ld;  // between rows of what is stored; n, or n and a multiple of 4
};
constexpr int kStripRows = 16;  // a warp's

// One column sum, of its strips.
struct Float32Sum {
  const float* from;
  void* out;  // [n]
  DType dtype;
  int32_t n, strips;
};
constexpr int kStripsBelow = 16;  // strips that a block reads side by side

struct Split90Args {
  Gemm90Args gemm;  // its x and w map the high pieces
  TensorMap x_low, w_low;
  SplitOperand x, w;
  Float32Outputs outputs;
  // Where K is cut into segments, each CTA's unit of work is a tile's share of one: their sums, a
  // consumer's 64 rows at a time in the order of its registers. Null otherwise.
  float* partial;
  int32_t m, k;
  int32_t segments, segment_blocks;  // a segment has so many steps of kTileK, the last one the rest
  int32_t segments_of_part;          // 0 where K is one
  SplitParts x_parts, w_parts;
  TensorMap mat[kMostStagedMats];
  int32_t staged_mats;  // a bit each: it is loaded by its map
};
static_assert(sizeof(Split90Args) <= 4096, "a kernel's parameter is larger than the driver takes");

struct Split90Rows {
  const float* src;
  int64_t ld;
  bool quads;  // every fourth element is 16-byte aligned
  int32_t rows, k;
  uint16_t* hi;
  uint16_t* lo;
  int64_t pitch;  // elements between rows of hi and of lo; stored [k, rows], between one k and the next
  float* undo;
  SplitRow* detail;
  int32_t* list;  // of a matrix stored [k, rows], whose rows are far to read one by one
};

// What is known of a matrix whose K was split in `parts` of `depth`: of each part, then of all of K.
struct Split90Join {
  const SplitRow* part_detail;
  const int32_t* part_list;  // null where rows have none
  int64_t detail_step, list_step;  // from part to part
  float* undo;
  SplitRow* detail;
  int32_t* list;
  int32_t rows;
};

struct Split90JoinBoth {
  Split90Join x, w;
  int32_t parts, depth;
};

// One launch splits x and w, or one of them, with the blocks of the other's rows left out; those
// stored [k, rows] in clusters of `shares` blocks.
struct Split90Both {
  Split90Rows x, w;
  int32_t x_blocks;
  int32_t shares;
  int32_t each;  // rows that a warp takes
};

constexpr int kTf32TileK = 32;  // elements of a 128-byte row

constexpr int tf32_shared_bytes(int tile_m, int tile_n, int stages) {
  return stages * (tile_m + tile_n) * 128 + 2 * tile_n * 4 + stages * 16;
}

struct Tf32Args {
  Gemm90Args gemm;  // without its tensor maps of the output
  Float32Outputs outputs;
};

}  // namespace fusepass
