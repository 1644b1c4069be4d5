#include "gemm_sm90_launch.h"

#include <cstdio>
#include <string>

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

int shared_bytes_of(const Gemm90Config& c) {
  return shared_bytes({c.tile_m, c.tile_n, c.stages, consumers_of(c.tile_m, c.pingpong)});
}

}  // namespace gemm90

bool gemm90_parse_config(const char* text, Gemm90Config* out) {
  char schedule[16];
  Gemm90Config c;
  if (std::sscanf(text, "%dx%d %15s cluster%d stages%d group%d", &c.tile_m, &c.tile_n, schedule,
                  &c.cluster, &c.stages, &c.group) != 6) {
    return false;
  }
  c.pingpong = std::string(schedule) == "pingpong";
  if (!c.pingpong && std::string(schedule) != "cooperative") return false;
  *out = c;
  return true;
}

const char* gemm90_unsupported(const GemmProblem& p) {
  if (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) return "not a 16-bit dtype";
  if (p.x_is_km) return "x is stored [K, M]";
  if (p.n % 8 != 0) return "N is not a multiple of 8";
  if (reinterpret_cast<uintptr_t>(p.bias) % 4 != 0) return "the bias is not 4-byte aligned";
  return tma_unsupported(p, 8, kMostCoordinates);
}

CUfunction gemm90_function(CUkernel kernel, const Gemm90Config& config) {
  return kernel_function(kernel, gemm90::shared_bytes_of(config));
}

void gemm90_launch(const GemmProblem& p, const Gemm90Config& c, CUfunction kernel, CUstream stream,
                   int num_sms) {
  using gemm90::map;
  Gemm90Args args;
  fill_args(p, c.tile_m, c.tile_n, kTileK, c.cluster, c.group, &args);
  args.x = map(p, p.x, p.m, p.k, p.ldx, c.tile_m, kTileK);
  args.w = p.w_is_kn ? map(p, p.w, p.k, p.n, p.ldw, kTileK / c.cluster, 64)
                     : map(p, p.w, p.n, p.k, p.ldw, c.tile_n / c.cluster, kTileK);
  const int units = chunk_units(c.tile_n / 8);
  args.out = map(p, p.out, p.m, p.n, p.n, 16, 8 * units, units == 8);
  args.preact = p.preact == nullptr ? args.out
                                    : map(p, p.preact, p.m, p.n, p.n, 16, 8 * units, units == 8);
  launch_gemm(kernel, args, c.cluster, num_sms,
              gemm90::shared_bytes_of(c), stream, &args, consumers_of(c.tile_m, c.pingpong));
}

}  // namespace fusepass
