// What the few-row kernels do with finished sums: bias, epilogue, results, element by element. Operands
// and results are a thousandth of the weight's bytes, so they are read and written where they lie.
#pragma once
#include <cstdint>

#include "common/epilogue_math.cuh"
#include "few_rows_args.h"
#include "common/scalars.cuh"
// fusepass/ir/emit.py writes it, build.py puts it into the build's folder.
#include "generated_epilogue.cuh"

namespace fusepass {

static_assert(Epilogue::kNumbers <= kMaxNumbers && Epilogue::kOperands <= kMaxOperands);
static_assert(Epilogue::kCols <= kMaxVectors && Epilogue::kRows <= kMaxVectors &&
              Epilogue::kMats <= kMaxVectors && Epilogue::kOutputs <= kMaxOutputs);

// Whether z, rounded, is one more result than the program's.
constexpr bool kStorePreact = FUSEPASS_PREACT;
static_assert(Epilogue::kOutputs + kStorePreact <= kMaxOutputs);

constexpr int kWeights = Epilogue::kReadsZ1 ? 2 : 1;

// Where Epilogue::load finds its scalars. Here and below `Args` are FewRowsArgs, or OneOfSeveral, of which an
// empty epilogue asks for no more than it has.
template <class Args>
struct FewRowsScalars {
  const Args& args;
  __device__ explicit FewRowsScalars(const Args& args) : args(args) {}
  __device__ float number(int i) const { return args.number[i]; }
  __device__ float operand(int i) const {
    const void* p = args.operand_pointer[i];
    return p == nullptr ? args.operand_value[i] : load_scalar<float>(p, args.operand_dtype[i]);
  }
};

// An element of any dtype that epilogues read or write, in float; `dtype` is known when compiled.
__device__ __forceinline__ float load_element(const void* data, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::kBool: return static_cast<const uint8_t*>(data)[index] != 0 ? 1.0f : 0.0f;
    case DType::kFloat16:
    case DType::kBFloat16:
      return load_scalar<float>(static_cast<const uint16_t*>(data) + index, static_cast<int>(dtype));
    case DType::kFloat32: return static_cast<const float*>(data)[index];
    default: return static_cast<float>(static_cast<const double*>(data)[index]);
  }
}

__device__ __forceinline__ void store_element(void* data, int64_t index, DType dtype, float v) {
  uint16_t bits;
  switch (dtype) {
    case DType::kBool: static_cast<uint8_t*>(data)[index] = v != 0.0f; break;
    case DType::kFloat16:
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
      static_cast<uint16_t*>(data)[index] = bits;
      break;
    case DType::kBFloat16:
      bits = static_cast<uint16_t>(__float_as_uint(round_bf16(v)) >> 16);
      static_cast<uint16_t*>(data)[index] = bits;
      break;
    case DType::kFloat32: static_cast<float*>(data)[index] = v; break;
    default: static_cast<double*>(data)[index] = v;
  }
}

// A row is of 32 bits, so that it divides by no more than that; and without a branch, so that what is read
// is asked for at once.
__device__ __forceinline__ int64_t place_of(const Operand& o, int row, int column) {
  const uint32_t inner = static_cast<uint32_t>(min(o.inner, int64_t{1} << 30));
  const uint32_t outer = static_cast<uint32_t>(row) / inner, within = row - outer * inner;
  return outer * o.outer_stride + within * o.row_stride + column * o.column_stride;
}

// The elements of a Batch that are in the output, and where.
template <int kWidth>
struct Places {
  int row[kWidth], column[kWidth];
  bool inside[kWidth];
};

template <int i>
struct Index {
  static constexpr int value = i;
};

// do_one(Index<i>) for i = 0 .. kCount - 1: kernels may read a table only at a constant.
template <int kCount, int kFirst = 0, class F>
__device__ __forceinline__ void for_each(const F& do_one) {
  if constexpr (kFirst < kCount) {
    do_one(Index<kFirst>());
    for_each<kCount, kFirst + 1>(do_one);
  }
}

template <int kWidth>
__device__ __forceinline__ void read_operand(float (&to)[kWidth], const Operand& o, DType dtype,
                                             const Places<kWidth>& at) {
  int64_t place[kWidth];
  FUSEPASS_EACH place[i] = place_of(o, at.row[i], at.column[i]);
  FUSEPASS_EACH to[i] = at.inside[i] ? load_element(o.data, place[i], dtype) : 0.0f;
}

// Templates, so that what an epilogue does not have is not compiled.
template <class E, class B, class Args, int kWidth>
__device__ __forceinline__ void read_operands(B& b, const Args& args,
                                              const Places<kWidth>& at) {
  if constexpr (E::kCols > 0) {
    for_each<E::kCols>([&](auto o) {
      constexpr DType kOf = E::kColDType[o.value];
      read_operand(b.col[o.value], args.col[o.value], kOf, at);
    });
  }
  if constexpr (E::kRows > 0) {
    for_each<E::kRows>([&](auto o) {
      constexpr DType kOf = E::kRowDType[o.value];
      read_operand(b.row[o.value], args.row[o.value], kOf, at);
    });
  }
  if constexpr (E::kMats > 0) {
    for_each<E::kMats>([&](auto o) {
      constexpr DType kOf = E::kMatDType[o.value];
      read_operand(b.mat[o.value], args.mat[o.value], kOf, at);
    });
  }
}

template <class Args, int kWidth>
__device__ __forceinline__ void store(const Result& to, DType dtype, const float (&v)[kWidth],
                                      const Args& args, const Places<kWidth>& at) {
  FUSEPASS_EACH if (at.inside[i]) {
    store_element(to.data, int64_t{at.row[i]} * args.n + at.column[i], dtype, v[i]);
  }
}

template <class E, class B, int kWidth>
__device__ __forceinline__ void set_sums(B& b, const float (&sum)[kWeights][kWidth]) {
  FUSEPASS_EACH b.z[i] = sum[0][i];
  if constexpr (E::kReadsZ1) FUSEPASS_EACH b.z1[i] = sum[1][i];
}

// The biases, of dtype `kSite`, of elements of a Batch; zeros where there are none.
template <DType kSite, class Args, int kWidth>
__device__ __forceinline__ void load_biases(float (&to)[kWeights][kWidth], const Args& args,
                                            const Places<kWidth>& at) {
#pragma unroll
  for (int w = 0; w < kWeights; ++w) {
    FUSEPASS_EACH {
      const bool known = args.bias[w] != nullptr && at.inside[i];
      to[w][i] = known ? load_element(args.bias[w], at.column[i], kSite) : 0.0f;
    }
  }
}

// `sum` without the biases; z is of the dtype `kSite`. `b` has the operands.
template <DType kSite, class B, class Args, int kWidth>
__device__ __forceinline__ void finish(float (&sum)[kWeights][kWidth],
                                       const float (&bias)[kWeights][kWidth], B& b,
                                       const Args& args, const Places<kWidth>& at,
                                       const float* scalars) {
#pragma unroll
  for (int w = 0; w < kWeights; ++w) FUSEPASS_EACH sum[w][i] += bias[w][i];
  set_sums<Epilogue>(b, sum);
  Epilogue::begin(b, scalars);
  Epilogue::middle(b, scalars);
  Epilogue::end(b, scalars);
  for_each<Epilogue::kOutputs>([&](auto o) {
    static_assert(!Epilogue::kIsColumnSum[o.value], "no sum over rows is made here");
    constexpr DType kOf = Epilogue::kOutputDType[o.value];
    store(args.out[o.value], kOf, b.out[o.value], args, at);
  });
  if (kStorePreact) store(args.out[Epilogue::kOutputs], kSite, sum[0], args, at);
}

// The same with biases and operands as they lie.
template <DType kSite, int kWidth>
__device__ __forceinline__ void finish(float (&sum)[kWeights][kWidth], const FewRowsArgs& args,
                                       const Places<kWidth>& at, const float* scalars) {
  float bias[kWeights][kWidth];
  load_biases<kSite>(bias, args, at);
  Epilogue::Batch<kWidth> batch;
  read_operands<Epilogue>(batch, args, at);
  finish<kSite>(sum, bias, batch, args, at, scalars);
}

}  // namespace fusepass
