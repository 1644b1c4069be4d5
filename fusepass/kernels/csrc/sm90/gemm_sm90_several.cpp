// Several weights of one x in one launch of the 16-bit Hopper kernel.
#include "gemm_sm90_several.h"

#include <algorithm>

#include "gemm_sm90_maps.h"

namespace fusepass {

const char* gemm90_several_unsupported(const GemmProblem* problems, int count) {
  int64_t n = 0;  // and of each weight's last tile what is beyond
  for (int i = 0; i < count; ++i) {
    if (const char* no = gemm90_unsupported(problems[i])) return no;
    if (problems[i].w_is_kn != problems[0].w_is_kn) return "weights are stored in several orders";
    n += ceil_div(problems[i].n, 256) * 256;
  }
  if (n > kMostCoordinates) return "a dimension is too large";
  return ceil_div(problems[0].m, 64) * (n / 64) > kMostCoordinates ? "too many tiles" : nullptr;
}

void gemm90_launch_several(const GemmProblem* problems, int count, const Gemm90Config& c,
                           CUfunction kernel, CUstream stream, int num_sms) {
  using gemm90::operand_map;
  const GemmProblem& p = problems[0];
  const Geometry geometry = gemm90::geometry_of(c, p, gemm90::stores_of(p));
  const int of_weight = c.swapped ? c.tile_m : c.tile_n, of_x = c.swapped ? c.tile_n : c.tile_m;
  // A cluster's CTAs share wgmma's B, or, if they lie beside one another, its A.
  const bool shares_weight = bool(c.swapped) == bool(c.beside);
  SeveralArgs args;
  GemmProblem walk = p;  // over all weights' tiles
  walk.n = 0;
  std::fill_n(args.first, kMaxWeights, INT_MAX);
  for (int i = 0; i < count; ++i) {
    const GemmProblem& q = problems[i];
    args.weight[i] = operand_map(q, q.w[0], q.n, q.ldw[0], q.w_is_kn, of_weight,
                                 shares_weight ? c.cluster : 1);
    args.out[i] = gemm90::chunk_map(geometry, q.out[0].dtype, q.out[0].data, q.m, q.n, q.n);
    args.bias_of[i] = q.bias[0];
    args.n_of[i] = static_cast<int32_t>(q.n);
    args.first[i] = static_cast<int32_t>(walk.n);
    walk.n += ceil_div(q.n, of_weight) * of_weight;
    if (walk.bias[0] == nullptr) walk.bias[0] = q.bias[0];
  }
  const TensorMap x = operand_map(p, p.x, p.m, p.ldx, p.x_is_km, of_x, shares_weight ? 1 : c.cluster);
  args.x = c.swapped ? args.weight[0] : x;
  args.w = args.second = c.swapped ? x : args.weight[0];
  args.m = static_cast<int32_t>(p.m);
  fill_args(c.swapped ? gemm90::transposed(walk) : walk, c.tile_m, c.tile_n, kTileK, c.cluster,
            c.group, &args, c.beside);
  launch_gemm(kernel, args, c.cluster, num_sms, shared_bytes(geometry), stream, &args,
              geometry.consumers);
}

}  // namespace fusepass
