// What the launch code of all Hopper GEMMs shares: what TMA takes, the kernels' common argument, the
// persistent grid.
#pragma once
#include <algorithm>
#include <climits>
#include <cstdint>
#include <stdexcept>

#include "common/gemm.h"
#include "gemm_sm90_args.h"
#include "gemm_sm90_driver.h"

namespace fusepass {

constexpr int64_t kMostCoordinates = INT_MAX - 1024;  // they are 32-bit, and a tile may reach beyond

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of the smallest group that has numbers a column of its own, of which the other groups' are
// multiples; 0 where every col is the same for all rows.
inline int64_t rows_of_group(const GemmProblem& p) {
  int64_t rows = 0;
  for (const Operand& o : p.col) {
    if (o.data != nullptr && o.outer_stride != 0 && (rows == 0 || o.inner < rows)) rows = o.inner;
  }
  return rows;
}

// Null if x, w and the outputs suit TMA, else the reason. A row of x and of w starts at 16 bytes,
// `unit` elements; `most` is the largest dimension.
inline const char* tma_unsupported(const GemmProblem& p, int64_t unit, int64_t most) {
  const auto aligned = [](const void* v) { return reinterpret_cast<uintptr_t>(v) % 16 == 0; };
  if (p.m < 1 || p.n < 1 || p.k < 1) return "empty";
  if (p.m > most || p.n > most || p.k > most) return "a dimension is too large";
  // The smallest tile is 64 x 64.
  if (ceil_div(p.m, 64) * ceil_div(p.n, 64) > kMostCoordinates) return "too many tiles";
  if (!aligned(p.x) || !aligned(p.w[0]) || !aligned(p.w[1]) || !aligned(p.out[0].data) ||
      !aligned(p.preact())) {
    return "a tensor is not 16-byte aligned";
  }
  const int64_t x_rows = p.x_is_km ? p.k : p.m, x_columns = p.x_is_km ? p.m : p.k;
  const int64_t w_rows = p.w_is_kn ? p.k : p.n, w_columns = p.w_is_kn ? p.n : p.k;
  if (x_rows > 1 && (p.ldx % unit != 0 || p.ldx < x_columns)) {
    return "x's rows are not 16-byte aligned";
  }
  for (int i = 0; i < (p.w[1] == nullptr ? 1 : 2); ++i) {
    if (w_rows > 1 && (p.ldw[i] % unit != 0 || p.ldw[i] < w_columns)) {
      return "a weight's rows are not 16-byte aligned";
    }
  }
  return nullptr;
}

// Bias, scalars and the walk over the tiles; the tensor maps are the caller's. A cluster's tiles lie
// below one another, or, if `beside`, beside.
inline void fill_args(const GemmProblem& p, int tile_m, int tile_n, int tile_k, int cluster,
                      int group, Gemm90Args* args, bool beside = false) {
  for (int i = 0; i < 2; ++i) args->bias[i] = p.bias[i];
  for (int i = 0; i < kMaxNumbers; ++i) args->number[i] = static_cast<float>(p.scalars.number[i]);
  for (int i = 0; i < kMaxOperands; ++i) {
    args->operand_value[i] = static_cast<float>(p.scalars.value[i]);
    args->operand_pointer[i] = p.scalars.pointer[i];
    args->operand_dtype[i] = p.scalars.dtype[i];
  }
  args->n = static_cast<int32_t>(p.n);
  args->k_blocks = static_cast<int32_t>(ceil_div(p.k, tile_k));
  const int below = beside ? 1 : cluster;
  args->clusters_m = static_cast<int32_t>(ceil_div(p.m, int64_t{tile_m} * below));
  args->tiles_n = static_cast<int32_t>(ceil_div(p.n, int64_t{tile_n} * (cluster / below)));
  args->group = std::max(1, std::min(group / below, args->clusters_m));
}

// `args` is the kernel's whole argument, `gemm` the part of it that fill_args filled. `split` CTAs of
// a cluster finish one tile together, and end; or a tile is `segments` units of work.
inline void launch_gemm(CUfunction kernel, const Gemm90Args& gemm, int cluster, int num_sms,
                        int shared_bytes, CUstream stream, void* args, int consumers = 2,
                        int split = 1, int segments = 1) {
  if (num_sms < cluster * split) {
    throw std::runtime_error("fusepass: clusters of " + std::to_string(cluster * split) +
                             " need as many multiprocessors, the device has " +
                             std::to_string(num_sms));
  }
  const int64_t tiles = int64_t{gemm.clusters_m} * gemm.tiles_n * segments;
  const int64_t most = split > 1 ? tiles : num_sms / cluster;
  // A short kernel gains by starting before the one ahead of it has ended (measured: 2 to 12%); of a
  // long one nothing would be seen but the multiprocessors' slots that its waiting blocks take.
  const bool early = tiles * split <= 3 * int64_t{num_sms / cluster};
  const int threads = 128 * (consumers + 1);  // the producer is a warpgroup, too
  launch_kernel(kernel, std::min(tiles, most) * cluster * split, threads, shared_bytes, stream, args,
                early);
}

}  // namespace fusepass
