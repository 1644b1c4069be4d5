// PTX the Hopper GEMM needs, one thin function each: barriers, TMA, matrices, register hand-over.
#pragma once
#include <cstdint>

#include "gemm_sm90_args.h"

namespace fusepass {

// Opaque, so that the compiler keeps it in a register and does not form it again in every loop.
__device__ inline uint32_t shared_address(const void* p) {
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(p));
  asm volatile("" : "+r"(address));
  return address;
}

// ---- mbarrier: a phase completes when all arrivals and all expected bytes are in ----

__device__ inline void mbarrier_init(uint32_t bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals));
}

__device__ inline void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void mbarrier_expect(uint32_t bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
               : "memory");
}

__device__ inline void mbarrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

// Arrives on the barrier at the same offset in the shared memory of CTA `rank` of the cluster. No
// wider release than the default: consumers only read, and a cluster-wide one costs a full fence.
__device__ inline void mbarrier_arrive_remote(uint32_t bar, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(bar),
      "r"(rank)
      : "memory");
}

__device__ inline void mbarrier_wait(uint32_t bar, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(bar), "r"(parity)
        : "memory");
  } while (!done);
}

// ---- ordinary shared memory, and 4-byte copies into it ----

__device__ inline uint32_t load_shared(uint32_t address) {
  uint32_t r;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(r) : "r"(address));
  return r;
}

__device__ inline uint32_t load_shared_8(uint32_t address) {
  uint32_t r;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(r) : "r"(address));
  return r;
}

__device__ inline uint16_t load_shared_16(uint32_t address) {
  uint16_t r;
  asm volatile("ld.shared.b16 %0, [%1];" : "=h"(r) : "r"(address));
  return r;
}

__device__ inline void load_shared_64(uint32_t address, uint32_t& a, uint32_t& b) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "r"(address));
}

__device__ inline void store_shared_64(uint32_t address, uint32_t a, uint32_t b) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

__device__ inline void store_shared(uint32_t address, uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

__device__ inline void store_shared_16(uint32_t address, uint16_t v) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(v) : "memory");
}

__device__ inline void load_shared(uint32_t address, float (&v)[4]) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(address)
               : "memory");
}

// The address in the shared memory of CTA `rank` of the cluster of what lies at `address` in this one.
__device__ inline uint32_t shared_of(uint32_t rank, uint32_t address) {
  uint32_t r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
  return r;
}

__device__ inline void store_cluster(uint32_t address, const float* v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]),
               "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
}

// 4 bytes, of which those from `valid` on are 0.
__device__ inline void copy_async_4(uint32_t dst, const void* src, uint32_t valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(valid)
               : "memory");
}

__device__ inline void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// What was asked for so far is a group; until all but the last group are there.
__device__ inline void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
__device__ inline void copy_async_wait_but_one() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
}

// A number that is the same in all of a warp's lanes, and that the compiler knows to be: what follows
// from it is then worked out in the registers of the warp, not of its threads.
__device__ inline uint32_t uniform(uint32_t v) { return __shfl_sync(~0u, v, 0); }

// ---- named barriers among warps, and the barrier of a cluster ----

__device__ inline void barrier_sync(int id, int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void barrier_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// ---- TMA: boxes of a tensor map, out-of-range elements read as 0 and are not written ----

__device__ inline void tma_prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ inline void tma_load(uint32_t dst, const TensorMap* map, int inner, int outer,
                                uint32_t bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(dst),
      "l"(map), "r"(inner), "r"(outer), "r"(bar)
      : "memory");
}

// A line of memory, and a box, into the L2 cache.
__device__ inline void prefetch(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

__device__ inline void tma_prefetch(const TensorMap* map, int inner, int outer) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(inner),
               "r"(outer)
               : "memory");
}

// The same box into every CTA of `mask`, each counting the bytes on its own barrier.
__device__ inline void tma_load_multicast(uint32_t dst, const TensorMap* map, int inner, int outer,
                                          uint32_t bar, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst),
      "l"(map), "r"(inner), "r"(outer), "r"(bar), "h"(mask)
      : "memory");
}

__device__ inline void tma_store(const TensorMap* map, int inner, int outer, uint32_t src) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
                   map),
               "r"(inner), "r"(outer), "r"(src)
               : "memory");
}

// The stores so far that are in no group are one.
__device__ inline void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until at most `kPending` of this thread's groups of stores still read shared memory.
template <int kPending>
__device__ inline void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Makes this thread's ordinary shared-memory writes visible to the TMA unit.
__device__ inline void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- 8x8 matrices of 16-bit elements: stmatrix from the accumulators' layout into rows, ldmatrix
// back; transposed, into columns ----

template <bool kTransposed>
__device__ __forceinline__ void stmatrix_x4(uint32_t dst, const uint32_t* r) {
  if (kTransposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(dst),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(dst),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  }
}

template <bool kTransposed>
__device__ __forceinline__ void stmatrix_x2(uint32_t dst, const uint32_t* r) {
  if (kTransposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(dst),
                 "r"(r[0]), "r"(r[1])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(dst), "r"(r[0]),
                 "r"(r[1])
                 : "memory");
  }
}

template <bool kTransposed>
__device__ __forceinline__ void ldmatrix_x4(uint32_t src, uint32_t* r) {
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(src)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(src)
                 : "memory");
  }
}

template <bool kTransposed>
__device__ __forceinline__ void ldmatrix_x2(uint32_t src, uint32_t* r) {
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(src)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(src)
                 : "memory");
  }
}

// ---- the kernels ahead of and behind this one in the stream ----

// Kernels behind may start, as far as there is room, once every CTA has said so or ended; those that
// were launched to start early wait for this one's end by themselves. To be called after
// grid_dependency_wait(), in a thread that has: see launch_kernel.
__device__ inline void grid_dependents_launch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Until the kernels ahead have ended and what they wrote is seen.
__device__ inline void grid_dependency_wait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// ---- registers of a warpgroup ----

template <int kRegisters>
__device__ inline void registers_release() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ inline void registers_claim() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fusepass
