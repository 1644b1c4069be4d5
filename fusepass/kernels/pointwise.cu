// out = epilogue(z), what follows the framework's GEMM. Bandwidth is the limit.
//
// Macros (kernels/pointwise.py writes them): FUSEPASS_WIDTH, how many elements go through the epilogue
// in step; FUSEPASS_BITWISE, 1 if an operand on the device counts as a tensor of z's dtype, as eager's
// operators convert it.
#include <type_traits>

#include "epilogue_math.cuh"
#include "pointwise_args.h"
#include "scalars.cuh"
// fusepass/ir/emit.py writes it, build.py puts it into the build's folder.
#include "generated_epilogue.cuh"

namespace fusepass {

static_assert(Epilogue::kOutputs == 1 && !Epilogue::kReadsZ1 &&
                  Epilogue::kCols + Epilogue::kRows + Epilogue::kMats == 0,
              "z and scalars are all that it reads; one result is all it stores");
static_assert(Epilogue::kNumbers <= kMaxNumbers && Epilogue::kOperands <= kMaxOperands);

constexpr DType kDType = Epilogue::kOutputDType[0];
using T = Epilogue::T;
using Element = std::conditional_t<kDType == DType::kFloat64, double,
                                   std::conditional_t<kDType == DType::kFloat32, float, uint16_t>>;

constexpr int kLanes = 16 / sizeof(Element);
constexpr int kVectors = kPointwiseBytes / 16;
constexpr int kElements = kLanes * kVectors;
constexpr int kStep = FUSEPASS_WIDTH;
static_assert(kElements % kStep == 0);

// Templates, so that only the branch of the dtype is compiled.
template <class E>
__device__ __forceinline__ T loaded(E v) {
  if constexpr (kDType == DType::kBFloat16) {
    return __uint_as_float(uint32_t{v} << 16);
  } else if constexpr (kDType == DType::kFloat16) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
  } else {
    return v;
  }
}

template <class V>
__device__ __forceinline__ V rounded(V v) {
  if constexpr (kDType == DType::kBFloat16) {
    return round_bf16(v);
  } else if constexpr (kDType == DType::kFloat16) {
    return round_f16(v);
  } else {
    return v;
  }
}

template <class V>
__device__ __forceinline__ Element stored(V v) {
  if constexpr (kDType == DType::kBFloat16) {
    return static_cast<uint16_t>(__float_as_uint(round_bf16(v)) >> 16);
  } else if constexpr (kDType == DType::kFloat16) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
  } else {
    return v;
  }
}

__device__ __forceinline__ const PointwiseScalars<float>& scalars_of(const PointwiseArgs& args, float) {
  return args.narrow;
}
__device__ __forceinline__ const PointwiseScalars<double>& scalars_of(const PointwiseArgs& args, double) {
  return args.wide;
}

// Where Epilogue::load finds its scalars.
struct FromArgs {
  const PointwiseArgs& args;

  __device__ T number(int i) const { return scalars_of(args, T()).number[i]; }
  __device__ T operand(int i) const {
    const void* p = args.pointer[i];
    if (p == nullptr) return scalars_of(args, T()).value[i];
    const T v = load_scalar<T>(p, args.dtype[i]);
    return FUSEPASS_BITWISE ? rounded(v) : v;
  }
};

__device__ __forceinline__ void apply(T (&v)[kElements], const T* scalars) {
#pragma unroll
  for (int first = 0; first < kElements; first += kStep) {
    Epilogue::Batch<kStep> b;
#pragma unroll
    for (int i = 0; i < kStep; ++i) b.z[i] = v[first + i];
    Epilogue::begin(b, scalars);
    Epilogue::middle(b, scalars);
    Epilogue::end(b, scalars);
#pragma unroll
    for (int i = 0; i < kStep; ++i) v[first + i] = b.out[0][i];
  }
}

}  // namespace fusepass

extern "C" __global__ void __launch_bounds__(fusepass::kPointwiseThreads)
    fusepass_pointwise(const __grid_constant__ fusepass::PointwiseArgs args) {
  using namespace fusepass;
  const Element* const z = static_cast<const Element*>(args.z);
  Element* const out = static_cast<Element*>(args.out);
  // Last things first: what the GEMM wrote at its end is still in the L2 cache.
  const int64_t first = int64_t{gridDim.x - 1 - blockIdx.x} * (kPointwiseThreads * kElements);
  const bool whole = args.aligned && args.numel - first >= kPointwiseThreads * kElements;
  T scalars[Epilogue::kScalars + 1];
  Epilogue::load(scalars, FromArgs{args});
  T v[kElements];

  if (whole) {
    const uint4* source = reinterpret_cast<const uint4*>(z + first) + threadIdx.x;
    uint4 raw[kVectors];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) raw[j] = source[j * kPointwiseThreads];
#pragma unroll
    for (int i = 0; i < kElements; ++i) v[i] = loaded(reinterpret_cast<const Element*>(raw)[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int64_t index = first + i * kPointwiseThreads + threadIdx.x;
      v[i] = index < args.numel ? loaded(z[index]) : T(0);
    }
  }

  apply(v, scalars);

  if (whole) {
    uint4* target = reinterpret_cast<uint4*>(out + first) + threadIdx.x;
    uint4 raw[kVectors];
#pragma unroll
    for (int i = 0; i < kElements; ++i) reinterpret_cast<Element*>(raw)[i] = stored(v[i]);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) target[j * kPointwiseThreads] = raw[j];
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int64_t index = first + i * kPointwiseThreads + threadIdx.x;
      if (index < args.numel) out[index] = stored(v[i]);
    }
  }
}
