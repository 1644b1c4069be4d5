#include "gemm_sm90_f32_launch.h"

#include <algorithm>
#include <cstdio>

#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_geometry.h"
#include "gemm_sm90_problem.h"

namespace fusepass {
namespace split90 {

int64_t round_up(int64_t v, int64_t unit) { return ceil_div(v, unit) * unit; }

// Where the parts of a split matrix lie. Rows of pieces are padded to whole tiles: a tile of hi then
// never reaches into lo, and what lies in the padding only reaches rows that are not stored.
struct Layout {
  int64_t padded, pitch;  // rows; elements of a row
  int64_t undo, detail, bytes;

  Layout(int64_t rows, int64_t k) {
    padded = round_up(rows, kSplitTile);
    pitch = round_up(k, 8);
    undo = round_up(2 * padded * pitch * 2, 256);
    detail = undo + round_up(padded * int64_t{sizeof(float)}, 256);
    bytes = detail + padded * int64_t{sizeof(SplitRow)};
  }
};

template <class T>
T* at(void* base, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(base) + offset);
}

const TensorMap& piece_map(const void* pieces, const Layout& layout, int64_t k, int box_rows) {
  return tensor_map({pieces, uint64_t(2 * layout.padded), uint64_t(k), uint64_t(layout.pitch) * 2,
                     uint32_t(box_rows), kTileK, CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                     CU_TENSOR_MAP_SWIZZLE_128B});
}

SplitOperand operand(const void* raw, int64_t row_step, int64_t k_step, const void* pieces,
                     const Layout& layout) {
  void* base = const_cast<void*>(pieces);
  return {static_cast<const float*>(raw), row_step, k_step, at<float>(base, layout.undo),
          at<SplitRow>(base, layout.detail)};
}

// `pieces` may be null: no rows are split then.
Split90Rows rows_of(const void* src, int64_t ld, int64_t rows, int64_t k, void* pieces) {
  if (pieces == nullptr) return {};
  const Layout layout(rows, k);
  uint16_t* hi = static_cast<uint16_t*>(pieces);
  return {static_cast<const float*>(src),
          ld,
          static_cast<int32_t>(rows),
          static_cast<int32_t>(k),
          hi,
          hi + layout.padded * layout.pitch,
          layout.pitch,
          at<float>(pieces, layout.undo),
          at<SplitRow>(pieces, layout.detail)};
}

void split_rows(const Split90Rows& x, const Split90Rows& w, int64_t k,
                const Split90Kernels& kernels, CUstream stream) {
  const int64_t each = k <= kSplitShort ? kSplitThreads / 32 : 1;  // rows of a block
  const int64_t x_blocks = ceil_div(x.rows, each);
  Split90Both both{x, w, static_cast<int32_t>(x_blocks)};
  const CUfunction kernel = k <= kSplitShort  ? kernels.short_rows
                            : k <= kSplitLong ? kernels.long_rows
                                              : kernels.longer_rows;
  launch_kernel(kernel, x_blocks + ceil_div(w.rows, each), kSplitThreads, 0, stream, &both, true);
}

}  // namespace split90

using split90::Layout;

bool split90_parse_config(const char* text, Split90Kernels* out) {
  return std::sscanf(text, "split 128x%d cluster%d stages%d group%d", &out->tile_n, &out->cluster,
                     &out->stages, &out->group) == 4;
}

CUfunction split90_function(CUkernel gemm, const Split90Kernels& config) {
  return kernel_function(gemm, split_shared_bytes(config.tile_n, config.stages));
}

const char* split90_unsupported(const GemmProblem& p) {
  if (p.dtype != DType::kFloat32) return "not float32";
  if (p.x_is_km) return "x is stored [K, M]";
  if (p.n % 2 != 0) return "N is odd";
  return tma_unsupported(p, 4, kMostCoordinates / 2, true);  // hi and lo are rows of one tensor map
}

int64_t split90_pitch(int64_t rows, int64_t k) {
  const int64_t each = ceil_div(Layout(rows, k).bytes, std::max<int64_t>(rows, 1));
  return split90::round_up(each, 8) + k % 8;  // rows of pieces are only told apart by eights
}

void split90_split(const GemmProblem& p, void* x_pieces, void* w_pieces,
                   const Split90Kernels& kernels, CUstream stream) {
  const Split90Rows x = split90::rows_of(p.x, p.ldx, p.m, p.k, x_pieces);
  Split90Rows w = split90::rows_of(p.w, p.ldw, p.n, p.k, w_pieces);
  if (w_pieces != nullptr && p.w_is_kn) {
    launch_kernel(kernels.columns, ceil_div(p.n, 32), kSplitColumnThreads, 0, stream, &w, true);
    w = {};
  }
  if (x.rows + w.rows > 0) split90::split_rows(x, w, p.k, kernels, stream);
}

void split90_gemm(const GemmProblem& p, const void* x_pieces, const void* w_pieces,
                  const Split90Kernels& kernels, CUstream stream, int num_sms) {
  const Layout x(p.m, p.k), w(p.n, p.k);
  Split90Args args{};
  fill_args(p, kSplitTile, kernels.tile_n, kTileK, kernels.cluster, kernels.group, &args.gemm);
  args.gemm.x = split90::piece_map(x_pieces, x, p.k, kSplitTile);
  args.gemm.w = split90::piece_map(w_pieces, w, p.k, kernels.tile_n / kernels.cluster);
  args.x = split90::operand(p.x, p.ldx, 1, x_pieces, x);
  args.w = split90::operand(p.w, p.w_is_kn ? 1 : p.ldw, p.w_is_kn ? p.ldw : 1, w_pieces, w);
  args.out = static_cast<float*>(p.out);
  args.preact = static_cast<float*>(p.preact);
  args.x_low = static_cast<int32_t>(x.padded);
  args.w_low = static_cast<int32_t>(w.padded);
  args.m = static_cast<int32_t>(p.m);
  args.k = static_cast<int32_t>(p.k);
  launch_gemm(kernels.gemm, args.gemm, kernels.cluster, num_sms,
              split_shared_bytes(kernels.tile_n, kernels.stages), stream, &args);
}

}  // namespace fusepass
