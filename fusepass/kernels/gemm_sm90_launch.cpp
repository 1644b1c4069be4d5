#include "gemm_sm90_launch.h"

#include <cstdio>
#include <sstream>
#include <string>
#include <utility>

#include "gemm_sm90_geometry.h"
#include "gemm_sm90_problem.h"

namespace fusepass {
namespace gemm90 {

// Boxes of a [rows, columns] tensor of the problem's dtype, rows `stride` elements apart.
const TensorMap& map(const GemmProblem& problem, const void* base, int64_t rows, int64_t columns,
                     int64_t stride, int box_rows, int box_columns, bool swizzle = true) {
  // The stride of a single row is never used but must be valid.
  const int64_t step = rows > 1 ? stride : ceil_div(columns, 8) * 8;
  return tensor_map({base, uint64_t(rows), uint64_t(columns), uint64_t(step) * 2,
                     uint32_t(box_rows), uint32_t(box_columns),
                     problem.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                       : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                     swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE});
}

Geometry geometry_of(const Gemm90Config& c, int outputs, bool gated) {
  const int consumers = c.consumers ? c.consumers : consumers_of(c.tile_m, c.pingpong);
  return {c.tile_m,        c.tile_n,       c.stages, consumers, c.split,
          c.pingpong != 0, c.swapped != 0, outputs,  gated};
}

// The map of an operand of `rows` rows, [rows, k] or, if `transposed`, [k, rows], in the boxes of
// gemm_sm90_producer.cuh: a tile's rows, or 64 of them; of each, 1/share.
const TensorMap& operand_map(const GemmProblem& p, const void* base, int64_t rows, int64_t stride,
                             bool transposed, int tile, int share) {
  return transposed ? map(p, base, p.k, rows, stride, kTileK / share, 64)
                    : map(p, base, rows, p.k, stride, tile / share, kTileK);
}

// The transposed problem, of which x @ w^T is the transpose of p's; a second weight stays where it is.
GemmProblem transposed(GemmProblem p) {
  std::swap(p.x, p.w[0]);
  std::swap(p.m, p.n);
  std::swap(p.ldx, p.ldw[0]);
  std::swap(p.x_is_km, p.w_is_kn);
  return p;
}

// Reads "swapped", "beside", "split2" or "consumers3".
bool parse_option(const std::string& word, Gemm90Config* c) {
  if (word == "swapped") {
    c->swapped = 1;
  } else if (word == "beside") {
    c->beside = 1;
  } else {
    return std::sscanf(word.c_str(), "split%d", &c->split) == 1 ||
           std::sscanf(word.c_str(), "consumers%d", &c->consumers) == 1;
  }
  return true;
}

}  // namespace gemm90

bool gemm90_parse_config(const char* text, Gemm90Config* out) {
  char schedule[16];
  int read = 0;
  Gemm90Config c;
  if (std::sscanf(text, "%dx%d %15s cluster%d stages%d group%d%n", &c.tile_m, &c.tile_n, schedule,
                  &c.cluster, &c.stages, &c.group, &read) != 6) {
    return false;
  }
  c.pingpong = std::string(schedule) == "pingpong";
  if (!c.pingpong && std::string(schedule) != "cooperative") return false;
  std::istringstream rest(text + read);
  for (std::string word; rest >> word;) {
    if (!gemm90::parse_option(word, &c)) return false;
  }
  *out = c;
  return true;
}

const char* gemm90_unsupported(const GemmProblem& p) {
  if (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) return "not a 16-bit dtype";
  if (p.n % 8 != 0) return "N is not a multiple of 8";
  for (const void* bias : p.bias) {
    if (reinterpret_cast<uintptr_t>(bias) % 4 != 0) return "a bias is not 4-byte aligned";
  }
  return tma_unsupported(p, 8, kMostCoordinates);
}

CUfunction gemm90_function(CUkernel kernel) { return kernel_function(kernel, kSharedLimit); }

void gemm90_launch(const GemmProblem& p, const Gemm90Config& c, CUfunction kernel, CUstream stream,
                   int num_sms) {
  using gemm90::map;
  using gemm90::operand_map;
  const GemmProblem q = c.swapped ? gemm90::transposed(p) : p;
  const bool gated = p.w[1] != nullptr, halves_x = gated && c.swapped, halves_w = gated && !c.swapped;
  Gemm90Args args;
  fill_args(q, c.tile_m / (halves_x ? 2 : 1), c.tile_n / (halves_w ? 2 : 1), kTileK, c.cluster,
            c.group, &args, c.beside);
  args.n = static_cast<int32_t>(p.n);  // as long as the bias, in either orientation
  const int share_x = c.beside ? c.cluster : 1, share_w = c.beside ? 1 : c.cluster;
  // Where CTAs share two weights each loads whole boxes of one.
  const int rows = rows_of_a_weight(c.tile_n, c.swapped);
  const int tile_x = halves_x ? rows * share_x : c.tile_m;
  const int tile_w = halves_w ? rows * share_w : c.tile_n;
  args.x = operand_map(q, q.x, q.m, q.ldx, q.x_is_km, tile_x, share_x);
  args.w = operand_map(q, q.w[0], q.n, q.ldw[0], q.w_is_kn, tile_w, share_w);
  args.second = !gated ? args.w
                       : operand_map(p, p.w[1], p.n, p.ldw[1], p.w_is_kn, c.swapped ? tile_x : tile_w,
                                     c.swapped ? share_x : share_w);
  const Geometry geometry = gemm90::geometry_of(c, p.preact() == nullptr ? 1 : 2, gated);
  const int units = chunk_units(geometry);
  const auto output = [&](const void* base) {
    return c.swapped ? map(p, base, p.m, p.n, p.n, 8 * units, 64)
                     : map(p, base, p.m, p.n, p.n, 16, 8 * units, units == 8);
  };
  args.out = output(p.out[0].data);
  args.preact = p.preact() == nullptr ? args.out : output(p.preact());
  launch_gemm(kernel, args, c.cluster, num_sms, shared_bytes(geometry), stream, &args,
              geometry.consumers, c.split);
}

}  // namespace fusepass
