#include "gemm_sm90_tf32_launch.h"

#include <cstring>

#include "sm90_f32/gemm_sm90_f32_args.h"
#include "sm90_f32/gemm_sm90_f32_outputs.h"
#include "gemm_sm90_problem.h"

namespace fusepass {
namespace tf32 {

const TensorMap& map(const void* base, int64_t rows, int64_t k, int64_t stride, int box_rows) {
  // The stride of a single row is never used but must be valid.
  const int64_t step = rows > 1 ? stride : ceil_div(k, 4) * 4;
  return tensor_map({base, uint64_t(rows), uint64_t(k), uint64_t(step) * 4, uint32_t(box_rows),
                     kTf32TileK, CU_TENSOR_MAP_DATA_TYPE_TFLOAT32, CU_TENSOR_MAP_SWIZZLE_128B});
}

}  // namespace tf32

bool tf32_parse_config(const char* text, Gemm90Config* out) {
  return std::strncmp(text, "tf32 ", 5) == 0 && gemm90_parse_config(text + 5, out);
}

const char* tf32_unsupported(const GemmProblem& p) {
  if (p.dtype != DType::kFloat32) return "not float32";
  if (p.x_is_km) return "x is stored [K, M], which tf32 wgmma cannot read";
  if (p.w_is_kn) return "the weight is stored [K, N], which tf32 wgmma cannot read";
  if (p.n % 2 != 0) return "N is odd";
  if (p.w[1] != nullptr) return "two weights";
  if (rows_of_group(p) % kStripRows != 0) return "a col operand's groups are of parts of a warp's rows";
  return tma_unsupported(p, 4, kMostCoordinates);
}

CUfunction tf32_function(CUkernel kernel, const Gemm90Config& c) {
  return kernel_function(kernel, tf32_shared_bytes(c.tile_m, c.tile_n, c.stages));
}

void tf32_launch(const GemmProblem& p, const Gemm90Config& c, CUfunction kernel, CUstream stream,
                 int num_sms) {
  Tf32Args args{};
  fill_args(p, c.tile_m, c.tile_n, kTf32TileK, c.cluster, c.group, &args.gemm);
  args.gemm.x = tf32::map(p.x, p.m, p.k, p.ldx, c.tile_m);
  args.gemm.w = tf32::map(p.w[0], p.n, p.k, p.ldw[0], c.tile_n / c.cluster);
  fill_outputs(p, nullptr, Float32Whole(p), &args.outputs);
  launch_gemm(kernel, args.gemm, c.cluster, num_sms,
              tf32_shared_bytes(c.tile_m, c.tile_n, c.stages), stream, &args);
}

}  // namespace fusepass
