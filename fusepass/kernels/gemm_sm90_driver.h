// CUDA's driver API as the launch code uses it, reached through the runtime's entry points: nothing
// links against libcuda. Every failure is a std::runtime_error with CUDA's message.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "gemm_sm90_args.h"

namespace fusepass {

template <class F>
F driver_entry_point(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t status = cudaGetDriverEntryPoint(name, &entry, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(std::string("fusepass: this CUDA driver has no ") + name +
                             "; update the driver");
  }
  return reinterpret_cast<F>(entry);
}

#define FUSEPASS_DRIVER(name) \
  static const auto name##_ = ::fusepass::driver_entry_point<decltype(&name)>(#name)

inline void check_result(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return;
  FUSEPASS_DRIVER(cuGetErrorString);
  const char* message = nullptr;
  cuGetErrorString_(result, &message);
  throw std::runtime_error(std::string("fusepass: ") + call + ": " +
                           (message ? message : "unknown error"));
}

// Boxes of a row-major two-dimensional tensor; sizes and box are {columns, rows}, the stride in
// bytes.
inline TensorMap encode_map(CUtensorMapDataType type, const void* base, const cuuint64_t (&sizes)[2],
                            const cuuint64_t (&strides)[1], const cuuint32_t (&box)[2],
                            CUtensorMapSwizzle swizzle) {
  FUSEPASS_DRIVER(cuTensorMapEncodeTiled);
  const cuuint32_t every[2] = {1, 1};
  TensorMap map;
  check_result(cuTensorMapEncodeTiled_(reinterpret_cast<CUtensorMap*>(&map), type, 2,
                                       const_cast<void*>(base), sizes, strides, box, every,
                                       CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeTiled");
  return map;
}

// Launches a kernel of one parameter, a struct at `args`, on a one-dimensional grid.
inline void launch_kernel(CUkernel kernel, int64_t blocks, int threads, int shared_bytes,
                          CUstream stream, void* args) {
  FUSEPASS_DRIVER(cuKernelSetAttribute);
  FUSEPASS_DRIVER(cuLaunchKernel);
  if (shared_bytes > 48 * 1024) {  // must be asked for, once per kernel and device
    static thread_local std::set<std::pair<CUkernel, int>> allowed;
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) throw std::runtime_error("fusepass: no CUDA device");
    if (allowed.insert({kernel, device}).second) {
      check_result(cuKernelSetAttribute_(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                         shared_bytes, kernel, device),
                   "cuKernelSetAttribute");
    }
  }
  void* parameters[] = {args};
  check_result(cuLaunchKernel_(reinterpret_cast<CUfunction>(kernel), static_cast<unsigned>(blocks),
                               1, 1, threads, 1, 1, shared_bytes, stream, parameters, nullptr),
               "cuLaunchKernel");
}

}  // namespace fusepass
