#include "bmm_sm90_launch.h"

#include <algorithm>
#include <climits>

#include "gemm_sm90_driver.h"

namespace fusepass {
namespace bmm90 {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether every fourth K of a row is 16-byte aligned, and contiguous.
bool has_quads(const BatchedOperand& o, int64_t batches, int64_t rows, int64_t k) {
  return o.k_stride == 1 && k % 4 == 0 && reinterpret_cast<uintptr_t>(o.data) % 16 == 0 &&
         (rows == 1 || o.row_stride % 4 == 0) && (batches == 1 || o.batch_stride % 4 == 0);
}

// Tiles beside one another that a CTA computes from rows of x that it has: all, or fewer where the
// device would be left without work.
int64_t strip(const BmmProblem& p, int num_sms) {
  const int64_t tiles_n = ceil_div(p.n, kBmmTileN);
  const int64_t above = p.batches * ceil_div(p.m, kBmmTileM), wanted = 4 * num_sms;
  int64_t strip = tiles_n;
  while (strip > 1 && above * ceil_div(tiles_n, strip) < wanted) strip = (strip + 1) / 2;
  return strip;
}

// Whether an element's place in its matrix is a 32-bit number, also a little beyond the last.
bool is_small(const BatchedOperand& o, int64_t rows, int64_t k) {
  const int64_t last = rows * o.row_stride + (k + 2 * kBmmTileK) * o.k_stride;
  return o.row_stride >= 0 && o.k_stride >= 0 && last < INT_MAX;
}

}  // namespace bmm90

CUfunction bmm_function(CUkernel kernel) { return kernel_function(kernel, kBmmSharedBytes); }

const char* bmm_kernel_name(const BmmProblem& p) {
  const bool x = bmm90::has_quads(p.x, p.batches, p.m, p.k);
  const bool w = bmm90::has_quads(p.w, p.batches, p.n, p.k);
  if (x) return w ? "fusepass_bmm_quads_quads" : "fusepass_bmm_quads_any";
  return w ? "fusepass_bmm_any_quads" : "fusepass_bmm_any_any";
}

bool bmm_supported(const BmmProblem& p) {
  constexpr int64_t kMost = INT_MAX - 1024;  // a tile may reach beyond
  constexpr int64_t kMostK = 1 << 16;  // sums of products of two numbers below 2^55 are finite
  if (std::min({p.batches, p.m, p.n, p.k}) < 1 || std::max(p.m, p.n) > kMost || p.k > kMostK) {
    return false;
  }
  if (!bmm90::is_small(p.x, p.m, p.k) || !bmm90::is_small(p.w, p.n, p.k)) return false;
  const int64_t tiles = bmm90::ceil_div(p.m, kBmmTileM) * bmm90::ceil_div(p.n, kBmmTileN);
  return tiles <= kMost / p.batches;
}

void bmm_launch(const BmmProblem& p, CUfunction kernel, CUstream stream, int num_sms) {
  BmmArgs args{};
  args.x = p.x;
  args.w = p.w;
  args.out = p.out;
  args.m = static_cast<int32_t>(p.m);
  args.n = static_cast<int32_t>(p.n);
  args.k = static_cast<int32_t>(p.k);
  args.k_blocks = static_cast<int32_t>(bmm90::ceil_div(p.k, kBmmTileK));
  args.tiles_m = static_cast<int32_t>(bmm90::ceil_div(p.m, kBmmTileM));
  args.tiles_n = static_cast<int32_t>(bmm90::ceil_div(p.n, kBmmTileN));
  args.strip = static_cast<int32_t>(bmm90::strip(p, num_sms));
  args.strips = static_cast<int32_t>(bmm90::ceil_div(args.tiles_n, args.strip));
  args.units = static_cast<int32_t>(p.batches * args.tiles_m * args.strips);
  const int64_t blocks = std::min<int64_t>(args.units, num_sms);
  launch_kernel(kernel, blocks, kBmmThreads, kBmmSharedBytes, stream, &args, true);
}

}  // namespace fusepass
