#include "gemm_sm90_tf32_launch.h"

#include <algorithm>
#include <climits>
#include <cstring>

#include "gemm_sm90_driver.h"
#include "gemm_sm90_f32_args.h"

namespace fusepass {
namespace tf32 {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

TensorMap map(const void* base, int64_t rows, int64_t k, int64_t stride, int box_rows) {
  const cuuint64_t sizes[2] = {cuuint64_t(k), cuuint64_t(rows)};
  // The stride of a single row is never used but must be valid.
  const cuuint64_t strides[1] = {cuuint64_t(rows > 1 ? stride : ceil_div(k, 4) * 4) * 4};
  const cuuint32_t box[2] = {kTf32TileK, cuuint32_t(box_rows)};
  return encode_map(CU_TENSOR_MAP_DATA_TYPE_TFLOAT32, base, sizes, strides, box,
                    CU_TENSOR_MAP_SWIZZLE_128B);
}

}  // namespace tf32

bool tf32_parse_config(const char* text, Gemm90Config* out) {
  return std::strncmp(text, "tf32 ", 5) == 0 && gemm90_parse_config(text + 5, out);
}

const char* tf32_unsupported(const GemmProblem& p) {
  if (p.dtype != DType::kFloat32) return "not float32";
  if (p.m < 1 || p.n < 1 || p.k < 1) return "empty";
  if (p.w_is_kn) return "the weight is stored [K, N], which tf32 wgmma cannot read";
  constexpr int64_t kLimit = INT_MAX - 1024;  // coordinates are 32-bit
  if (p.m > kLimit || p.n > kLimit || p.k > kLimit) return "a dimension of 2^31 or more";
  if (tf32::ceil_div(p.m, 64) * tf32::ceil_div(p.n, 64) > kLimit) return "too many tiles";
  if (p.n % 2 != 0) return "N is odd";
  const auto misaligned = [](const void* v) { return reinterpret_cast<uintptr_t>(v) % 16 != 0; };
  if (misaligned(p.x) || misaligned(p.w) || misaligned(p.out) || misaligned(p.preact)) {
    return "a tensor is not 16-byte aligned";
  }
  if (p.m > 1 && (p.ldx % 4 != 0 || p.ldx < p.k)) return "x's rows are not 16-byte aligned";
  if (p.n > 1 && (p.ldw % 4 != 0 || p.ldw < p.k)) return "the weight's rows are not 16-byte aligned";
  return nullptr;
}

void tf32_launch(const GemmProblem& p, const Gemm90Config& c, CUkernel kernel, CUstream stream,
                 int num_sms) {
  Tf32Args args{};
  args.gemm.x = tf32::map(p.x, p.m, p.k, p.ldx, c.tile_m);
  args.gemm.w = tf32::map(p.w, p.n, p.k, p.ldw, c.tile_n / c.cluster);
  args.gemm.bias = p.bias;
  for (int i = 0; i < kMaxScalars; ++i) {
    args.gemm.scalar_pointer[i] = p.scalars.pointer[i];
    args.gemm.scalar_value[i] = static_cast<float>(p.scalars.value[i]);
    args.gemm.scalar_dtype[i] = p.scalars.dtype[i];
  }
  args.gemm.n = static_cast<int32_t>(p.n);
  args.gemm.k_blocks = static_cast<int32_t>(tf32::ceil_div(p.k, kTf32TileK));
  args.gemm.clusters_m = static_cast<int32_t>(tf32::ceil_div(p.m, int64_t{c.tile_m} * c.cluster));
  args.gemm.tiles_n = static_cast<int32_t>(tf32::ceil_div(p.n, c.tile_n));
  args.gemm.group = std::max(1, std::min(c.group / c.cluster, args.gemm.clusters_m));
  args.out = static_cast<float*>(p.out);
  args.preact = static_cast<float*>(p.preact);
  args.m = static_cast<int32_t>(p.m);
  const int64_t clusters = std::min<int64_t>(int64_t{args.gemm.clusters_m} * args.gemm.tiles_n,
                                             num_sms / c.cluster);
  launch_kernel(kernel, clusters * c.cluster, 384,
                tf32_shared_bytes(c.tile_m, c.tile_n, c.stages), stream, &args);
}

}  // namespace fusepass
