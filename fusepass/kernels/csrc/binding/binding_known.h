// Kernels by the key of what they are for, found once and kept; of all threads.
#pragma once
#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>

namespace fusepass {

template <typename Map>
struct Known {
  using Key = typename Map::key_type;
  using Kernel = typename Map::mapped_type;

  std::mutex mutex;
  Map known;

  // The kernel for `key`, by `find` if it is not known. Nothing is planned, built or loaded while
  // `stream` is capturing: there is none then, this once.
  template <typename Find>
  Kernel get(const Key& key, cudaStream_t stream, const Find& find) {
    constexpr size_t kMost = 1 << 16;  // shapes may change without end; memory must not
    {
      std::lock_guard<std::mutex> lock(mutex);
      const auto found = known.find(key);
      if (found != known.end()) return found->second;
    }
    cudaStreamCaptureStatus status{};
    C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    if (status != cudaStreamCaptureStatusNone) return {};
    // Not under the lock: Python is waited for, and it may compile.
    const Kernel kernel = find();
    std::lock_guard<std::mutex> lock(mutex);
    if (known.size() >= kMost) known.clear();
    known.emplace(key, kernel);
    return kernel;
  }
};

}  // namespace fusepass
