// Where the elements of a row are that are not 0.
#pragma once
#include <cstdint>

namespace fusepass {

constexpr int kInFlight = 16;  // elements a thread reads before it looks at one

// Writes the places of such elements of first[0], first[step], ... first[(k - 1) * step] into the warp's
// list, those that the warp reads, in order; returns how many there are, be there room or not. kWarps
// warps share the row.
template <int kWarps, int kRoom>
__device__ __forceinline__ int list_row(const float* first, int64_t step, int k, int (&list)[kRoom],
                                        int thread) {
  constexpr int kThreads = 32 * kWarps;
  const uint32_t below = (1u << thread % 32) - 1;
  int count = 0;
#pragma unroll 1
  for (int64_t begin = thread; begin - thread < k; begin += kInFlight * kThreads) {
    float v[kInFlight];
    bool any = false;
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t at = begin + i * kThreads;
      v[i] = at < k ? first[at * step] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) any |= v[i] != 0.0f;
    if (!__any_sync(~0u, any)) continue;
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const uint32_t mask = __ballot_sync(~0u, v[i] != 0.0f);
      const int place = count + __popc(mask & below);
      if (v[i] != 0.0f && place < kRoom) list[place] = static_cast<int>(begin + i * kThreads);
      count += __popc(mask);
    }
  }
  return count;
}

// What warps found, put together.
struct Found {
  int before = 0, all = 0;  // of the warps before this one, and of all
  bool fits = true;

  template <int kWarps>
  __device__ __forceinline__ Found(const int (&counts)[kWarps], int warp, int room) {
    for (int w = 0; w < kWarps; ++w) {
      fits &= counts[w] <= room;
      if (w < warp) before += counts[w];
      all += counts[w];
    }
  }
};

}  // namespace fusepass
