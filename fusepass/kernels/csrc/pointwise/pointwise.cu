// outputs = epilogue(z, z1), what follows the framework's GEMM and reads nothing but scalars besides:
// elements of z in the order in which they lie. Bandwidth is the limit.
#include "pointwise.cuh"

namespace fusepass {

static_assert(Epilogue::kCols + Epilogue::kRows + Epilogue::kMats == 0, "pointwise_tiles.cu's");

constexpr int kLanes = 16 / sizeof(Element<kDType>);
constexpr int kVectors = kPointwiseBytes / 16;
constexpr int kElements = kLanes * kVectors;
static_assert(kElements % kStep == 0);

// A thread's elements: kVectors times kLanes that lie together, or, one by one, every
// kPointwiseThreads-th.
struct Place {
  int64_t first, numel;
  bool whole;

  __device__ int64_t lanes(int j) const {
    return first + (int64_t{j} * kPointwiseThreads + threadIdx.x) * kLanes;
  }
  __device__ int64_t single(int i) const { return first + int64_t{i} * kPointwiseThreads + threadIdx.x; }
};

__device__ __forceinline__ void load(const void* base, const Place& place, T (&v)[kElements]) {
  if (place.whole) {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      load_together<kDType>(element_at<kDType>(base, place.lanes(j)),
                            reinterpret_cast<T(&)[kLanes]>(v[j * kLanes]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int64_t index = place.single(i);
      v[i] = index < place.numel ? load_at<kDType>(base, index) : T(0);
    }
  }
}

template <DType kType>
__device__ __forceinline__ void store(void* base, const Place& place, const T (&v)[kElements]) {
  if (place.whole) {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      store_together<kType>(element_at<kType>(base, place.lanes(j)),
                            reinterpret_cast<const T(&)[kLanes]>(v[j * kLanes]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int64_t index = place.single(i);
      if (index < place.numel) store_at<kType>(base, index, v[i]);
    }
  }
}

template <class E>
__device__ __forceinline__ void run(const PointwiseArgs& args, const Place& place) {
  T scalars[E::kScalars + 1];
  E::load(scalars, FromArgs{args});
  T z[kElements], z1[kElements], out[E::kOutputs][kElements];
  load(args.z, place, z);
  if constexpr (E::kReadsZ1) load(args.z1, place, z1);
#pragma unroll
  for (int first = 0; first < kElements; first += kStep) {
    typename E::template Batch<kStep> b;
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      b.z[i] = z[first + i];
      if constexpr (E::kReadsZ1) b.z1[i] = z1[first + i];
    }
    E::begin(b, scalars);
    E::middle(b, scalars);
    E::end(b, scalars);
#pragma unroll
    for (int k = 0; k < E::kOutputs; ++k) {
#pragma unroll
      for (int i = 0; i < kStep; ++i) out[k][first + i] = b.out[k][i];
    }
  }
  each<E::kOutputs>([&](auto k) { store<E::kOutputDType[k]>(args.out[k], place, out[k]); });
}

}  // namespace fusepass

extern "C" __global__ void __launch_bounds__(fusepass::kPointwiseThreads)
    fusepass_pointwise(const __grid_constant__ fusepass::PointwiseArgs args) {
  using namespace fusepass;
  // Last things first: what the GEMM wrote at its end is still in the L2 cache.
  const int64_t first = int64_t{gridDim.x - 1 - blockIdx.x} * (kPointwiseThreads * kElements);
  const bool whole = args.aligned && args.numel - first >= kPointwiseThreads * kElements;
  run<Epilogue>(args, {first, args.numel, whole});
}
