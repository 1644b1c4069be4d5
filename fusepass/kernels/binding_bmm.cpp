// torch.ops.fusepass.bmm for CUDA tensors: one kernel for float32 on Hopper where the plan says so, else
// torch's own.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/cuda/EmptyTensor.h>
#include <ATen/ops/bmm.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "binding_gemm.h"
#include "bmm_sm90_launch.h"

namespace fusepass {
namespace {

// Asks Python, once a device and size, for the cubin: "" where torch's own product is as fast or nothing
// can be built.
std::string plan_bmm(const BmmProblem& p, int device, cudaStream_t stream) {
  using Key = std::tuple<int, int64_t, int64_t, int64_t, int64_t>;
  static std::mutex mutex;
  static std::map<Key, std::string> known;
  constexpr size_t kMost = 1 << 14;  // shapes may change without end; memory must not
  const Key key{device, p.batches, p.m, p.n, p.k};
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
  }
  // Nothing is built or loaded while the stream is capturing: torch's product, this once.
  cudaStreamCaptureStatus status{};
  C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  if (status != cudaStreamCaptureStatusNone) return "";
  // Not under the lock: Python is waited for, and it may compile.
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusepass::_plan_bmm", "");
  torch::jit::Stack stack{c10::IValue(p.batches), p.m, p.n, p.k, static_cast<int64_t>(device)};
  op.callBoxed(stack);
  std::string path = stack[0].toStringRef();
  std::lock_guard<std::mutex> lock(mutex);
  if (known.size() >= kMost) known.clear();
  known.emplace(key, path);
  return path;
}

// The kernel `name` of a cubin as `device` launches it; looked up once.
CUfunction bmm_kernel(const std::string& path, const char* name, int device) {
  using Key = std::tuple<std::string, std::string, int>;
  static std::mutex mutex;
  static std::map<Key, CUfunction> loaded;
  std::lock_guard<std::mutex> lock(mutex);
  const auto [at, is_new] = loaded.try_emplace(Key{path, name, device}, nullptr);
  if (is_new) at->second = bmm_function(load_kernel(path, name));
  return at->second;
}

at::Tensor bmm(const at::Tensor& x, const at::Tensor& w) {
  const bool valid = x.dim() == 3 && w.dim() == 3 && x.size(0) == w.size(0) &&
                     x.size(2) == w.size(1) && x.scalar_type() == w.scalar_type() &&
                     x.device() == w.device();
  if (!valid || x.scalar_type() != at::kFloat || tf32_allowed()) return at::bmm(x, w).contiguous();
  const DeviceScope scope(x);
  const int device = static_cast<int>(x.get_device());
  BmmProblem p{};
  p.batches = x.size(0), p.m = x.size(1), p.k = x.size(2), p.n = w.size(2);
  const auto small = [](int64_t stride) { return stride == static_cast<int32_t>(stride); };
  const bool strided = small(x.stride(1)) && small(x.stride(2)) && small(w.stride(1)) &&
                       small(w.stride(2));
  p.x = {x.const_data_ptr<float>(), x.stride(0), static_cast<int32_t>(x.stride(1)),
         static_cast<int32_t>(x.stride(2))};
  p.w = {w.const_data_ptr<float>(), w.stride(0), static_cast<int32_t>(w.stride(2)),
         static_cast<int32_t>(w.stride(1))};
  if (!strided || !bmm_supported(p)) return at::bmm(x, w).contiguous();
  const std::string path = plan_bmm(p, device, scope.stream);
  if (path.empty()) return at::bmm(x, w).contiguous();
  at::Tensor out(at::detail::empty_cuda({p.batches, p.m, p.n}, at::kFloat, x.device(), std::nullopt));
  p.out = out.mutable_data_ptr<float>();
  const CUfunction kernel = bmm_kernel(path, bmm_kernel_name(p), device);
  bmm_launch(p, kernel, scope.stream, num_sms_of(device));
  return out;
}

// Torch's own product where a gradient is wanted, whose gradients torch knows.
at::Tensor bmm_autograd(c10::DispatchKeySet keys, const at::Tensor& x, const at::Tensor& w) {
  const auto wants = [backward = at::GradMode::is_enabled()](const at::Tensor& t) {
    return (backward && t.requires_grad()) || t._fw_grad(0).defined();
  };
  if (wants(x) || wants(w)) return at::bmm(x, w);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fusepass::bmm", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, w);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusepass, CUDA, m) { m.impl("bmm", bmm); }
TORCH_LIBRARY_IMPL(fusepass, AutogradCUDA, m) { m.impl("bmm", bmm_autograd); }

}  // namespace fusepass
