// One pointwise kernel for every epilogue: it interprets the stages, once for 8 to 16 elements a
// thread, so that the switch costs less than an instruction an element. Bandwidth is the limit.
#include "hybrid.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "stages.cuh"

namespace fusepass {
namespace {

constexpr int kThreads = 256;

// How a dtype is stored and rounded to, what it computes in, how many 16-byte vectors a thread holds.
template <typename T>
struct Storage {  // float and double
  using Compute = T;
  static constexpr int kVectors = 4;
  __device__ static T load(T v) { return v; }
  __device__ static T store(T v) { return v; }
  __device__ static T round(T v) { return v; }
};

template <>
struct Storage<__half> {
  using Compute = float;
  static constexpr int kVectors = 2;
  __device__ static float load(__half v) { return __half2float(v); }
  __device__ static __half store(float v) { return __float2half_rn(v); }
  __device__ static float round(float v) { return load(store(v)); }
};

template <>
struct Storage<__nv_bfloat16> {
  using Compute = float;
  static constexpr int kVectors = 2;
  __device__ static float load(__nv_bfloat16 v) { return __bfloat162float(v); }
  __device__ static __nv_bfloat16 store(float v) { return __float2bfloat16_rn(v); }
  __device__ static float round(float v) {
#if __CUDA_ARCH__ >= 800
    // The pair (v, 0): a bfloat16 above 16 zero bits is a float32. One instruction at full rate;
    // the conversion of a single number runs at a quarter of it.
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(v), "f"(0.0f));
    return __uint_as_float(bits);
#else
    return load(store(v));
#endif
  }
};

// A Program whose numbers are already of the type it computes in.
template <typename C>
struct Stages {
  int32_t count;
  int32_t code[kMaxStages];
  C value[kMaxScalars];
  const void* pointer[kMaxScalars];
  int32_t dtype[kMaxScalars];
};

template <typename T, bool kRounded>
__device__ __forceinline__ typename Storage<T>::Compute rounded(typename Storage<T>::Compute v) {
  return kRounded ? Storage<T>::round(v) : v;
}

template <typename C>
__device__ C read_operand(const void* pointer, int32_t dtype) {
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32: return static_cast<C>(*static_cast<const float*>(pointer));
    case DType::kFloat16: return static_cast<C>(__half2float(*static_cast<const __half*>(pointer)));
    case DType::kBFloat16:
      return static_cast<C>(__bfloat162float(*static_cast<const __nv_bfloat16*>(pointer)));
    case DType::kFloat64: return static_cast<C>(*static_cast<const double*>(pointer));
  }
  return C(0);
}

// A number of the host is used as it is; an operand on the device counts as a tensor of T where
// stages are rounded, for eager converts it so.
template <typename T, bool kRounded, typename C>
__device__ __forceinline__ C scalar(const Stages<C>& stages, int slot) {
  const void* pointer = stages.pointer[slot];
  if (pointer == nullptr) return stages.value[slot];
  return rounded<T, kRounded>(read_operand<C>(pointer, stages.dtype[slot]));
}

template <typename T, bool kRounded, int kCount, typename C>
__device__ __forceinline__ void run_stages(const Stages<C>& stages, C (&v)[kCount]) {
  // Where only the last result is rounded, and to 16 bits, erf and tanh need not be exact to 24.
  constexpr bool kShort = sizeof(T) == 2 && !kRounded;
#define FUSEPASS_EACH(expression)                                                               \
  {                                                                                             \
    _Pragma("unroll") for (int i = 0; i < kCount; ++i) v[i] = rounded<T, kRounded>(expression); \
    break;                                                                                      \
  }
  int slot = 0;
#pragma unroll 1
  for (int s = 0; s < stages.count; ++s) {
    const int32_t code = stages.code[s];
    const int arity = stage_arity(code);
    const C a = arity > 0 ? scalar<T, kRounded>(stages, slot) : C(0);
    const C b = arity > 1 ? scalar<T, kRounded>(stages, slot + 1) : C(0);
    slot += arity;
    switch (code) {
      case kMul: FUSEPASS_EACH(stage_mul(v[i], a))
      case kDiv: FUSEPASS_EACH(stage_div(v[i], a))
      case kClamp: FUSEPASS_EACH(stage_clamp(v[i], a, b))
      case kGelu:
        if constexpr (kShort) FUSEPASS_EACH(stage_gelu_16bit(v[i]))
        else FUSEPASS_EACH(stage_gelu(v[i]))
      case kGeluTanh:
        if constexpr (kShort) FUSEPASS_EACH(stage_gelu_tanh_16bit(v[i]))
        else FUSEPASS_EACH(stage_gelu_tanh(v[i]))
    }
  }
#undef FUSEPASS_EACH
}

template <typename T, bool kRounded, typename C = typename Storage<T>::Compute>
__global__ void __launch_bounds__(kThreads)
    apply_epilogue(const T* z, T* out, int64_t numel, bool aligned, const Stages<C> stages) {
  constexpr int kLanes = 16 / sizeof(T);
  constexpr int kVectors = Storage<T>::kVectors;
  constexpr int kElements = kLanes * kVectors;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kElements);
  const bool whole = aligned && numel - first >= kThreads * kElements;
  C v[kElements];

  if (whole) {
    const uint4* source = reinterpret_cast<const uint4*>(z + first) + threadIdx.x;
    uint4 raw[kVectors];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) raw[j] = source[j * kThreads];
#pragma unroll
    for (int i = 0; i < kElements; ++i) v[i] = Storage<T>::load(reinterpret_cast<T*>(raw)[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int64_t index = first + i * kThreads + threadIdx.x;
      v[i] = index < numel ? Storage<T>::load(z[index]) : C(0);
    }
  }

  run_stages<T, kRounded>(stages, v);

  if (whole) {
    uint4* target = reinterpret_cast<uint4*>(out + first) + threadIdx.x;
    uint4 raw[kVectors];
#pragma unroll
    for (int i = 0; i < kElements; ++i) reinterpret_cast<T*>(raw)[i] = Storage<T>::store(v[i]);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) target[j * kThreads] = raw[j];
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int64_t index = first + i * kThreads + threadIdx.x;
      if (index < numel) out[index] = Storage<T>::store(v[i]);
    }
  }
}

template <typename T, bool kRounded = false>
cudaError_t launch(const void* z, void* out, int64_t numel, const Program& program,
                   cudaStream_t stream) {
  using C = typename Storage<T>::Compute;
  Stages<C> stages;
  stages.count = program.count;
  for (int s = 0; s < kMaxStages; ++s) stages.code[s] = program.code[s];
  for (int i = 0; i < kMaxScalars; ++i) {
    stages.value[i] = static_cast<C>(program.scalars.value[i]);
    stages.pointer[i] = program.scalars.pointer[i];
    stages.dtype[i] = program.scalars.dtype[i];
  }
  constexpr int64_t kBlock = kThreads * (16 / sizeof(T)) * Storage<T>::kVectors;
  const T* source = static_cast<const T*>(z);
  T* target = static_cast<T*>(out);
  bool aligned = ((reinterpret_cast<uintptr_t>(z) | reinterpret_cast<uintptr_t>(out)) & 15) == 0;
  void* arguments[] = {&source, &target, &numel, &aligned, &stages};
  const dim3 grid(static_cast<unsigned>((numel + kBlock - 1) / kBlock));
  const void* kernel = reinterpret_cast<const void*>(&apply_epilogue<T, kRounded>);
  return cudaLaunchKernel(kernel, grid, dim3(kThreads), arguments, 0, stream);
}

}  // namespace

cudaError_t hybrid_launch(const void* z, void* out, int64_t numel, DType dtype, bool rounded,
                          const Program& program, cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  const auto run = [&](auto launch) { return launch(z, out, numel, program, stream); };
  switch (dtype) {  // rounding to a type that is computed in changes nothing
    case DType::kFloat32: return run(launch<float>);
    case DType::kFloat64: return run(launch<double>);
    case DType::kFloat16: return run(rounded ? launch<__half, true> : launch<__half>);
    case DType::kBFloat16: return run(rounded ? launch<__nv_bfloat16, true> : launch<__nv_bfloat16>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fusepass
