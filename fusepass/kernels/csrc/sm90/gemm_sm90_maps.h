// A problem as the 16-bit Hopper kernel is told of it: its geometry, its tensor maps, its vectors.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>

#include "gemm_sm90_geometry.h"
#include "gemm_sm90_launch.h"
#include "gemm_sm90_problem.h"

namespace fusepass {
namespace gemm90 {

inline int size_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kBool ? 1 : 2;
}

inline CUtensorMapDataType map_type(DType dtype) {
  if (dtype == DType::kFloat32) return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  if (dtype == DType::kBool) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

// Boxes of a [rows, columns] tensor, rows `stride` elements apart.
inline const TensorMap& map(DType dtype, const void* base, int64_t rows, int64_t columns, int64_t stride,
                            int box_rows, int box_columns, bool swizzle = true) {
  // The stride of a single row is never used but must be valid.
  const int64_t step = rows > 1 ? stride : ceil_div(columns, 16) * 16;
  return tensor_map({base, uint64_t(rows), uint64_t(columns), uint64_t(step) * size_of(dtype),
                     uint32_t(box_rows), uint32_t(box_columns), map_type(dtype),
                     !swizzle                  ? CU_TENSOR_MAP_SWIZZLE_NONE
                     : dtype == DType::kBool ? CU_TENSOR_MAP_SWIZZLE_64B
                                             : CU_TENSOR_MAP_SWIZZLE_128B});
}

inline int count(const Operand* operands, int most) {
  return static_cast<int>(std::count_if(operands, operands + most,
                                        [](const Operand& o) { return o.data != nullptr; }));
}

// Bytes of an element of each.
inline int bytes_of(const Operand* operands, int number) {
  return std::accumulate(operands, operands + number, 0, [](int sum, const Operand& o) {
    return sum + size_of(o.dtype);
  });
}

// The outputs that are stored, in order.
struct Stores {
  Result out[kMaxOutputs];
  int number = 0;
};
inline Stores stores_of(const GemmProblem& p) {
  Stores stores;
  for (const Result& out : p.out) {
    if (out.data != nullptr && !out.column_sum) stores.out[stores.number++] = out;
  }
  return stores;
}

inline int slot_bytes(const GemmProblem& p, int mats, const Stores& stores) {
  int read[kMaxVectors], written[kMaxOutputs];
  for (int i = 0; i < mats; ++i) read[i] = size_of(p.mat[i].dtype);
  for (int i = 0; i < stores.number; ++i) written[i] = size_of(stores.out[i].dtype);
  return bytes_of_slot(read, mats, written, stores.number);
}

inline Geometry geometry_of(const Gemm90Config& c, const GemmProblem& p, const Stores& stores) {
  Geometry g{};
  g.tile_m = c.tile_m, g.tile_n = c.tile_n, g.stages = c.stages, g.split = c.split;
  g.consumers = c.consumers ? c.consumers : consumers_of(c.tile_m, c.pingpong);
  g.pingpong = c.pingpong, g.swapped = c.swapped, g.gated = p.w[1] != nullptr;
  g.stores = stores.number, g.mats = count(p.mat, kMaxVectors);
  g.slot_bytes = slot_bytes(p, g.mats, stores);
  g.col_bytes = bytes_of(p.col, count(p.col, kMaxVectors));
  g.row_bytes = bytes_of(p.row, count(p.row, kMaxVectors));
  g.bytes = std::any_of(p.mat, p.mat + g.mats,
                        [](const Operand& o) { return o.dtype == DType::kBool; });
  return g;
}

// Rows after which those of a mat of some columns begin anew: where it is the same for each group.
inline int64_t mat_rows(const GemmProblem& p, int i) {
  const Operand& o = p.mat[i];
  return p.mat_columns[i] < p.n && o.inner < p.m && o.outer_stride == 0 ? o.inner : p.m;
}

// What a col or row operand is to the kernel, of a problem of `m` rows.
inline Vector90 vector_of(const Operand& o, bool is_row, int64_t m) {
  Vector90 v{};
  v.data = o.data;
  v.stride = is_row ? o.row_stride : o.column_stride;
  v.outer_stride = o.outer_stride;
  v.inner = static_cast<int32_t>(std::min(o.inner, m));
  const bool whole = is_row ? v.inner == m : v.outer_stride * size_of(o.dtype) % 4 == 0;
  v.packed = v.stride == 1 && whole && reinterpret_cast<uintptr_t>(o.data) % 4 == 0;
  return v;
}

// The map of [rows, n] that the kernel reads or writes in the chunks of gemm_sm90_stream.cuh.
inline const TensorMap& chunk_map(const Geometry& g, DType dtype, const void* base, int64_t rows,
                                  int64_t n, int64_t stride) {
  const int units = chunk_units(g), line = dtype == DType::kBool ? 64 : 128;
  const bool swizzle = g.swapped || units == 8;  // lines are of 128 bytes
  const int columns = swizzle ? line / size_of(dtype) : 8 * units;
  return map(dtype, base, rows, n, stride, g.swapped ? 8 * units : 16, columns, swizzle);
}

// What the epilogue's program reads and writes.
inline void fill_program(const GemmProblem& p, const Geometry& g, const Stores& stores, void* partial,
                         Gemm16Args* args) {
  for (int i = 0; i < stores.number; ++i) {
    args->out[i] = chunk_map(g, stores.out[i].dtype, stores.out[i].data, p.m, p.n, p.n);
  }
  for (int i = 0; i < g.mats; ++i) {
    const int64_t columns = p.mat_columns[i], rows = mat_rows(p, i);
    args->mat[i] =
        chunk_map(g, p.mat[i].dtype, p.mat[i].data, rows, columns, p.mat[i].row_stride);
    args->mat_rows[i] = static_cast<int32_t>(rows);
    args->mat_columns[i] = static_cast<int32_t>(columns);
  }
  for (int i = 0; i < count(p.col, kMaxVectors); ++i) args->col[i] = vector_of(p.col[i], false, p.m);
  for (int i = 0; i < count(p.row, kMaxVectors); ++i) args->row[i] = vector_of(p.row[i], true, p.m);
  args->partial = static_cast<float*>(partial);
  args->m = static_cast<int32_t>(p.m);
}

// The map of an operand of `rows` rows, [rows, k] or, if `transposed`, [k, rows], in the boxes of
// gemm_sm90_producer.cuh: a tile's rows, or 64 of them; of each, 1/share.
inline const TensorMap& operand_map(const GemmProblem& p, const void* base, int64_t rows, int64_t stride,
                                    bool transposed, int tile, int share) {
  return transposed ? map(p.dtype, base, p.k, rows, stride, kTileK / share, 64)
                    : map(p.dtype, base, rows, p.k, stride, tile / share, kTileK);
}

// The transposed problem, of which x @ w^T is the transpose of p's; a second weight stays where it is.
inline GemmProblem transposed(GemmProblem p) {
  std::swap(p.x, p.w[0]);
  std::swap(p.m, p.n);
  std::swap(p.ldx, p.ldw[0]);
  std::swap(p.x_is_km, p.w_is_kn);
  return p;
}

}  // namespace gemm90
}  // namespace fusepass
