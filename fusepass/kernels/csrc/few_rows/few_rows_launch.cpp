#include "few_rows_launch.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "few_rows_args.h"
#include "sm90/gemm_sm90_driver.h"

namespace fusepass {
namespace few_rows {

constexpr int64_t kMost = int64_t{1} << 30;  // of m, n and k: what is beyond the last is counted, too

constexpr int64_t kMostRows = 64;  // the plan has other kernels for more

// Two turns of every warp's sums, and four barriers. In strips (few_rows_strips.cu): barriers, one turn in
// rows of four columns more, what a cluster's other blocks send, and rows of x, of `k` in whole steps.
int64_t shared_bytes(const FewRowsConfig& c, int weights, int64_t k) {
  const int64_t sums = int64_t{4} * weights * c.batch * c.rows;
  if (c.split == 0) return 2 * c.warps * sums + 32;
  const int64_t step = 32 * c.warps, steps = (k + c.split * step - 1) / (c.split * step);
  const int64_t turn = sums + 16 * weights * c.rows;
  return 32 + c.warps * turn + (c.split - 1) * sums + c.rows * (2 * steps * step + 64);
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Null if a weight's vectors of `unit` elements start at multiples of 16 bytes and are whole.
const char* weight_unsupported(const GemmProblem& p, int which, int64_t unit) {
  const int64_t rows = p.w_is_kn ? p.k : p.n, columns = p.w_is_kn ? p.n : p.k;
  if (!aligned(p.w[which])) return "a weight is not 16-byte aligned";
  if (rows > 1 && (p.ldw[which] % unit != 0 || p.ldw[which] < columns)) {
    return "a weight's rows are not 16-byte aligned";
  }
  return nullptr;
}

}  // namespace few_rows

bool few_rows_parse_config(const char* text, FewRowsConfig* out) {
  return std::sscanf(text, "few rows%d batch%d warps%d depth%d blocks%d split%d", &out->rows,
                     &out->batch, &out->warps, &out->depth, &out->blocks, &out->split) >= 5;
}

const char* few_rows_unsupported(const GemmProblem& p) {
  using few_rows::kMost, few_rows::kMostRows;
  if (p.dtype == DType::kFloat64) return "float64";
  const int64_t unit = p.dtype == DType::kFloat32 ? 4 : 8;
  if (p.m < 1 || p.n < 1 || p.k < 1) return "empty";
  if (p.m > kMostRows) return "more than a few rows";
  if (p.m > kMost || p.n > kMost || p.k > kMost) return "a dimension is too large";
  if (p.x_is_km) return "x is stored [K, M]";
  if (p.k % unit != 0) return "K is no multiple of 16 bytes";
  if (p.w_is_kn && p.n % unit != 0) return "N is no multiple of 16 bytes, and the weight is [K, N]";
  if (!few_rows::aligned(p.x) || (p.m > 1 && (p.ldx % unit != 0 || p.ldx < p.k))) {
    return "x's rows are not 16-byte aligned";
  }
  const char* first = few_rows::weight_unsupported(p, 0, unit);
  if (first != nullptr || p.w[1] == nullptr) return first;
  return few_rows::weight_unsupported(p, 1, unit);
}

CUfunction few_rows_function(CUkernel kernel, const FewRowsConfig& c) {
  constexpr int kMostShared = 227 * 1024;  // strips take what their K needs
  const int most = c.split > 0 ? kMostShared : static_cast<int>(few_rows::shared_bytes(c, 2, 0));
  return kernel_function(kernel, most);
}

void few_rows_launch(const GemmProblem& p, const FewRowsConfig& c, CUfunction kernel,
                     CUstream stream, int num_sms) {
  FewRowsArgs args{};
  args.x = p.x;
  args.ldx = p.ldx;
  for (int i = 0; i < 2; ++i) {
    args.w[i] = p.w[i];
    args.bias[i] = p.bias[i];
    args.ldw[i] = p.ldw[i];
  }
  std::copy_n(p.out, kMaxOutputs, args.out);
  std::copy_n(p.col, kMaxVectors, args.col);
  std::copy_n(p.row, kMaxVectors, args.row);
  std::copy_n(p.mat, kMaxVectors, args.mat);
  args.m = static_cast<int32_t>(p.m);
  args.n = static_cast<int32_t>(p.n);
  args.k = static_cast<int32_t>(p.k);
  args.batches = static_cast<int32_t>((p.n + c.batch - 1) / c.batch);
  for (int i = 0; i < kMaxNumbers; ++i) args.number[i] = static_cast<float>(p.scalars.number[i]);
  for (int i = 0; i < kMaxOperands; ++i) {
    args.operand_value[i] = static_cast<float>(p.scalars.value[i]);
    args.operand_pointer[i] = p.scalars.pointer[i];
    args.operand_dtype[i] = p.scalars.dtype[i];
  }
  const int weights = p.w[1] == nullptr ? 1 : 2;
  // Early: in a chain of such kernels each fetches its first weights under the end of the one ahead.
  const int blocks =
      c.split > 0 ? args.batches * c.split : std::min(args.batches, num_sms * c.blocks);
  const int shared = static_cast<int>(few_rows::shared_bytes(c, weights, p.k));
  launch_kernel(kernel, blocks, 32 * c.warps, shared, stream, &args, true);
}

void few_rows_launch_several(const GemmProblem* problems, int count, const FewRowsConfig& c,
                             CUfunction kernel, CUstream stream) {
  SeveralRowsArgs args{};
  args.x = problems[0].x;
  args.ldx = problems[0].ldx;
  args.m = static_cast<int32_t>(problems[0].m);
  args.k = static_cast<int32_t>(problems[0].k);
  std::fill_n(args.first, kMaxWeights, INT32_MAX);
  int32_t batches = 0;
  for (int i = 0; i < count; ++i) {
    const GemmProblem& p = problems[i];
    args.w[i] = p.w[0];
    args.ldw[i] = p.ldw[0];
    args.bias[i] = p.bias[0];
    args.out[i] = p.out[0].data;
    args.n[i] = static_cast<int32_t>(p.n);
    args.first[i] = batches;
    batches += static_cast<int32_t>((p.n + c.batch - 1) / c.batch);
  }
  const int shared = static_cast<int>(few_rows::shared_bytes(c, 1, problems[0].k));
  launch_kernel(kernel, batches * c.split, 32 * c.warps, shared, stream, &args, true);
}

}  // namespace fusepass
