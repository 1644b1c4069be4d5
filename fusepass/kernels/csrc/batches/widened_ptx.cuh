// PTX that the kernel of widened batches needs, one thin function each.
#pragma once
#include <cstdint>

namespace fusepass {

struct Fragment {
  uint32_t v[4];  // of 16 rows and 16 of K: rows 0-7 and 8-15 of the first 8 of K, then of the others
};

__device__ __forceinline__ Fragment load_fragment(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.v[0]), "=r"(f.v[1]), "=r"(f.v[2]), "=r"(f.v[3])
               : "r"(address)
               : "memory");
  return f;
}

// d = a b + c, of 8 of K.
__device__ __forceinline__ void multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b,
                                         const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%7, %8, %9, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// 16 bytes into shared memory, zeros unless `whole`.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool whole) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(whole ? 16 : 0)
               : "memory");
}

// Ends a group of copies, which may be empty.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until this thread's groups of copies but the last are there.
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

__device__ __forceinline__ void store_vector(float* to, const float4& v) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}

}  // namespace fusepass
