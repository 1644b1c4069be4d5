#include "gemm_sm90_launch.h"

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>

#include "gemm_sm90_maps.h"

namespace fusepass {
namespace gemm90 {

// Null if the kernel can read them, else the reason.
const char* unsupported_vectors(const GemmProblem& p, const Operand* operands) {
  const int number = count(operands, kMaxVectors);
  for (int i = 0; i < number; ++i) {
    if (operands[i].dtype != p.dtype && operands[i].dtype != DType::kFloat32) {
      return "a col or row operand is neither of x's dtype nor float32";
    }
    if (operands[i].dtype == DType::kFloat32 &&
        reinterpret_cast<uintptr_t>(operands[i].data) % 4 != 0) {
      return "a col or row operand is not aligned";
    }
  }
  return nullptr;
}

// Boxes of 16 rows and 64 columns lie in one group of each.
const char* unsupported_groups(const GemmProblem& p, int i) {
  const int64_t rows = mat_rows(p, i), columns = p.mat_columns[i];
  if (rows < p.m && rows % 16 != 0) return "a mat operand is the same for groups of odd rows";
  return columns < p.n && columns % 64 != 0 ? "a mat operand's heads are not of 64 columns" : nullptr;
}

const char* unsupported_mats(const GemmProblem& p) {
  const int number = count(p.mat, kMaxVectors);
  if (number > kMaxMats) return "more mat operands than the kernel takes";
  for (int i = 0; i < number; ++i) {
    const Operand& o = p.mat[i];
    if (o.dtype != p.dtype && o.dtype != DType::kFloat32 && o.dtype != DType::kBool) {
      return "a mat operand is neither of x's dtype, nor float32, nor bool";
    }
    const int unit = 16 / size_of(o.dtype);
    const int64_t columns = p.mat_columns[i], rows = mat_rows(p, i);
    if (const char* no = unsupported_groups(p, i)) return no;
    if (o.inner < rows && p.m > 1) return "a mat operand's rows are not evenly spaced";
    if (o.column_stride != 1 || (p.m > 1 && (o.row_stride < columns || o.row_stride % unit != 0)) ||
        reinterpret_cast<uintptr_t>(o.data) % 16 != 0) {
      return "a mat operand's rows are not 16-byte aligned";
    }
  }
  return nullptr;
}

const char* unsupported_outputs(const GemmProblem& p) {
  int stores = 0;
  for (const Result& out : p.out) {
    if (out.data == nullptr || out.column_sum) continue;
    ++stores;
    if (out.dtype != p.dtype && out.dtype != DType::kFloat32) {
      return "an output is neither of x's dtype nor float32";
    }
    if (reinterpret_cast<uintptr_t>(out.data) % 16 != 0) return "an output is not 16-byte aligned";
  }
  return stores > 0 ? nullptr : "no output of M x N";
}

// Reads "swapped", "beside", "split2" or "consumers3".
bool parse_option(const std::string& word, Gemm90Config* c) {
  if (word == "swapped") {
    c->swapped = 1;
  } else if (word == "beside") {
    c->beside = 1;
  } else {
    return std::sscanf(word.c_str(), "split%d", &c->split) == 1 ||
           std::sscanf(word.c_str(), "consumers%d", &c->consumers) == 1;
  }
  return true;
}

}  // namespace gemm90

bool gemm90_parse_config(const char* text, Gemm90Config* out) {
  char schedule[16];
  int read = 0;
  Gemm90Config c;
  if (std::sscanf(text, "%dx%d %15s cluster%d stages%d group%d%n", &c.tile_m, &c.tile_n, schedule,
                  &c.cluster, &c.stages, &c.group, &read) != 6) {
    return false;
  }
  c.pingpong = std::string(schedule) == "pingpong";
  if (!c.pingpong && std::string(schedule) != "cooperative") return false;
  std::istringstream rest(text + read);
  for (std::string word; rest >> word;) {
    if (!gemm90::parse_option(word, &c)) return false;
  }
  *out = c;
  return true;
}

const char* gemm90_unsupported(const GemmProblem& p) {
  if (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) return "not a 16-bit dtype";
  if (p.n % 8 != 0) return "N is not a multiple of 8";
  // The plan knows which configurations' tiles lie in one group.
  if (rows_of_group(p) % 64 != 0) return "a col operand's groups are of rows that no tile divides";
  for (const void* bias : p.bias) {
    if (reinterpret_cast<uintptr_t>(bias) % 4 != 0) return "a bias is not 4-byte aligned";
  }
  for (const char* no : {gemm90::unsupported_vectors(p, p.col), gemm90::unsupported_vectors(p, p.row),
                         gemm90::unsupported_mats(p), gemm90::unsupported_outputs(p)}) {
    if (no != nullptr) return no;
  }
  return tma_unsupported(p, 8, kMostCoordinates);
}

int64_t gemm90_partial_bytes(const GemmProblem& p, const Gemm90Config& c) {
  const auto sums = std::count_if(p.out, p.out + kMaxOutputs,
                                  [](const Result& out) { return out.column_sum; });
  return sums * ceil_div(p.m, c.tile_n) * p.n * int64_t{sizeof(float)};
}

void gemm90_launch_sums(const GemmProblem& p, const Gemm90Config& c, CUfunction kernel,
                        CUstream stream, const void* partial) {
  StripArgs args{};
  args.partial = static_cast<const float*>(partial);
  args.n = static_cast<int32_t>(p.n);
  args.strips = static_cast<int32_t>(ceil_div(p.m, c.tile_n));
  int64_t sums = 0;
  for (const Result& out : p.out) {
    if (!out.column_sum) continue;
    args.out[sums] = out.data;
    args.dtype[sums++] = out.dtype;
  }
  launch_kernel(kernel, sums * ceil_div(p.n, kAdderColumns), kAdderColumns * kAdderRows, 0, stream, &args,
                /*early=*/true);
}

CUfunction gemm90_function(CUkernel kernel) { return kernel_function(kernel, kSharedLimit); }

void gemm90_launch(const GemmProblem& p, const Gemm90Config& c, CUfunction kernel, CUstream stream,
                   int num_sms, void* partial) {
  using gemm90::operand_map;
  const GemmProblem q = c.swapped ? gemm90::transposed(p) : p;
  const bool gated = p.w[1] != nullptr, halves_x = gated && c.swapped, halves_w = gated && !c.swapped;
  Gemm16Args args;
  fill_args(q, c.tile_m / (halves_x ? 2 : 1), c.tile_n / (halves_w ? 2 : 1), kTileK, c.cluster,
            c.group, &args, c.beside);
  args.n = static_cast<int32_t>(p.n);  // as long as the bias, in either orientation
  const int share_x = c.beside ? c.cluster : 1, share_w = c.beside ? 1 : c.cluster;
  // Where CTAs share two weights each loads whole boxes of one.
  const int rows = rows_of_a_weight(c.tile_n, c.swapped);
  const int tile_x = halves_x ? rows * share_x : c.tile_m;
  const int tile_w = halves_w ? rows * share_w : c.tile_n;
  args.x = operand_map(q, q.x, q.m, q.ldx, q.x_is_km, tile_x, share_x);
  args.w = operand_map(q, q.w[0], q.n, q.ldw[0], q.w_is_kn, tile_w, share_w);
  args.second = !gated ? args.w
                       : operand_map(p, p.w[1], p.n, p.ldw[1], p.w_is_kn, c.swapped ? tile_x : tile_w,
                                     c.swapped ? share_x : share_w);
  const gemm90::Stores stores = gemm90::stores_of(p);
  const Geometry geometry = gemm90::geometry_of(c, p, stores);
  gemm90::fill_program(p, geometry, stores, partial, &args);
  launch_gemm(kernel, args, c.cluster, num_sms, shared_bytes(geometry), stream, &args,
              geometry.consumers, c.split);
}

}  // namespace fusepass
