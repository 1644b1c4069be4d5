#include "gemm_sm90_f32_launch.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_f32_outputs.h"
#include "sm90/gemm_sm90_geometry.h"
#include "sm90/gemm_sm90_problem.h"

namespace fusepass {
namespace split90 {

int64_t round_up(int64_t v, int64_t unit) { return ceil_div(v, unit) * unit; }

// A matrix as it is stored: `lines` of `length` contiguous elements, `ld` apart. Its rows, M or N of
// the GEMM, are the lines, or, if is_km, what is contiguous.
struct Matrix {
  const void* data;
  int64_t rows, k, ld;
  bool is_km;

  // Whether every fourth element of a line is 16-byte aligned.
  bool quads() const {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (ld % 4 == 0 || lines() == 1);
  }
  int64_t lines() const { return is_km ? k : rows; }
  int64_t length() const { return is_km ? rows : k; }
};

Matrix x_of(const GemmProblem& p) { return {p.x, p.m, p.k, p.ldx, p.x_is_km}; }
Matrix w_of(const GemmProblem& p) { return {p.w[0], p.n, p.k, p.ldw[0], p.w_is_kn}; }

// Where the parts of a split matrix lie: hi, lo, detail, undo, and of one stored [k, rows] list.
struct Layout {
  int64_t pitch;  // elements between lines of pieces
  int64_t low, detail, undo, list, bytes;

  explicit Layout(const Matrix& m) {
    pitch = round_up(m.length(), 8);
    low = 2 * m.lines() * pitch;
    detail = 2 * low;
    undo = detail + m.rows * int64_t{sizeof(SplitRow)};
    list = undo + m.rows * int64_t{sizeof(float)};
    bytes = list + (m.is_km ? m.rows * kSplitListed * int64_t{sizeof(int32_t)} : 0);
  }
};

template <class T>
T* at(const void* base, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(const_cast<void*>(base)) + offset);
}

// One piece, in boxes of 64 K and `rows` rows; stored [k, rows], of 64 rows and `k` of K.
const TensorMap& piece_map(const void* piece, const Matrix& m, int64_t rows, int64_t k) {
  const Layout layout(m);
  return tensor_map({piece, uint64_t(m.lines()), uint64_t(m.length()), uint64_t(layout.pitch) * 2,
                     uint32_t(m.is_km ? k : rows), 64, CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                     CU_TENSOR_MAP_SWIZZLE_128B});
}

SplitOperand operand(const Matrix& m, const void* pieces) {
  const Layout layout(m);
  return {static_cast<const float*>(m.data), m.is_km ? 1 : m.ld, m.is_km ? m.ld : 1,
          m.quads() && !m.is_km, at<float>(pieces, layout.undo), at<SplitRow>(pieces, layout.detail),
          at<int32_t>(pieces, layout.list)};
}

Split90Rows rows_of(const Matrix& m, void* pieces) {
  const Layout layout(m);
  return {static_cast<const float*>(m.data),
          m.ld,
          m.quads(),
          static_cast<int32_t>(m.rows),
          static_cast<int32_t>(m.k),
          at<uint16_t>(pieces, 0),
          at<uint16_t>(pieces, layout.low),
          layout.pitch,
          at<float>(pieces, layout.undo),
          at<SplitRow>(pieces, layout.detail),
          at<int32_t>(pieces, layout.list)};
}

// Either may have no rows. A warp of a matrix that fills the device takes as many of them as makes that
// one wave of blocks.
void split_rows(const Split90Rows& x, const Split90Rows& w, int64_t k,
                const Split90Kernels& kernels, CUstream stream, int num_sms) {
  constexpr int64_t kWarps = kSplitThreads / 32, kMost = 32;  // a lane knows a row
  const int64_t blocks = k <= kSplitShorter ? kSplitShorterBlocks : kSplitShortBlocks;
  const int64_t wave = num_sms * blocks * kWarps, rows = int64_t{x.rows} + w.rows;
  const int64_t each = std::min(ceil_div(rows, wave), kMost);
  const int64_t of_block = k <= kSplitShort ? kWarps * each : 1;
  const int64_t x_blocks = ceil_div(x.rows, of_block);
  Split90Both both{x, w, static_cast<int32_t>(x_blocks), 1, static_cast<int32_t>(each)};
  const CUfunction kernel = k <= kSplitShorter ? kernels.shorter_rows
                            : k <= kSplitShort ? kernels.short_rows
                            : k <= kSplitLong  ? kernels.long_rows
                                               : kernels.longer_rows;
  launch_kernel(kernel, x_blocks + ceil_div(w.rows, of_block), kSplitThreads, 0, stream, &both, true);
}

// Those stored [k, rows]: shares small enough for the cache to keep those in flight, and enough CTAs
// for the device; where there are no more than one a multiprocessor, of twice the threads. Either may
// have no rows.
void split_columns(const Split90Rows& x, const Split90Rows& w, int64_t k,
                   const Split90Kernels& kernels, CUstream stream, int num_sms) {
  const int64_t x_strips = ceil_div(x.rows, kSplitStrip), w_strips = ceil_div(w.rows, kSplitStrip);
  const int64_t strips = x_strips + w_strips;
  int shares = 1;
  while (shares < std::min(kSplitMostShares, num_sms) &&
         (int64_t{shares} * kSplitShare < k || strips * shares < 2 * num_sms)) {
    shares *= 2;
  }
  Split90Both both{x, w, static_cast<int32_t>(x_strips * shares), shares, 1};
  const bool few = strips * shares <= num_sms;
  launch_kernel(few ? kernels.few_columns : kernels.columns, strips * shares,
                few ? 2 * kSplitColumnThreads : kSplitColumnThreads, 0, stream, &both, true, shares);
}

// Of the sums of segments.
int64_t segments_bytes(const GemmProblem& p, const Split90Kernels& kernels) {
  if (kernels.segments == 1) return 0;
  return kernels.segments * ceil_div(p.m, 64) * 64 * round_up(p.n, kernels.tile_n) * 4;
}

void add_segments(const GemmProblem& p, Split90Args& args, const Split90Kernels& kernels,
                  CUstream stream, int num_sms) {
  const int64_t groups = ceil_div(p.m, 64) * args.gemm.tiles_n;
  int blocks = 1;  // that share a group's sum in float64, if it comes to that
  while (2 * blocks <= kMostSumBlocks && 2 * blocks * groups <= num_sms) blocks *= 2;
  launch_kernel(kernels.sum, groups * blocks, 128 * split_adders(kernels.tile_n),
                split_adders_bytes(kernels.tile_n), stream, &args, true, blocks);
}

void add_strips(const GemmProblem& p, const Float32Outputs& outputs, const Split90Kernels& kernels,
                CUstream stream) {
  for (int i = 0; i < kMaxOutputs; ++i) {
    const Result& out = p.out[i];
    if (out.data == nullptr || !out.column_sum) continue;
    Float32Sum sum{static_cast<const float*>(outputs.out[i]), out.data, out.dtype,
                   static_cast<int32_t>(p.n), static_cast<int32_t>(ceil_div(p.m, kStripRows))};
    launch_kernel(kernels.add_strips, ceil_div(p.n, 32), 32 * kStripsBelow, 0, stream, &sum, true);
  }
}

// Whether rows of the output can be computed apart: operands' rows are evenly spaced, nothing is summed.
bool can_be_cut(const GemmProblem& p) {
  const auto even = [&](const Operand& o) { return o.data == nullptr || o.inner >= p.m; };
  return float32_strips_bytes(p) == 0 && rows_of_group(p) == 0 &&
         std::all_of(p.row, p.row + kMaxVectors, even) &&
         std::all_of(p.mat, p.mat + kMaxVectors, even);
}

void stage_mats(const GemmProblem& p, Split90Args* args) {
  args->staged_mats = staged_mats(p);
  for (int i = 0; i < kMostStagedMats; ++i) {
    if (!(args->staged_mats >> i & 1)) continue;
    const Operand& o = p.mat[i];
    const int64_t step = p.m > 1 ? o.row_stride : round_up(p.n, 4);  // of a single row never used
    args->mat[i] = tensor_map({o.data, uint64_t(p.m), uint64_t(p.n), uint64_t(step) * 4, kSplitTile,
                               kStagedColumns, CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                               CU_TENSOR_MAP_SWIZZLE_128B});
  }
}

bool overlaps(const Matrix& m) { return m.lines() > 1 && m.ld < m.length(); }

}  // namespace split90

using split90::Layout;
using split90::w_of;
using split90::x_of;

bool split90_parse_config(const char* text, Split90Kernels* out) {
  return std::sscanf(text, "split 128x%d cluster%d stages%d group%d segments%d", &out->tile_n,
                     &out->cluster, &out->stages, &out->group, &out->segments) == 5;
}

CUfunction split90_function(CUkernel gemm, const Split90Kernels& config) {
  return kernel_function(gemm, split_shared_bytes(config.tile_n, config.stages));
}

CUfunction split90_sum_function(CUkernel sum, const Split90Kernels& config) {
  return kernel_function(sum, split_adders_bytes(config.tile_n));
}

const char* split90_unsupported(const GemmProblem& p) {
  if (p.dtype != DType::kFloat32) return "not float32";
  if (p.m < 1 || p.n < 1 || p.k < 1) return "empty";
  if (std::max({p.m, p.n, p.k}) > kMostCoordinates) return "a dimension is too large";
  if (p.w[1] != nullptr) return "two weights";
  if (rows_of_group(p) % kStripRows != 0) return "a col operand's groups are of parts of a warp's rows";
  if (ceil_div(p.m, 64) * ceil_div(p.n, 64) > kMostCoordinates) return "too many tiles";
  if (reinterpret_cast<uintptr_t>(p.out[0].data) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(p.preact()) % 16 != 0) {
    return "an output is not 16-byte aligned";
  }
  return split90::overlaps(x_of(p)) || split90::overlaps(w_of(p)) ? "an operand overlaps itself"
                                                                    : nullptr;
}

int64_t split90_bytes_of_line(int64_t rows, int64_t k, bool is_km) {
  const split90::Matrix m{nullptr, rows, k, 0, is_km};
  const Layout layout(m);
  const int64_t pieces = 4 * layout.pitch;
  const int64_t facts = (layout.bytes - layout.detail) / std::max<int64_t>(rows, 1);
  if (!is_km) return pieces + facts + k % 8;  // 20 to 27 beyond a multiple of 32; below, 0 to 7
  const int64_t each = ceil_div(facts * rows, std::max<int64_t>(k, 1));
  return pieces + split90::round_up(each, 32) + rows % 8;
}

void split90_split(const GemmProblem& p, void* x_pieces, void* w_pieces,
                   const Split90Kernels& kernels, CUstream stream, int num_sms) {
  Split90Rows x{}, w{};
  if (x_pieces != nullptr) x = split90::rows_of(x_of(p), x_pieces);
  if (w_pieces != nullptr) w = split90::rows_of(w_of(p), w_pieces);
  Split90Rows x_columns{}, w_columns{};
  if (p.x_is_km) std::swap(x, x_columns);
  if (p.w_is_kn) std::swap(w, w_columns);
  if (x_columns.rows + w_columns.rows > 0) {
    split90::split_columns(x_columns, w_columns, p.k, kernels, stream, num_sms);
  }
  if (x.rows + w.rows > 0) split90::split_rows(x, w, p.k, kernels, stream, num_sms);
}

int64_t split90_rows_at_once(const GemmProblem& p, const Split90Kernels& kernels, int num_sms) {
  if (!split90::can_be_cut(p)) return p.m;
  const int64_t unit = int64_t{kSplitTile} * kernels.cluster, units = ceil_div(p.m, unit);
  const int64_t bytes = 4 * p.m * p.k;
  if (kernels.segments > 1 || bytes <= kSplitMuch) return p.m;
  const int64_t columns = ceil_div(p.n, kernels.tile_n);
  const auto rounds = [&](int64_t rows) {  // of the device's multiprocessors
    return ceil_div(rows * columns, num_sms / kernels.cluster);
  };
  int64_t each = std::max<int64_t>(1, kSplitEnough / (4 * unit * p.k));
  const auto rounds_of_parts = [&] {
    return units / each * rounds(each) + rounds(units % each);
  };
  while (each < units && rounds_of_parts() > rounds(units)) ++each;
  return std::min(each * unit, p.m);
}

int64_t split90_partial_bytes(const GemmProblem& p, const Split90Kernels& kernels) {
  return split90::segments_bytes(p, kernels) + float32_strips_bytes(p);
}

void split90_gemm(const GemmProblem& p, const void* x_pieces, const void* w_pieces, void* partial,
                  const Split90Kernels& kernels, CUstream stream, int num_sms) {
  const split90::Matrix x = x_of(p), w = w_of(p);
  const int64_t share_n = kernels.tile_n / kernels.cluster, share_k = kTileK / kernels.cluster;
  Split90Args args{};
  fill_args(p, kSplitTile, kernels.tile_n, kTileK, kernels.cluster, kernels.group, &args.gemm);
  args.gemm.x = split90::piece_map(x_pieces, x, kSplitTile, kTileK);
  args.x_low = split90::piece_map(split90::at<void>(x_pieces, Layout(x).low), x, kSplitTile, kTileK);
  args.gemm.w = split90::piece_map(w_pieces, w, share_n, share_k);
  args.w_low = split90::piece_map(split90::at<void>(w_pieces, Layout(w).low), w, share_n, share_k);
  args.x = split90::operand(x, x_pieces);
  args.w = split90::operand(w, w_pieces);
  fill_outputs(p, split90::at<void>(partial, split90::segments_bytes(p, kernels)), &args.outputs);
  split90::stage_mats(p, &args);
  args.partial = static_cast<float*>(partial);
  args.m = static_cast<int32_t>(p.m);
  args.k = static_cast<int32_t>(p.k);
  args.segment_blocks = static_cast<int32_t>(ceil_div(args.gemm.k_blocks, kernels.segments));
  args.segments = static_cast<int32_t>(ceil_div(args.gemm.k_blocks, args.segment_blocks));
  launch_gemm(kernels.gemm, args.gemm, kernels.cluster, num_sms,
              split_shared_bytes(kernels.tile_n, kernels.stages), stream, &args, 2, 1,
              args.segments);
  if (kernels.sum != nullptr) split90::add_segments(p, args, kernels, stream, num_sms);
  split90::add_strips(p, args.outputs, kernels, stream);
}

}  // namespace fusepass
