"""The sums of rows of few elements (gemm_sm90_f32_few.cuh), on the host: the kernel's own source.

A host thread stands for each of the device's, the first of them a slow one. Of a matrix stored
[K, rows] such rows are listed before, where they are short enough.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from torch import Tensor

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES

ROWS = 64  # of a group

_SHIM = """
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
#define __device__
#define __forceinline__ inline
using std::fma, std::max, std::min;
struct Warp {
  std::barrier<> all{32};
  bool votes[32];
};
static thread_local Warp* warp;
static thread_local int lane;
inline uint32_t __ballot_sync(unsigned, bool mine) {
  warp->votes[lane] = mine;
  warp->all.arrive_and_wait();
  uint32_t word = 0;
  for (int i = 0; i < 32; ++i) word |= uint32_t{warp->votes[i]} << i;
  warp->all.arrive_and_wait();
  return word;
}
inline bool __any_sync(unsigned mask, bool mine) { return __ballot_sync(mask, mine) != 0; }
static thread_local bool slow;
inline int __popc(uint32_t v) {
  if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  slow = false;
  return __builtin_popcount(v);
}
inline int __ffs(int v) { return __builtin_ffs(v); }
"""

_CALL = """
using namespace fusepass;
// 1, or 0 if it declines; -1 if the threads disagree.
template <int kWarps, int kColumns>
int run(const Split90Args& args, const float* bias, int row, int column, float* z) {
  auto shared = std::make_unique<FewShared<kWarps, kColumns>>();
  std::barrier<> all{32 * kWarps};
  std::vector<Warp> warps(kWarps);
  std::vector<std::thread> threads;
  bool mended[32 * kWarps];
  for (int thread = 0; thread < 32 * kWarps; ++thread) {
    threads.emplace_back([&, thread] {
      warp = &warps[thread / 32];
      lane = thread % 32;
      slow = thread == 0;
      const auto sync = [&] { all.arrive_and_wait(); };
      mended[thread] = mend(args, *shared, bias, row, column, thread, sync);
      if (!mended[thread]) {  // the memory is put to another use at once
        std::memset(static_cast<void*>(shared.get()), 0, sizeof(*shared));
        return all.arrive_and_drop();
      }
      if (thread >= 128) return;
      float mine[kColumns / 2];
      const auto each = [&](auto f) {
        for (int i = 0; i < kColumns / 2; ++i) {
          const int r = thread / 32 * 16 + lane / 4 + 8 * (i / 2 % 2);
          f(mine[i], z[r * kColumns + 8 * (i / 4) + lane % 4 * 2 + i % 2]);
        }
      };
      each([](float& v, float from) { v = from; });
      take_mended(mine, *shared, thread);
      each([](float v, float& to) { to = v; });
    });
  }
  for (auto& thread : threads) thread.join();
  for (bool each : mended) {
    if (each != mended[0]) return -1;
  }
  return mended[0];
}

// As the pre-pass of a matrix stored [k, rows].
void list(SplitOperand& from, std::vector<SplitRow>& detail, std::vector<int32_t>& lists, int k) {
  lists.assign(detail.size() * kSplitListed, -1);
  for (size_t row = 0; row < detail.size(); ++row) {
    int count = 0;
    for (int at = 0; at < k && from.k_step != 1; ++at) {
      if (from.raw[row * from.row_step + at * from.k_step] == 0.0f) continue;
      if (count < kSplitListed) lists[row * kSplitListed + count] = at;
      ++count;
    }
    if (detail[row].kind && count <= kSplitListed) detail[row].kind |= count << kSplitCount;
  }
  from.list = lists.data();
}

extern "C" int call(int warps, int columns, const float* x, int64_t x_row, int64_t x_k,
                     const float* w, int64_t w_row, int64_t w_k, const int* x_kind,
                     const int* w_kind, int m, int n, int k, const float* bias, int row, int column,
                     float* z) {
  std::vector<SplitRow> x_detail(m), w_detail(n);
  for (int i = 0; i < m; ++i) x_detail[i].kind = x_kind[i];
  for (int i = 0; i < n; ++i) w_detail[i].kind = w_kind[i];
  Split90Args args{};
  args.x = {x, x_row, x_k, false, nullptr, x_detail.data()};
  args.w = {w, w_row, w_k, false, nullptr, w_detail.data()};
  args.m = m, args.k = k, args.gemm.n = n;
  std::vector<int32_t> x_list, w_list;
  list(args.x, x_detail, x_list, k);
  list(args.w, w_detail, w_list, k);
  if (columns == 128) return run<4, 128>(args, bias, row, column, z);
  if (warps == 4) return run<4, 64>(args, bias, row, column, z);
  return run<12, 64>(args, bias, row, column, z);
}
"""


class Mend:
    """Compiled into ``folder``."""

    def __init__(self, compiler: str, folder: Path) -> None:
        source, library = folder / "few.cpp", folder / "few.so"
        own = "".join(
            re.sub(r'#pragma once|#include "[^"]*split.*"', "", (SOURCES / name).read_text())
            for name in ("sm90_f32/split_sm90_list.cuh", "sm90_f32/gemm_sm90_f32_few.cuh")
        )
        source.write_text("\n".join((_SHIM, own, _CALL)))
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread"]
        flags += [f"-I{SOURCES}", f"-I{SOURCES}/sm90_f32"]
        toolchain.run([compiler, *flags, str(source), "-o", str(library)])
        self._call = ctypes.CDLL(str(library)).call

    def __call__(
        self, warps: int, z: Tensor, x: Tensor, w: Tensor, few: tuple[Tensor, Tensor], bias: Tensor,
        row: int, column: int,
    ) -> bool:  # fmt: skip
        """Puts the sums of the group's few rows into z [64, columns]; False if it declines.

        Args:
            warps: of the threads that share the work.
            x, w: float32 [M, K] and [N, K] of any strides.
            few: which of their rows are, bool.
            bias: of the columns.
            row, column: where the group begins.
        """
        kinds = [mask.int() for mask in few]

        def address(t: Tensor) -> ctypes.c_void_p:
            return ctypes.c_void_p(t.data_ptr())

        strides = [[ctypes.c_int64(s) for s in t.stride()] for t in (x, w)]
        answer = self._call(
            warps,
            z.shape[1],
            address(x),
            *strides[0],
            address(w),
            *strides[1],
            *map(address, kinds),
            x.shape[0],
            w.shape[0],
            x.shape[1],
            address(bias),
            row,
            column,
            address(z),
        )
        assert answer in (0, 1), "one thread declines, another does not"
        return bool(answer)
