// wgmma m64n64k16 with its A operand in registers: float16 in, float32 sums.
#pragma once
#include <cstdint>

namespace fusepass {

using BmmSums = float[32];  // of a thread: element (row + 8 h, 8 u + i) at 4 u + 2 h + i

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// What a wgmma left in flight may still be writing is read only behind this.
__device__ __forceinline__ void settle(BmmSums& acc) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(acc[i])::"memory");
}

// Of 64 rows of 128 bytes that are swizzled, at an address whose lowest 10 bits are 0 but for the
// position in a row.
__device__ __forceinline__ uint64_t swizzled_rows(uint32_t address) {
  return (uint64_t{(1u << 30) | (1024u >> 4)} << 32) | ((address & 0x3FFFF) >> 4);
}

#define FUSEPASS_SUMS(a, i) \
  "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3]), "+f"(a[i + 4]), "+f"(a[i + 5]), \
      "+f"(a[i + 6]), "+f"(a[i + 7])

// acc = x * w, or acc += x * w if `accumulate` is not 0.
__device__ __forceinline__ void wgmma(BmmSums& acc, const uint32_t (&x)[4], uint64_t w,
                                      uint32_t accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, accumulate, 1, 1, 0;\n}"
      : FUSEPASS_SUMS(acc, 0), FUSEPASS_SUMS(acc, 8), FUSEPASS_SUMS(acc, 16), FUSEPASS_SUMS(acc, 24)
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(w), "r"(accumulate));
}

#undef FUSEPASS_SUMS

}  // namespace fusepass
