// From a problem to a loaded GEMM kernel: Python plans and builds (once a shape), this keeps.
#pragma once
#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "binding_epilogue.h"
#include "binding_known.h"
#include "few_rows/few_rows_launch.h"
#include "sm90/gemm_sm90_driver.h"
#include "sm90_f32/gemm_sm90_f32_launch.h"
#include "sm90/gemm_sm90_launch.h"
#include "sm90/gemm_sm90_problem.h"
#include "sm90/gemm_sm90_tf32_launch.h"

namespace fusepass {

struct GemmKernel {
  Gemm90Config config{};
  Split90Kernels split{};       // of float32, instead of `config` and `kernel`
  FewRowsConfig few{};          // of few rows, instead of `config`
  CUfunction kernel = nullptr;
  CUfunction sums = nullptr;    // of column sums, behind the 16-bit kernel
  bool fused = false;           // false: this problem is the hybrid's
  int num_sms = 0;
};

// The device of a tensor, made current, and its current stream.
struct DeviceScope {
  c10::cuda::CUDAGuard guard;
  cudaStream_t stream;

  explicit DeviceScope(const at::Tensor& t) : guard(t.device()) {
    // Kernels are launched through the driver, which wants a context in this thread; its first call
    // of the runtime brings it.
    static thread_local const cudaError_t bound = cudaSetDevice(t.get_device());
    C10_CUDA_CHECK(bound);
    stream = c10::cuda::getCurrentCUDAStream(t.get_device()).stream();
  }
};

// A library belongs to no context: one load serves every device. The driver may put the work off until
// the kernel is asked for, or its function; so the function is, here, where what fails can be named.
inline CUkernel load_kernel(const std::string& path, const std::string& name) {
  FUSEPASS_DRIVER(cuLibraryLoadData);
  FUSEPASS_DRIVER(cuLibraryGetKernel);
  FUSEPASS_DRIVER(cuKernelGetFunction);
  const std::string what = "loading the kernel " + name + " of " + path;
  static std::mutex mutex;
  static std::map<std::string, CUlibrary> loaded;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = loaded.find(path);
  if (found == loaded.end()) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> image{std::istreambuf_iterator<char>(file), {}};
    if (image.empty()) throw std::runtime_error("fusepass: cannot read the kernel " + path);
    CUlibrary library = nullptr;
    check_result(
        cuLibraryLoadData_(&library, image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        what.c_str());
    found = loaded.emplace(path, library).first;
  }
  CUkernel kernel = nullptr;
  CUfunction function = nullptr;
  check_result(cuLibraryGetKernel_(&kernel, found->second, name.c_str()), what.c_str());
  check_result(cuKernelGetFunction_(&function, kernel), what.c_str());
  return kernel;
}

// Whether `load` gets through. A driver that is older than the compiler may refuse what was built: the
// model then runs without, and the user is told once.
template <class Load>
bool loads(const char* instead, const Load& load) {
  try {
    load();
    return true;
  } catch (const std::runtime_error& error) {
    TORCH_WARN_ONCE("fusepass: ", instead, ", which is slower: ", error.what());
    return false;
  }
}

inline int num_sms_of(int device) {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// torch's setting as it stands now, under all its names: set_float32_matmul_precision, allow_tf32,
// fp32_precision. It is what cuBLAS's own call reads.
inline bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

// What a plan is made for: gemm.h's DType, or kPlanTf32 for float32 that may be rounded to TF32. Read
// once a call and passed on: another thread may change the setting in between.
constexpr int32_t kPlanTf32 = 4;
inline int32_t plan_dtype(const GemmProblem& p) {
  return p.dtype == DType::kFloat32 && tf32_allowed() ? kPlanTf32 : static_cast<int32_t>(p.dtype);
}

// Asks Python for the kernels that split a matrix; false if this machine cannot build or load them.
inline bool find_split_kernels(int device, Split90Kernels* found) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_split_kernels", "");
  torch::jit::Stack stack{c10::IValue(static_cast<int64_t>(device))};
  op.callBoxed(stack);
  const std::string& path = stack[0].toStringRef();
  if (path.empty()) return false;
  const auto load = [&](const char* name) { return kernel_function(load_kernel(path, name)); };
  return loads("float32's products are torch's own", [&] {
    found->shorter_rows = load("fusepass_split_shorter");
    found->short_rows = load("fusepass_split_short");
    found->long_rows = load("fusepass_split_long");
    found->longer_rows = load("fusepass_split_longer");
    found->columns = load("fusepass_split_columns");
    found->few_columns = load("fusepass_split_few_columns");
    found->join_parts = load("fusepass_join_parts");
    found->add_strips = load("fusepass_add_strips");
  });
}

// The same, into those members of `found` that are these kernels. Python, which hashes sources to
// answer, is asked once a device: fusepass::split comes here in every call.
inline bool load_split_kernels(int device, Split90Kernels* found) {
  static std::mutex mutex;
  static std::unordered_map<int, Split90Kernels> known;
  Split90Kernels kernels{};
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto at = known.find(device);
    if (at != known.end()) kernels = at->second;
  }
  if (kernels.short_rows == nullptr) {
    // Not under the lock: Python is waited for, and it may compile.
    if (!find_split_kernels(device, &kernels)) return false;
    std::lock_guard<std::mutex> lock(mutex);
    known.emplace(device, kernels);
  }
  found->shorter_rows = kernels.shorter_rows;
  found->short_rows = kernels.short_rows;
  found->long_rows = kernels.long_rows;
  found->longer_rows = kernels.longer_rows;
  found->columns = kernels.columns;
  found->few_columns = kernels.few_columns;
  found->join_parts = kernels.join_parts;
  found->add_strips = kernels.add_strips;
  return true;
}

// The kernel `name` of the cubin at `path`, and those beside it that `config` needs.
inline GemmKernel load_gemm(const std::string& config, const std::string& path,
                            const std::string& name, int device) {
  GemmKernel found;
  const CUkernel gemm = load_kernel(path, name);
  if (split90_parse_config(config.c_str(), &found.split)) {
    found.split.gemm = split90_function(gemm, found.split);
    if (found.split.segments > 1) {
      found.split.sum = split90_sum_function(load_kernel(path, "fusepass_sum"), found.split);
    }
    if (!load_split_kernels(device, &found.split)) return {};
  } else if (few_rows_parse_config(config.c_str(), &found.few)) {
    found.kernel = few_rows_function(gemm, found.few);
  } else if (tf32_parse_config(config.c_str(), &found.config)) {
    found.kernel = tf32_function(gemm, found.config);
  } else {
    const bool known = gemm90_parse_config(config.c_str(), &found.config);
    TORCH_CHECK(known, "fusepass: not a configuration: ", config);
    found.kernel = gemm90_function(gemm);
    found.sums = kernel_function(load_kernel(path, "fusepass_column_sums"));
  }
  found.fused = true;
  found.num_sms = num_sms_of(device);
  return found;
}

// Of a plan's answer, "hybrid" or "<config>|<path of the cubin>|<name of the kernel>". `instead` is
// what happens where that does not load.
inline GemmKernel kernel_of(const std::string& answer, int device, const char* instead) {
  if (answer == "hybrid") return {};
  const size_t first = answer.find('|'), last = answer.rfind('|');
  TORCH_CHECK(first != last, "fusepass: not a plan: ", answer);
  const std::string path = answer.substr(first + 1, last - first - 1);
  GemmKernel found;
  loads(instead, [&] {
    found = load_gemm(answer.substr(0, first), path, answer.substr(last + 1), device);
  });
  return found;
}

// Whether it is a product alone, to which a bias is added.
inline bool is_biased(const EpilogueInfo& info, const GemmProblem& p) {
  return p.bias[0] && info.planned.empty();
}

// Asks Python.
inline GemmKernel plan_kernel(const EpilogueInfo& info, const GemmProblem& p, int32_t dtype,
                              int device) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_plan", "");
  torch::jit::Stack stack{c10::IValue(info.planned), static_cast<int64_t>(dtype), p.m, p.n, p.k,
                          p.w_is_kn, info.with_preact, p.x_is_km, rows_of_group(p),
                          is_biased(info, p), static_cast<int64_t>(device)};
  op.callBoxed(stack);
  return kernel_of(stack[0].toStringRef(), device, "GEMM and epilogue run as two kernels");
}

struct PlanKey {
  const void* epilogue;  // EpilogueInfo, which lives as long as the process
  int64_t m, n, k;
  int64_t group;  // rows_of_group
  int32_t dtype, device;
  bool w_is_kn, x_is_km, biased;

  auto fields() const {
    return std::tie(epilogue, m, n, k, group, dtype, device, w_is_kn, x_is_km, biased);
  }
  bool operator==(const PlanKey& other) const { return fields() == other.fields(); }
};

struct PlanKeyHash {
  size_t operator()(const PlanKey& key) const {
    size_t hash = reinterpret_cast<size_t>(key.epilogue);
    const auto mix = [&hash](int64_t v) {
      hash = (hash ^ static_cast<size_t>(v)) * 0x9E3779B97F4A7C15ull;
      hash ^= hash >> 29;
    };
    mix(key.m), mix(key.n), mix(key.k), mix(key.group);
    mix(key.dtype * 16384 + key.device * 8 + key.biased * 4 + key.x_is_km * 2 + key.w_is_kn);
    return hash;
  }
};

// The plans made so far.
using Plans = Known<std::unordered_map<PlanKey, GemmKernel, PlanKeyHash>>;

inline Plans& plans() {
  static Plans instance;
  return instance;
}

// Every problem is planned anew when it is next met: better plans are known (max_autotune).
inline void forget_plans() {
  std::lock_guard<std::mutex> lock(plans().mutex);
  plans().known.clear();
}

// The kernel for a problem. One not met before is the hybrid's while `stream` is capturing.
inline GemmKernel find_kernel(const EpilogueInfo& info, const GemmProblem& p, int32_t dtype,
                              int device, cudaStream_t stream) {
  const PlanKey key{&info, p.m,    p.n,       p.k,       rows_of_group(p),
                    dtype, device, p.w_is_kn, p.x_is_km, is_biased(info, p)};
  return plans().get(key, stream, [&] { return plan_kernel(info, p, dtype, device); });
}

}  // namespace fusepass
