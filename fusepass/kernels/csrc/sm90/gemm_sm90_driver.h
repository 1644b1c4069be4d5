// CUDA's driver API as the launch code uses it, reached through the runtime's entry points: nothing
// links against libcuda. Every failure is a std::runtime_error with CUDA's message.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

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

// Boxes of a row-major two-dimensional tensor.
struct Boxes {
  const void* base;
  uint64_t rows, columns, stride;  // the stride in bytes
  uint32_t box_rows, box_columns;
  CUtensorMapDataType type;
  CUtensorMapSwizzle swizzle;

  bool operator==(const Boxes& o) const {
    return std::tie(base, rows, columns, stride, box_rows, box_columns, type, swizzle) ==
           std::tie(o.base, o.rows, o.columns, o.stride, o.box_rows, o.box_columns, o.type,
                    o.swizzle);
  }
};

inline TensorMap encode_map(const Boxes& boxes) {
  FUSEPASS_DRIVER(cuTensorMapEncodeTiled);
  const cuuint64_t sizes[2] = {boxes.columns, boxes.rows}, strides[1] = {boxes.stride};
  const cuuint32_t box[2] = {boxes.box_columns, boxes.box_rows}, every[2] = {1, 1};
  // Rows that do not start at lines of the cache share them; fetching pairs of lines then doubles the
  // traffic for nothing.
  const bool whole = boxes.stride % 128 == 0;
  TensorMap map;
  check_result(cuTensorMapEncodeTiled_(reinterpret_cast<CUtensorMap*>(&map), boxes.type, 2,
                                       const_cast<void*>(boxes.base), sizes, strides, box, every,
                                       CU_TENSOR_MAP_INTERLEAVE_NONE, boxes.swizzle,
                                       whole ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B
                                             : CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeTiled");
  return map;
}

// The same map as the last time the thread asked, where it still stands in the table: weights stay
// where they are, and the allocator hands out the same memory again. A map is an address and a
// geometry; whose memory it is does not matter.
inline const TensorMap& tensor_map(const Boxes& boxes) {
  constexpr size_t kEntries = 512;  // 100 KB a thread
  static thread_local std::vector<std::pair<Boxes, TensorMap>> table(kEntries);
  const uint64_t mixed = reinterpret_cast<uintptr_t>(boxes.base) / 16 + boxes.box_rows;
  auto& [key, map] = table[(mixed * 0x9E3779B97F4A7C15ull) >> 55];
  static_assert(kEntries == size_t{1} << (64 - 55));
  if (!(key == boxes)) {
    map = encode_map(boxes);
    key = boxes;
  }
  return map;
}

// A kernel as the current device launches it, with so much shared memory if it asks for it.
inline CUfunction kernel_function(CUkernel kernel, int shared_bytes = 0) {
  FUSEPASS_DRIVER(cuKernelGetFunction);
  FUSEPASS_DRIVER(cuFuncSetAttribute);
  CUfunction function = nullptr;
  check_result(cuKernelGetFunction_(&function, kernel), "cuKernelGetFunction");
  if (shared_bytes > 48 * 1024) {
    check_result(cuFuncSetAttribute_(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                     shared_bytes),
                 "cuFuncSetAttribute");
  }
  return function;
}

// Launches a kernel of one parameter, a struct at `args`, on a one-dimensional grid. `early`: its
// blocks may start before the kernel ahead of it has ended; every one of them must wait for that
// kernel's results by itself (griddepcontrol.wait), before it lets the kernels behind start
// (griddepcontrol.launch_dependents).
//
// Why that is safe beside kernels that are not ours, with A ahead of ours and C behind it:
// - Only a C that is launched with this attribute starts early; every other kernel, copy, event and
//   stream waits for our end, as it would for any kernel.
// - The attribute says of C that it may run beside the kernel directly ahead of it until its own
//   wait: a C that until then reads what ours writes, or writes what ours touches, is itself wrong.
//   Its wait covers our end and all that we wrote; and since each block of ours ends after its wait,
//   which covers A's end, C's wait covers all that the stream did before.
// - What A or an older kernel wrote, C may well read before its wait, counting on the kernel directly
//   ahead being the only one that still runs. So it is: C starts when each of our blocks has let it,
//   and each has waited for A by then. If they let it start first, C could run beside A.
// - A may itself be a foreign kernel that lets ours start early: until our wait, which covers its end,
//   we write nothing and only fetch into the L2 cache, which no write passes by. An early A that ends
//   without having waited leaves what is ahead of it uncovered for every kernel behind it, not ours
//   alone.
//
// `cluster`: blocks of a cluster, of a kernel compiled without.
inline void launch_kernel(CUfunction kernel, int64_t blocks, int threads, int shared_bytes,
                          CUstream stream, void* args, bool early = false, int cluster = 1) {
  FUSEPASS_DRIVER(cuLaunchKernelEx);
  CUlaunchAttribute attributes[2]{};
  CUlaunchAttribute* attribute = attributes;
  if (early) {
    attribute->id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute++->value.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attribute->id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute->value.clusterDim.x = static_cast<unsigned>(cluster);
    attribute->value.clusterDim.y = attribute->value.clusterDim.z = 1;
    ++attribute;
  }
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(blocks);
  config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
  config.blockDimX = static_cast<unsigned>(threads);
  config.sharedMemBytes = static_cast<unsigned>(shared_bytes);
  config.hStream = stream;
  config.attrs = attributes;
  config.numAttrs = static_cast<unsigned>(attribute - attributes);
  void* parameters[] = {args};
  check_result(cuLaunchKernelEx_(&config, kernel, parameters, nullptr), "cuLaunchKernelEx");
}

}  // namespace fusepass
