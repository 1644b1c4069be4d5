#include "gemm_sm90_f32_launch.h"

#include <algorithm>
#include <cstdio>

#include "gemm_sm90_f32_args.h"
#include "gemm_sm90_f32_matrix.h"
#include "gemm_sm90_f32_outputs.h"
#include "sm90/gemm_sm90_geometry.h"
#include "split_sm90_launch.h"

namespace fusepass {
namespace split90 {

// One piece, in boxes of 64 K and `rows` rows; stored [k, rows], of 64 rows and `k` of K.
const TensorMap& piece_map(const void* piece, int64_t pitch, const Matrix& m, int64_t rows,
                           int64_t k) {
  return tensor_map({piece, uint64_t(m.lines()), uint64_t(m.length()), uint64_t(pitch) * 2,
                     uint32_t(m.is_km ? k : rows), 64, CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                     CU_TENSOR_MAP_SWIZZLE_128B});
}

// Of a segment's sums.
int64_t segment_floats(const GemmProblem& p, const Split90Kernels& kernels) {
  return ceil_div(p.m, 64) * 64 * round_up(p.n, kernels.tile_n);
}

int64_t segments_bytes(const GemmProblem& p, const Split90Kernels& kernels) {
  return kernels.segments == 1 ? 0 : kernels.segments * segment_floats(p, kernels) * 4;
}

// How K is cut: into segments of so many steps of kTileK, of which each part has some.
struct Segments {
  int64_t steps, count, of_part, parts, depth;  // depth: K of a part, of the last one less

  Segments(const GemmProblem& p, const Split90Kernels& kernels) {
    const int64_t all = ceil_div(p.k, kTileK);
    steps = ceil_div(all, kernels.segments);
    count = ceil_div(all, steps);
    of_part = ceil_div(kernels.segments, kernels.parts);
    parts = ceil_div(count, of_part);
    depth = of_part * steps * kTileK;
  }
};

// K from `first` on.
GemmProblem part_of(const GemmProblem& p, int64_t first, int64_t depth) {
  GemmProblem part = p;
  part.k = std::min(depth, p.k - first);
  part.x = static_cast<const float*>(p.x) + first * (p.x_is_km ? p.ldx : 1);
  part.w[0] = static_cast<const float*>(p.w[0]) + first * (p.w_is_kn ? p.ldw[0] : 1);
  return part;
}

void add_segments(const GemmProblem& p, Split90Args& args, const Split90Kernels& kernels,
                  CUstream stream, int num_sms) {
  const int64_t groups = ceil_div(p.m, 64) * args.gemm.tiles_n;
  int blocks = 1;  // that share a group's sum in float64, if it comes to that
  while (2 * blocks <= kMostSumBlocks && 2 * blocks * groups <= num_sms) blocks *= 2;
  launch_kernel(kernels.sum, groups * blocks, 128 * split_adders(kernels.tile_n),
                split_adders_bytes(kernels.tile_n), stream, &args, true, blocks);
}

void add_strips(const GemmProblem& p, const Float32Whole& whole, const Float32Outputs& outputs,
                const Split90Kernels& kernels, CUstream stream) {
  if (!whole.ends_with(p)) return;
  for (int i = 0; i < kMaxOutputs; ++i) {
    const Result& out = p.out[i];
    if (out.data == nullptr || !out.column_sum) continue;
    const float* const first = static_cast<const float*>(outputs.out[i]);
    Float32Sum sum{first - whole.row / kStripRows * p.n, out.data, out.dtype,
                   static_cast<int32_t>(p.n), static_cast<int32_t>(whole.strips())};
    launch_kernel(kernels.add_strips, ceil_div(p.n, 32), 32 * kStripsBelow, 0, stream, &sum, true);
  }
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

// All but pieces, facts and segments. `partial`: of the segments' sums, then of the column sums' strips.
void fill(const GemmProblem& p, const Float32Whole& whole, const Split90Kernels& kernels,
          void* partial, Split90Args* args) {
  fill_args(p, kSplitTile, kernels.tile_n, kTileK, kernels.cluster, kernels.group, &args->gemm);
  fill_outputs(p, at<void>(partial, segments_bytes(p, kernels)), whole, &args->outputs);
  stage_mats(p, args);
  args->partial = static_cast<float*>(partial);
  args->m = static_cast<int32_t>(p.m);
  args->k = static_cast<int32_t>(p.k);
}

void map_pieces(const GemmProblem& p, const Split90Pieces& x, const Split90Pieces& w,
                const Split90Kernels& kernels, Split90Args* args) {
  const int64_t share_n = kernels.tile_n / kernels.cluster, share_k = kTileK / kernels.cluster;
  args->gemm.x = piece_map(x.hi, x.pitch, x_of(p), kSplitTile, kTileK);
  args->x_low = piece_map(x.lo, x.pitch, x_of(p), kSplitTile, kTileK);
  args->gemm.w = piece_map(w.hi, w.pitch, w_of(p), share_n, share_k);
  args->w_low = piece_map(w.lo, w.pitch, w_of(p), share_n, share_k);
}

void multiply(Split90Args& args, const Split90Kernels& kernels, CUstream stream, int num_sms) {
  launch_gemm(kernels.gemm, args.gemm, kernels.cluster, num_sms,
              split_shared_bytes(kernels.tile_n, kernels.stages), stream, &args, 2, 1,
              args.segments);
}

}  // namespace split90

using split90::Layout;
using split90::PartedLayout;
using split90::w_of;
using split90::x_of;

bool split90_parse_config(const char* text, Split90Kernels* out) {
  out->parts = 1;
  return std::sscanf(text, "split 128x%d cluster%d stages%d group%d segments%d parts%d",
                     &out->tile_n, &out->cluster, &out->stages, &out->group, &out->segments,
                     &out->parts) >= 5;
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
  return x_of(p).overlaps() || w_of(p).overlaps() ? "an operand overlaps itself" : nullptr;
}

int64_t split90_bytes_of_line(int64_t rows, int64_t k, bool is_km) {
  const split90::Matrix m{nullptr, rows, k, 0, is_km};
  const Layout layout(m);
  const int64_t pieces = 4 * layout.pitch;
  const int64_t facts = (layout.bytes - layout.facts) / std::max<int64_t>(rows, 1);
  if (!is_km) return pieces + facts + k % 8;  // 20 to 27 beyond a multiple of 32; below, 0 to 7
  const int64_t each = ceil_div(facts * rows, std::max<int64_t>(k, 1));
  return pieces + split90::round_up(each, 32) + rows % 8;
}

Split90Pieces split90_x_pieces(const GemmProblem& p, void* split) {
  return split90::pieces_of(x_of(p), split);
}

Split90Pieces split90_w_pieces(const GemmProblem& p, void* split) {
  return split90::pieces_of(w_of(p), split);
}

void split90_split(const GemmProblem& p, const Split90Pieces& x, const Split90Pieces& w,
                   const Split90Kernels& kernels, CUstream stream, int num_sms) {
  const auto rows = [](const split90::Matrix& m, const Split90Pieces& pieces) {
    return pieces.hi == nullptr ? Split90Rows{} : split90::rows_of(m, pieces);
  };
  split90::split_both(p, rows(x_of(p), x), rows(w_of(p), w), kernels, stream, num_sms);
}

int64_t split90_partial_bytes(const GemmProblem& p, const Split90Kernels& kernels) {
  return split90::segments_bytes(p, kernels) + float32_strips_bytes(p);
}

void split90_gemm(const GemmProblem& p, const Float32Whole& whole, const Split90Pieces& x,
                  const Split90Pieces& w, void* partial, const Split90Kernels& kernels,
                  CUstream stream, int num_sms) {
  const split90::Segments segments(p, kernels);
  Split90Args args{};
  split90::fill(p, whole, kernels, partial, &args);
  split90::map_pieces(p, x, w, kernels, &args);
  args.x = split90::operand(x_of(p), x.facts);
  args.w = split90::operand(w_of(p), w.facts);
  args.segment_blocks = static_cast<int32_t>(segments.steps);
  args.segments = static_cast<int32_t>(segments.count);
  split90::multiply(args, kernels, stream, num_sms);
  if (kernels.sum != nullptr) split90::add_segments(p, args, kernels, stream, num_sms);
  split90::add_strips(p, whole, args.outputs, kernels, stream);
}

bool split90_has_parts(const GemmProblem& p, const Split90Kernels& kernels) {
  return kernels.segments > 1 && split90::Segments(p, kernels).parts > 1;
}

int64_t split90_parts_bytes(const GemmProblem& p, const Split90Kernels& kernels) {
  const split90::Segments segments(p, kernels);
  return PartedLayout(x_of(p), segments.depth, segments.parts).bytes +
         PartedLayout(w_of(p), segments.depth, segments.parts).bytes;
}

void split90_gemm_in_parts(const GemmProblem& p, void* room, void* partial,
                           const Split90Kernels& kernels, CUstream stream, int num_sms) {
  const split90::Segments segments(p, kernels);
  const PartedLayout x(x_of(p), segments.depth, segments.parts);
  const PartedLayout w(w_of(p), segments.depth, segments.parts);
  void* const x_room = room;
  void* const w_room = split90::at<void>(room, x.bytes);
  Split90Args args{};
  split90::fill(p, Float32Whole(p), kernels, partial, &args);
  args.segment_blocks = static_cast<int32_t>(segments.steps);
  for (int64_t i = 0; i < segments.parts; ++i) {
    const GemmProblem part = split90::part_of(p, i * segments.depth, segments.depth);
    const auto pieces = [&](const split90::Matrix& m, const PartedLayout& layout, void* at) {
      return split90::pieces_in(m, at, split90::at<void>(at, layout.parts + i * layout.step));
    };
    const Split90Pieces x_pieces = pieces(x_of(part), x, x_room);
    const Split90Pieces w_pieces = pieces(w_of(part), w, w_room);
    split90_split(part, x_pieces, w_pieces, kernels, stream, num_sms);
    split90::map_pieces(part, x_pieces, w_pieces, kernels, &args);
    args.gemm.k_blocks = static_cast<int32_t>(ceil_div(part.k, kTileK));
    args.segments = static_cast<int32_t>(ceil_div(args.gemm.k_blocks, segments.steps));
    args.partial = static_cast<float*>(partial) +
                   i * segments.of_part * split90::segment_floats(p, kernels);
    split90::multiply(args, kernels, stream, num_sms);
  }
  Split90JoinBoth join{split90::join_of(x_of(p), x, x_room), split90::join_of(w_of(p), w, w_room),
                       static_cast<int32_t>(segments.parts), static_cast<int32_t>(segments.depth)};
  launch_kernel(kernels.join_parts, ceil_div(p.m + p.n, kSplitThreads), kSplitThreads, 0, stream,
                &join, true);
  args.x = split90::operand(x_of(p), split90::at<void>(x_room, x.facts));
  args.w = split90::operand(w_of(p), split90::at<void>(w_room, w.facts));
  args.x_parts = split90::parts_of(x, x_room);
  args.w_parts = split90::parts_of(w, w_room);
  args.gemm.k_blocks = static_cast<int32_t>(ceil_div(p.k, kTileK));
  args.segments = static_cast<int32_t>(segments.count);
  args.segments_of_part = static_cast<int32_t>(segments.of_part);
  args.partial = static_cast<float*>(partial);
  split90::add_segments(p, args, kernels, stream, num_sms);
  split90::add_strips(p, Float32Whole(p), args.outputs, kernels, stream);
}

}  // namespace fusepass
