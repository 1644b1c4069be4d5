// One pointwise kernel for every epilogue: it interprets the stages, once for the elements of a
// thread, so that the switch costs about an instruction an element. The common order, mul, clamp,
// GELU, is compiled as such and costs none. Bandwidth is the limit.
#include "hybrid.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <limits>

#include "stages.cuh"

namespace fusepass {
namespace {

constexpr int kThreads = 128;
constexpr int kVectors = 2;  // of 16 bytes, a thread

// How a dtype is stored and rounded to, and what it computes in.
template <typename T>
struct Storage {  // float and double
  using Compute = T;
  __device__ static T load(T v) { return v; }
  __device__ static T store(T v) { return v; }
  __device__ static T round(T v) { return v; }
};

template <>
struct Storage<__half> {
  using Compute = float;
  __device__ static float load(__half v) { return __half2float(v); }
  __device__ static __half store(float v) { return __float2half_rn(v); }
  __device__ static float round(float v) { return load(store(v)); }
};

template <>
struct Storage<__nv_bfloat16> {
  using Compute = float;
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

// mul, clamp and a GELU in this order: a factor of 1 and infinite bounds change nothing, not even
// where stages are rounded, so each stage may be missing. kAny is everything else.
enum Form { kAny, kNoGelu, kErf, kTanh };

// A Program whose numbers are already of the type it computes in. In a form other than kAny the
// scalars are factor, lower and upper bound.
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

// Where only the last result is rounded, and to 16 bits, erf and tanh need not be exact to 24.
template <bool kShort, typename C>
__device__ __forceinline__ C gelu(C v) {
  if constexpr (kShort) return stage_gelu_16bit(v);
  else return stage_gelu(v);
}
template <bool kShort, typename C>
__device__ __forceinline__ C gelu_tanh(C v) {
  if constexpr (kShort) return stage_gelu_tanh_16bit(v);
  else return stage_gelu_tanh(v);
}

template <typename T, bool kRounded, Form kForm, int kCount, typename C>
__device__ __forceinline__ void run_form(const Stages<C>& stages, C (&v)[kCount]) {
  constexpr bool kShort = sizeof(T) == 2 && !kRounded;
  const C factor = scalar<T, kRounded>(stages, 0), lo = scalar<T, kRounded>(stages, 1),
          hi = scalar<T, kRounded>(stages, 2);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    v[i] = rounded<T, kRounded>(stage_mul(v[i], factor));
    v[i] = rounded<T, kRounded>(stage_clamp(v[i], lo, hi));
    if constexpr (kForm == kErf) v[i] = rounded<T, kRounded>(gelu<kShort>(v[i]));
    if constexpr (kForm == kTanh) v[i] = rounded<T, kRounded>(gelu_tanh<kShort>(v[i]));
  }
}

template <typename T, bool kRounded, int kCount, typename C>
__device__ __forceinline__ void run_stages(const Stages<C>& stages, C (&v)[kCount]) {
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
      case kGelu: FUSEPASS_EACH(gelu<kShort>(v[i]))
      case kGeluTanh: FUSEPASS_EACH(gelu_tanh<kShort>(v[i]))
    }
  }
#undef FUSEPASS_EACH
}

template <typename T, bool kRounded, Form kForm, typename C = typename Storage<T>::Compute>
__global__ void __launch_bounds__(kThreads)
    apply_epilogue(const T* z, T* out, int64_t numel, bool aligned, const Stages<C> stages) {
  constexpr int kLanes = 16 / sizeof(T);
  constexpr int kElements = kLanes * kVectors;
  // Last things first: what the GEMM wrote at its end is still in the L2 cache.
  const int64_t first = int64_t{gridDim.x - 1 - blockIdx.x} * (kThreads * kElements);
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

  if constexpr (kForm == kAny) run_stages<T, kRounded>(stages, v);
  else run_form<T, kRounded, kForm>(stages, v);

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

template <typename C>
void copy_scalar(const Scalars& from, int slot, Stages<C>& to, int place) {
  to.value[place] = static_cast<C>(from.value[slot]);
  to.pointer[place] = from.pointer[slot];
  to.dtype[place] = from.dtype[slot];
}

// Fills the scalars of the program's form.
template <typename C>
Form form_of(const Program& program, Stages<C>& stages) {
  stages.value[0] = C(1);
  stages.value[2] = std::numeric_limits<C>::infinity();
  stages.value[1] = -stages.value[2];
  for (int s = 0, slot = 0, free = 0; s < program.count; ++s) {
    const int32_t code = program.code[s];
    if (code == kGelu || code == kGeluTanh) {
      return s < program.count - 1 ? kAny : code == kGelu ? kErf : kTanh;
    }
    const int place = code == kMul ? 0 : 1;
    if ((code != kMul && code != kClamp) || place < free) return kAny;
    free = place + stage_arity(code);
    for (int i = place; i < free; ++i) copy_scalar(program.scalars, slot++, stages, i);
  }
  return kNoGelu;
}

template <typename T, bool kRounded = false>
cudaError_t launch(const void* z, void* out, int64_t numel, const Program& program,
                   cudaStream_t stream) {
  Stages<typename Storage<T>::Compute> stages{};
  const Form form = form_of(program, stages);
  if (form == kAny) {
    stages.count = program.count;
    for (int s = 0; s < kMaxStages; ++s) stages.code[s] = program.code[s];
    for (int i = 0; i < kMaxScalars; ++i) copy_scalar(program.scalars, i, stages, i);
  }
  constexpr int64_t kBlock = kThreads * (16 / sizeof(T)) * kVectors;
  const T* source = static_cast<const T*>(z);
  T* target = static_cast<T*>(out);
  bool aligned = ((reinterpret_cast<uintptr_t>(z) | reinterpret_cast<uintptr_t>(out)) & 15) == 0;
  void* arguments[] = {&source, &target, &numel, &aligned, &stages};
  const dim3 grid(static_cast<unsigned>((numel + kBlock - 1) / kBlock));
  using Kernel = void (*)(const T*, T*, int64_t, bool, Stages<typename Storage<T>::Compute>);
  constexpr Kernel kKernels[] = {apply_epilogue<T, kRounded, kAny>,
                                 apply_epilogue<T, kRounded, kNoGelu>,
                                 apply_epilogue<T, kRounded, kErf>,
                                 apply_epilogue<T, kRounded, kTanh>};
  const void* kernel = reinterpret_cast<const void*>(kKernels[form]);
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
