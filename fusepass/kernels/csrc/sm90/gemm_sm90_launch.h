// Host side of the Hopper GEMM: what it can run, its configurations, its launch. CUDA driver API
// only, reached through the runtime's driver entry points; no torch header.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "common/gemm.h"

namespace fusepass {

// One compiled kernel, and how it walks its tiles.
struct Gemm90Config {
  int32_t tile_m, tile_n;  // of the output, a CTA; its transpose's if `swapped`
  int32_t stages;          // of 64 K in the shared-memory ring
  int32_t cluster;         // 1, or 2 CTAs below one another that share w's tile
  int32_t pingpong;        // 1: a consumer owns a tile; 0: they share it (cooperative)
  int32_t group;           // rows of tiles walked together before the next column
  int32_t swapped = 0;     // 1: the weight is wgmma's A operand, x its B
  int32_t beside = 0;      // 1: the cluster's CTAs lie beside one another and share x's tile
  int32_t split = 1;       // CTAs of a cluster that share a tile's K
  int32_t consumers = 0;   // that have their turns (ping-pong), if not consumers_of
};

// Reads "128x192 pingpong cluster2 stages4 group8" (or "cooperative"), behind which may stand
// "swapped", "beside", "split2" and "consumers3"; false if `text` is not such a configuration.
bool gemm90_parse_config(const char* text, Gemm90Config* out);

// Null if the kernel can run the problem, else the reason, a static text.
const char* gemm90_unsupported(const GemmProblem& problem);

// `kernel` as the current device launches it.
CUfunction gemm90_function(CUkernel kernel);

// Launches gemm90_function's kernel, compiled for `config`, on `stream` of its device. Throws
// std::runtime_error with CUDA's message. Thread-safe; makes no other CUDA call than the launch, so
// streams may be capturing.
//
// `partial`: gemm90_partial_bytes of device memory, where there are column sums.
void gemm90_launch(const GemmProblem& problem, const Gemm90Config& config, CUfunction kernel,
                   CUstream stream, int num_sms, void* partial = nullptr);

// Bytes of device memory in which the kernel leaves a tile's sums for the next one to add; 0 without
// column sums.
int64_t gemm90_partial_bytes(const GemmProblem& problem, const Gemm90Config& config);

// Behind gemm90_launch: adds them, always in the same order. `kernel` is the library's
// fusepass_column_sums.
void gemm90_launch_sums(const GemmProblem& problem, const Gemm90Config& config, CUfunction kernel,
                        CUstream stream, const void* partial);

}  // namespace fusepass
