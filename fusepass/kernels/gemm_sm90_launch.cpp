#include "gemm_sm90_launch.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "gemm_sm90_args.h"
#include "gemm_sm90_geometry.h"

namespace fusepass {
namespace {

constexpr int kElementBytes = 2;
constexpr int kThreads = 384;

template <class F>
F driver_entry(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t status = cudaGetDriverEntryPoint(name, &entry, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(std::string("fusepass: the CUDA driver has no ") + name);
  }
  return reinterpret_cast<F>(entry);
}

struct Driver {
  decltype(&cuGetErrorString) error_string =
      driver_entry<decltype(&cuGetErrorString)>("cuGetErrorString");
  decltype(&cuTensorMapEncodeTiled) encode =
      driver_entry<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  decltype(&cuKernelSetAttribute) set_attribute =
      driver_entry<decltype(&cuKernelSetAttribute)>("cuKernelSetAttribute");
  decltype(&cuLaunchKernel) launch = driver_entry<decltype(&cuLaunchKernel)>("cuLaunchKernel");

  void check(CUresult result, const char* call) const {
    if (result == CUDA_SUCCESS) return;
    const char* message = "unknown error";
    error_string(result, &message);
    throw std::runtime_error(std::string("fusepass: ") + call + ": " + message);
  }
};

const Driver& driver() {
  static const Driver instance;
  return instance;
}

// Boxes of `box_rows` x `box_columns` of a row-major [rows, columns] tensor, rows `stride` elements
// apart.
TensorMap tensor_map(const GemmProblem& problem, const void* base, int64_t rows, int64_t columns,
                     int64_t stride, int box_rows, int box_columns, bool swizzle) {
  const bool bf16 = problem.dtype == DType::kBFloat16;
  const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(rows)};
  // The stride of a single row is never used but must be valid.
  const int64_t step = rows > 1 ? stride : (columns + 7) / 8 * 8;
  const cuuint64_t strides[1] = {cuuint64_t(step) * kElementBytes};
  const cuuint32_t box[2] = {cuuint32_t(box_columns), cuuint32_t(box_rows)};
  const cuuint32_t every[2] = {1, 1};
  TensorMap map;
  driver().check(
      driver().encode(reinterpret_cast<CUtensorMap*>(&map),
                      bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
                      const_cast<void*>(base), sizes, strides, box, every,
                      CU_TENSOR_MAP_INTERLEAVE_NONE,
                      swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
      "cuTensorMapEncodeTiled");
  return map;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A block may use more than 48 KB of shared memory only after this, once per kernel and device.
void allow_shared(CUkernel kernel, int bytes) {
  static thread_local std::set<std::pair<CUkernel, int>> allowed;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) throw std::runtime_error("fusepass: no CUDA device");
  if (!allowed.insert({kernel, device}).second) return;
  driver().check(driver().set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes,
                                        kernel, device),
                 "cuKernelSetAttribute");
}

Gemm90Args make_args(const GemmProblem& p, const Gemm90Config& c) {
  Gemm90Args args;
  args.x = tensor_map(p, p.x, p.m, p.k, p.ldx, c.tile_m, kTileK, true);
  args.w = p.w_is_kn
               ? tensor_map(p, p.w, p.k, p.n, p.ldw, kTileK / c.cluster, 64, true)
               : tensor_map(p, p.w, p.n, p.k, p.ldw, c.tile_n / c.cluster, kTileK, true);
  const int units = chunk_units(c.tile_n / 8);
  args.out = tensor_map(p, p.out, p.m, p.n, p.n, 16, 8 * units, units == 8);
  args.preact = p.preact == nullptr
                    ? args.out
                    : tensor_map(p, p.preact, p.m, p.n, p.n, 16, 8 * units, units == 8);
  args.bias = p.bias;
  for (int i = 0; i < kMaxScalars; ++i) {
    args.scalar_pointer[i] = p.scalars.pointer[i];
    args.scalar_value[i] = static_cast<float>(p.scalars.value[i]);
    args.scalar_dtype[i] = p.scalars.dtype[i];
  }
  args.n = static_cast<int32_t>(p.n);
  args.k_blocks = static_cast<int32_t>(ceil_div(p.k, kTileK));
  args.clusters_m = static_cast<int32_t>(ceil_div(p.m, int64_t{c.tile_m} * c.cluster));
  args.tiles_n = static_cast<int32_t>(ceil_div(p.n, c.tile_n));
  args.group = std::max(1, std::min(c.group / c.cluster, args.clusters_m));
  return args;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

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
  if (p.m < 1 || p.n < 1 || p.k < 1) return "empty";
  // Coordinates are 32-bit, and the smallest tile is 64 x 64.
  constexpr int64_t kLimit = INT_MAX - 1024;
  if (p.m > kLimit || p.n > kLimit || p.k > kLimit) return "a dimension of 2^31 or more";
  if (ceil_div(p.m, 64) * ceil_div(p.n, 64) > kLimit) return "too many tiles";
  if (p.n % 8 != 0) return "N is not a multiple of 8";
  if (!aligned(p.x) || !aligned(p.w) || !aligned(p.out) || !aligned(p.preact)) {
    return "a tensor is not 16-byte aligned";
  }
  if (reinterpret_cast<uintptr_t>(p.bias) % 4 != 0) return "the bias is not 4-byte aligned";
  const int64_t w_rows = p.w_is_kn ? p.k : p.n, w_columns = p.w_is_kn ? p.n : p.k;
  if (p.m > 1 && (p.ldx % 8 != 0 || p.ldx < p.k)) return "x's rows are not 16-byte aligned";
  if (w_rows > 1 && (p.ldw % 8 != 0 || p.ldw < w_columns)) {
    return "the weight's rows are not 16-byte aligned";
  }
  return nullptr;
}

void gemm90_launch(const GemmProblem& problem, const Gemm90Config& config, CUkernel kernel,
                   CUstream stream, int num_sms) {
  Gemm90Args args = make_args(problem, config);
  const int bytes = shared_bytes(config.tile_m, config.tile_n, config.stages,
                                 problem.preact != nullptr);
  allow_shared(kernel, bytes);
  const int64_t clusters =
      std::min<int64_t>(int64_t{args.clusters_m} * args.tiles_n, num_sms / config.cluster);
  void* parameters[] = {&args};
  driver().check(driver().launch(reinterpret_cast<CUfunction>(kernel),
                                 static_cast<unsigned>(clusters * config.cluster), 1, 1, kThreads,
                                 1, 1, bytes, stream, parameters, nullptr),
                 "cuLaunchKernel");
}

}  // namespace fusepass
