// Host side of the float32 split kernel (gemm_sm90_f32.cu): the pre-pass that splits an operand, and
// the GEMM on split operands. CUDA driver API only, no torch header.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "common/gemm.h"
#include "gemm_sm90_f32_outputs.h"

namespace fusepass {

// The kernels, and how the GEMM walks its tiles of 128 x tile_n.
struct Split90Kernels {
  CUfunction gemm;  // fusepass_gemm of gemm_sm90_f32.cu: split90_function's
  CUfunction sum;   // fusepass_sum of it: split90_sum_function's, or null where K is whole
  // fusepass_split_* of split_sm90.cu.
  CUfunction shorter_rows, short_rows, long_rows, longer_rows, columns, few_columns;
  CUfunction join_parts, add_strips;  // and fusepass_join_parts and fusepass_add_strips
  int32_t tile_n, stages;
  int32_t cluster;  // 1, or 2 CTAs below one another that share w's tile
  int32_t group;    // rows of tiles walked together before the next column
  int32_t segments;  // into which K is cut
  int32_t parts;     // in which these are split and multiplied, one after the other
};

// Reads "split 128x64 cluster2 stages4 group8 segments1", which " parts2" may follow, into `out`; false
// if `text` is no configuration.
bool split90_parse_config(const char* text, Split90Kernels* out);

// The GEMM's kernel, and the one that adds segments, as the current device launches them.
CUfunction split90_function(CUkernel gemm, const Split90Kernels& config);
CUfunction split90_sum_function(CUkernel sum, const Split90Kernels& config);

// Null if the kernels can run the problem, else the reason, a static text. Alignment only: whether
// float32 accuracy is wanted, and whether this is faster, is for others to say.
const char* split90_unsupported(const GemmProblem& problem);

// A matrix of `rows` rows (of the GEMM: M or N of them) of length k is split into so many bytes a
// line: a row, or, if it is stored [k, rows], one of K. No two sizes and orders of matrix have the same
// numbers of lines and of bytes.
int64_t split90_bytes_of_line(int64_t rows, int64_t k, bool is_km);

// Where a matrix's pieces lie: as many lines of hi and of lo as the matrix has in memory, 16-byte aligned,
// `pitch` 16-bit elements from one to the next; and where what is known of its rows does.
struct Split90Pieces {
  void* hi;  // null: there are none
  void* lo;
  int64_t pitch;
  void* facts;
};

// Those of x and of w in memory of that size.
Split90Pieces split90_x_pieces(const GemmProblem& problem, void* split);
Split90Pieces split90_w_pieces(const GemmProblem& problem, void* split);

// Splits x and w. One of them may have no pieces; it is then not read.
void split90_split(const GemmProblem& problem, const Split90Pieces& x, const Split90Pieces& w,
                   const Split90Kernels&, CUstream stream, int num_sms);

// What split90_gemm needs as `partial`: 0, or so many bytes, 16-byte aligned.
int64_t split90_partial_bytes(const GemmProblem& problem, const Split90Kernels&);

// out = epilogue(x w^T + bias), of a part of `whole` (gemm_sm90_f32_cut.h), or all of it; columns are
// summed with the last of its rows. The pieces are those of this problem's x and w, which are read
// too, where splitting is not good enough. `partial` is of the whole. Both throw std::runtime_error with
// CUDA's message.
void split90_gemm(const GemmProblem& problem, const Float32Whole& whole, const Split90Pieces& x,
                  const Split90Pieces& w, void* partial, const Split90Kernels&, CUstream stream,
                  int num_sms);

// Whether K is to be split and multiplied in parts, so that the pieces take less memory: where
// operands are not split before, split90_gemm_in_parts then does what split90_split and split90_gemm do,
// in split90_parts_bytes of `room`, 16-byte aligned, instead of pieces.
bool split90_has_parts(const GemmProblem& problem, const Split90Kernels&);
int64_t split90_parts_bytes(const GemmProblem& problem, const Split90Kernels&);
void split90_gemm_in_parts(const GemmProblem& problem, void* room, void* partial,
                           const Split90Kernels&, CUstream stream, int num_sms);

}  // namespace fusepass
