// outputs = epilogue(z, z1, operands), what follows the framework's GEMM where the epilogue has columns,
// rows or matrices to read, or columns to add up: tiles of four warps, a warp's lanes beside one another
// on its rows. Bandwidth is the limit.
#include "pointwise.cuh"

namespace fusepass {

constexpr int kLanes = kPointwiseLane / sizeof(Element<kDType>);
constexpr int kWarps = kPointwiseThreads / 32;
static_assert(kLanes % kStep == 0);

// Rows that a thread loads before it stores the first: bytes on their way hide the memory's latency.
constexpr int kAtOnce = Epilogue::kMats + Epilogue::kReadsZ1 + (Epilogue::kExchanged > 0) <= 3 ? 2 : 1;

__host__ __device__ constexpr int sums_before(int output) {
  int count = 0;
  for (int k = 0; k < output; ++k) count += Epilogue::kIsColumnSum[k];
  return count;
}
constexpr int kSums = sums_before(Epilogue::kOutputs);

// The columns of a thread: kLanes that lie together, or, one by one, every 32nd.
struct Columns {
  int64_t first, n;
  bool together;

  __device__ int64_t operator[](int i) const {
    const int lane = threadIdx.x % 32;
    return first + (together ? lane * kLanes + i : i * 32 + lane);
  }
  // Together they all are, or none: n is a multiple of kLanes.
  __device__ bool has(int i) const { return (*this)[i] < n; }
};

// Where row r of an operand begins, in elements.
__device__ __forceinline__ int64_t row_of(const Operand& o, int64_t r) {
  if (r < o.inner) return r * o.row_stride;
  return r / o.inner * o.outer_stride + r % o.inner * o.row_stride;
}

// Whether each kLanes of its columns lie together, aligned.
template <DType kType>
__device__ __forceinline__ bool in_lanes(const Operand& o) {
  constexpr int kBytes = kTogether<kType, kLanes> < 16 ? kTogether<kType, kLanes> : 16;
  constexpr int kSize = sizeof(Element<kType>);
  const uint64_t places = reinterpret_cast<uintptr_t>(o.data) |
                          static_cast<uint64_t>(o.row_stride) * kSize |
                          static_cast<uint64_t>(o.outer_stride) * kSize;
  return o.column_stride == 1 && places % kBytes == 0;
}

// One row's elements at `columns`; 0 beyond the last.
template <DType kType>
__device__ __forceinline__ void load_row(const void* base, int64_t offset, int64_t stride,
                                         bool in_lanes, const Columns& columns, T (&v)[kLanes]) {
  if (columns.together && in_lanes) {
    if (columns.has(0)) {
      load_together<kType>(element_at<kType>(base, offset + columns[0]), v);
    } else {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) v[i] = T(0);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      v[i] = columns.has(i) ? load_at<kType>(base, offset + columns[i] * stride) : T(0);
    }
  }
}

// The same of an operand of `width` columns, which are repeated.
template <DType kType>
__device__ __forceinline__ void load_repeated(const Operand& o, int64_t r, int64_t width,
                                              const Columns& columns, T (&v)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const int64_t at = row_of(o, r) + columns[i] % width * o.column_stride;
    v[i] = columns.has(i) ? load_at<kType>(o.data, at) : T(0);
  }
}

// A row of z, which begins at `offset`, with the halves of the first kExchanged of each kHead columns
// exchanged, or neighbours, and the first of them negated.
template <int kHead, int kExchanged>
__device__ __forceinline__ void load_rotated(const void* z, int64_t offset, const Columns& columns,
                                             T (&v)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    constexpr int kHalf = kExchanged / 2;
    const int64_t place = columns[i] % (kExchanged == 2 ? 2 : kHead);
    const bool first = place < kHalf;
    const int64_t at = offset + columns[i] + (first ? kHalf : place < kExchanged ? -kHalf : 0);
    const T other = columns.has(i) ? load_at<kDType>(z, at) : T(0);
    v[i] = first ? -other : other;
  }
}

template <DType kType>
__device__ __forceinline__ void store_row(void* base, int64_t offset, const Columns& columns,
                                          const T (&v)[kLanes]) {
  if (columns.together) {
    if (columns.has(0)) store_together<kType>(element_at<kType>(base, offset + columns[0]), v);
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (columns.has(i)) store_at<kType>(base, offset + columns[i], v[i]);
    }
  }
}

// What a thread has of a row.
template <class E>
struct Row {
  // Of z1 and rot a program reads one at most.
  T z[kLanes], z1[kLanes], row[E::kRows + 1], mat[E::kMats + 1][kLanes];

  __device__ __forceinline__ void load(const PointwiseTileArgs& args, const Columns& columns, int64_t r) {
    load_row<kDType>(args.all.z, r * args.n, 1, true, columns, z);
    if constexpr (E::kReadsZ1) load_row<kDType>(args.all.z1, r * args.n, 1, true, columns, z1);
    if constexpr (E::kExchanged > 0) {
      load_rotated<E::kHead, E::kExchanged>(args.all.z, r * args.n, columns, z1);
    }
    if constexpr (E::kRows > 0) {
      each<E::kRows>([&](auto k) {
        row[k] = load_at<E::kRowDType[k]>(args.row[k].data, row_of(args.row[k], r));
      });
    }
    if constexpr (E::kMats > 0) {
      each<E::kMats>([&](auto k) {
        constexpr DType kType = E::kMatDType[k];
        const Operand& o = args.mat[k];
        if constexpr (E::kHead > 0) {
          if (args.mat_columns[k] < args.n) {
            return load_repeated<kType>(o, r, args.mat_columns[k], columns, mat[k]);
          }
        }
        load_row<kType>(o.data, row_of(o, r), o.column_stride, in_lanes<kType>(o), columns, mat[k]);
      });
    }
  }
};

// What a thread has of the cols: those of the group that a row lies in.
template <class E>
struct Cols {
  T v[E::kCols + 1][kLanes];
  int64_t end[E::kCols + 1] = {};  // of the group: the next one's first row

  // Rows come in order.
  __device__ __forceinline__ void reach(const PointwiseTileArgs& args, const Columns& columns, int64_t r) {
    if constexpr (E::kCols > 0) {
      each<E::kCols>([&](auto k) {
        if (r < end[k]) return;
        const Operand& o = args.col[k];
        constexpr DType kType = E::kColDType[k];
        load_row<kType>(o.data, row_of(o, r), o.column_stride, in_lanes<kType>(o), columns, v[k]);
        end[k] = r < o.inner ? o.inner : (r / o.inner + 1) * o.inner;
      });
    }
  }
};

template <class E>
__device__ __forceinline__ void compute(const Row<E>& row, const Columns& columns,
                                        const T (&col)[E::kCols + 1][kLanes], const T* scalars,
                                        T (&out)[E::kOutputs][kLanes]) {
#pragma unroll
  for (int first = 0; first < kLanes; first += kStep) {
    typename E::template Batch<kStep> b;
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      b.z[i] = row.z[first + i];
      if constexpr (E::kReadsZ1) b.z1[i] = row.z1[first + i];
      if constexpr (E::kExchanged > 0) b.rot[i] = row.z1[first + i];
      if constexpr (E::kFirst > 0) b.first[i] = T(columns[first + i] % E::kHead < E::kFirst);
      if constexpr (E::kCols > 0) each<E::kCols>([&](auto k) { b.col[k][i] = col[k][first + i]; });
      if constexpr (E::kRows > 0) each<E::kRows>([&](auto k) { b.row[k][i] = row.row[k]; });
      if constexpr (E::kMats > 0) each<E::kMats>([&](auto k) { b.mat[k][i] = row.mat[k][first + i]; });
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
}

// The block's sums of its rows: its warps', in order, to `partial`.
__device__ __forceinline__ void write_sums(const PointwiseTileArgs& args, const Columns& columns,
                                           int64_t block, int64_t blocks,
                                           const T (&sum)[kSums + 1][kLanes]) {
  __shared__ T of_warp[kWarps][kLanes][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int s = 0; s < kSums; ++s) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) of_warp[warp][i][lane] = sum[s][i];
    __syncthreads();
    T* const to = static_cast<T*>(args.partial) + (s * blocks + block) * args.n;
    for (int i = warp; i < kLanes; i += kWarps) {
      T total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += of_warp[w][i][lane];
      if (columns.has(i)) to[columns[i]] = total;
    }
    __syncthreads();
  }
}

template <class E>
__device__ __forceinline__ void run(const PointwiseTileArgs& args, int64_t block, int64_t blocks,
                                    const Columns& columns) {
  T scalars[E::kScalars + 1], sum[kSums + 1][kLanes] = {};
  Cols<E> cols;
  E::load(scalars, FromArgs{args.all});
  const int64_t first = block * args.rows * kWarps + threadIdx.x / 32;
  for (int at = 0; at < args.rows; at += kAtOnce) {
    Row<E> rows[kAtOnce];
    // Asked for before the rows, as they are needed first.
    if (first + at * kWarps < args.m) cols.reach(args, columns, first + at * kWarps);
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      const int64_t r = first + (at + a) * kWarps;
      if (at + a < args.rows && r < args.m) rows[a].load(args, columns, r);
    }
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      const int64_t r = first + (at + a) * kWarps;
      if (at + a >= args.rows || r >= args.m) break;
      T out[E::kOutputs][kLanes];
      if (a > 0) cols.reach(args, columns, r);
      compute<E>(rows[a], columns, cols.v, scalars, out);
      each<E::kOutputs>([&](auto k) {
        if constexpr (E::kIsColumnSum[k]) {
          constexpr int kSum = sums_before(k);
#pragma unroll
          for (int i = 0; i < kLanes; ++i) sum[kSum][i] += out[k][i];
        } else {
          store_row<E::kOutputDType[k]>(args.all.out[k], r * args.n, columns, out[k]);
        }
      });
    }
  }
  if constexpr (kSums > 0) write_sums(args, columns, block, blocks, sum);
}

}  // namespace fusepass

extern "C" __global__ void __launch_bounds__(fusepass::kPointwiseThreads)
    fusepass_pointwise_tiles(const __grid_constant__ fusepass::PointwiseTileArgs args) {
  using namespace fusepass;
  constexpr int64_t kWide = 32 * kLanes;
  const int64_t across = (args.n + kWide - 1) / kWide, blocks = gridDim.x / across;
  // Last things first: what the GEMM wrote at its end is still in the L2 cache.
  const int64_t index = int64_t{gridDim.x} - 1 - blockIdx.x;
  run<Epilogue>(args, index / across, blocks,
                {index % across * kWide, args.n, args.all.aligned && args.n % kLanes == 0});
}

// Each column's partial sums, in order; a block of columns of one output.
extern "C" __global__ void __launch_bounds__(fusepass::kSumColumns* fusepass::kSumStrips)
    fusepass_column_sums(const __grid_constant__ fusepass::ColumnSumsArgs args) {
  using namespace fusepass;
  __shared__ double strip[kSumStrips][kSumColumns];
  const int64_t across = (args.n + kSumColumns - 1) / kSumColumns;
  const int output = static_cast<int>(blockIdx.x / across);
  const int lane = threadIdx.x % kSumColumns, mine = threadIdx.x / kSumColumns;
  const int64_t column = blockIdx.x % across * kSumColumns + lane;
  const T* const from = static_cast<const T*>(args.partial) + output * args.parts * args.n + column;
  double total = 0;
  if (column < args.n) {
    for (int64_t part = mine; part < args.parts; part += kSumStrips) total += from[part * args.n];
  }
  strip[mine][lane] = total;
  __syncthreads();
  if (mine > 0 || column >= args.n) return;
#pragma unroll
  for (int s = 1; s < kSumStrips; ++s) total += strip[s][lane];
  const T v = static_cast<T>(total);
  switch (static_cast<DType>(args.dtype[output])) {
    case DType::kFloat64: return store_at<DType::kFloat64>(args.out[output], column, v);
    case DType::kFloat32: return store_at<DType::kFloat32>(args.out[output], column, v);
    case DType::kFloat16: return store_at<DType::kFloat16>(args.out[output], column, v);
    case DType::kBFloat16: return store_at<DType::kBFloat16>(args.out[output], column, v);
    default: return store_at<DType::kBool>(args.out[output], column, v);
  }
}
