// Where the compiler may move no instruction across.
#pragma once
#include <cstdint>

namespace fusepass {

// ... while it still decides the order: it ends a basic block, the exit being never taken, `never` being
// no negative number, and deletes it later.
__device__ __forceinline__ void schedule_boundary(int never) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %0, 0;\n@p exit;\n}" ::"r"(never));
}

// The next of a statement's elements; behind the last one a boundary.
__device__ __forceinline__ void next_apart(int& element, int count, float never) {
  if (++element == count) schedule_boundary(__float_as_int(never));
}

}  // namespace fusepass
