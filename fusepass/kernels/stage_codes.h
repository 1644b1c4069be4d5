// The numbers by which stages are known to the kernels; fusepass/stages.py has the same.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define FUSEPASS_EVERYWHERE __host__ __device__
#else
#define FUSEPASS_EVERYWHERE
#endif

namespace fusepass {

enum Stage : int32_t { kMul = 1, kDiv = 2, kClamp = 3, kGelu = 4, kGeluTanh = 5 };

FUSEPASS_EVERYWHERE constexpr int stage_arity(int32_t code) {
  return code == kClamp ? 2 : (code == kMul || code == kDiv) ? 1 : 0;
}

}  // namespace fusepass
