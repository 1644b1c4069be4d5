"""The float32 pre-pass on the host: its own source, a host thread for each of the device's.

Clusters run one after the other; the threads of one meet at the barriers where the device's do.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from host_half import HALF

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES

_HEADERS = (
    *(f"sm90_f32/split_sm90{part}.cuh" for part in ("", "_list", "_columns", "_join", "_warps")),
    "sm90_f32/split_sm90.cu",
)
# What is an instruction, by the name of the function around it.
_FUNCTIONS = {
    "pack_halves": "const uint32_t r = half_bits(low) | uint32_t{half_bits(high)} << 16;",
    "low_half": "const float r = half_value(pair);",
    "high_half": "const float r = half_value(pair >> 16);",
    "max_or_nan": "const float r = a != a ? a : b != b ? b : a > b ? a : b;",
    "load_remote": "const float v = *translated(p, rank);",
    "store_remote": "*translated(p, rank) = v;",
}

_SHIM = (
    """
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
using std::max, std::min;
struct float4 { float x, y, z, w; };
struct uint2 { uint32_t x, y; };
struct Index { int x; };
static thread_local Index threadIdx, blockIdx;
static int threads_of_cta;
struct Cta {
  alignas(16) char memory[1 << 16] = {};
  float lanes[1024];
  unsigned numbers[1024];
  std::barrier<> all{threads_of_cta};
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  Cta() {
    for (int i = 0; i < threads_of_cta; i += 32) {
      warps.push_back(std::make_unique<std::barrier<>>(32));
    }
  }
};
static thread_local Cta* cta;
static std::vector<std::unique_ptr<Cta>> cluster;
static std::unique_ptr<std::barrier<>> whole;
template <class T> T& shared_memory() { return *reinterpret_cast<T*>(cta->memory); }
inline float* translated(const float* p, uint32_t rank) {
  const auto offset = reinterpret_cast<const char*>(p) - cta->memory;
  return reinterpret_cast<float*>(cluster[rank]->memory + offset);
}
inline void __syncthreads() { cta->all.arrive_and_wait(); }
inline float __shfl_xor_sync(unsigned, float v, int d) {
  auto& warp = *cta->warps[threadIdx.x / 32];
  cta->lanes[threadIdx.x] = v;
  warp.arrive_and_wait();
  v = cta->lanes[threadIdx.x ^ d];
  warp.arrive_and_wait();
  return v;
}
template <class F> unsigned reduced(unsigned v, F combine) {
  auto& warp = *cta->warps[threadIdx.x / 32];
  unsigned* const lanes = cta->numbers + threadIdx.x / 32 * 32;
  cta->numbers[threadIdx.x] = v;
  warp.arrive_and_wait();
  for (int i = 0, first = lanes[0]; i < 32; ++i) v = i == 0 ? first : combine(v, lanes[i]);
  warp.arrive_and_wait();
  return v;
}
inline unsigned __reduce_max_sync(unsigned, unsigned v) {
  return reduced(v, [](unsigned a, unsigned b) { return max(a, b); });
}
inline unsigned __reduce_add_sync(unsigned, unsigned v) {
  return reduced(v, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __ballot_sync(unsigned, bool mine) {
  return __reduce_add_sync(0, mine ? 1u << threadIdx.x % 32 : 0u);
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline bool __any_sync(unsigned, bool mine) { return __reduce_max_sync(0, mine) != 0; }
"""
    + HALF
    + """template <class T, class F> T bits_as(F v) { T r; memcpy(&r, &v, 4); return r; }
inline double __hiloint2double(int high, int low) {
  const uint64_t bits = uint64_t{uint32_t(high)} << 32 | uint32_t(low);
  double r;
  memcpy(&r, &bits, 8);
  return r;
}
inline float __int_as_float(int v) { return bits_as<float>(v); }
inline int __float_as_int(float v) { return bits_as<int>(v); }
namespace fusepass {
inline void grid_dependents_launch() {}
inline void grid_dependency_wait() {}
inline void cluster_sync() { whole->arrive_and_wait(); }
}
#include "sm90_f32/gemm_sm90_f32_args.h"
namespace fusepass {
inline void add_strips(const Float32Sum&) {}  // no part of a split
}
"""
)

_CALL = """
using namespace fusepass;
extern "C" void call(int which, const float* src, int64_t ld, bool quads, int rows, int k,
                     int shares, int each, int64_t pitch, uint16_t* hi, uint16_t* lo, float* undo,
                     SplitRow* detail, int32_t* list) {
  const Split90Rows nothing{}, matrix{src, ld, quads, rows, k, hi, lo, pitch, undo, detail,
                                        list};
  threads_of_cta = which < 4 ? 256 : which == 4 ? 512 : 1024;
  int blocks = which < 2 ? (rows + 8 * each - 1) / (8 * each) : rows;
  if (which > 3) blocks = (rows + kSplitStrip - 1) / kSplitStrip * shares;
  // As x and as w of a launch, by turns.
  const Split90Both both = rows % 2 ? Split90Both{matrix, nothing, blocks, shares, each}
                                    : Split90Both{nothing, matrix, 0, shares, each};
  void (*const kernels[])(Split90Both) = {fusepass_split_shorter, fusepass_split_short,
                                          fusepass_split_long,
                                          fusepass_split_longer, fusepass_split_columns,
                                          fusepass_split_few_columns};
  for (int first = 0; first < blocks; first += shares) {
    cluster.clear();
    for (int r = 0; r < shares; ++r) cluster.push_back(std::make_unique<Cta>());
    whole = std::make_unique<std::barrier<>>(shares * threads_of_cta);
    std::vector<std::thread> threads;
    for (int i = 0; i < shares * threads_of_cta; ++i) {
      threads.emplace_back([=] {
        threadIdx.x = i % threads_of_cta;
        blockIdx.x = first + i / threads_of_cta;
        cta = cluster[i / threads_of_cta].get();
        kernels[which](both);
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

// As x and as w of a launch, by turns.
extern "C" void join(int rows, int parts, int depth, const SplitRow* detail, const int32_t* lists,
                     float* undo, SplitRow* whole, int32_t* list) {
  const Split90Join nothing{};
  const Split90Join of{detail, lists, rows, rows * kSplitListed, undo, whole, list, rows};
  const Split90JoinBoth both = rows % 2 ? Split90JoinBoth{of, nothing, parts, depth}
                                        : Split90JoinBoth{nothing, of, parts, depth};
  for (int i = 0; i < (rows + kSplitThreads - 1) / kSplitThreads * kSplitThreads; ++i) {
    blockIdx.x = i / kSplitThreads;
    threadIdx.x = i % kSplitThreads;
    fusepass_join_parts(both);
  }
}
"""


@dataclass
class Pieces:
    """What a kernel wrote; hi and lo by lines as stored, the rest a number a row."""

    hi: np.ndarray
    lo: np.ndarray
    undo: np.ndarray
    exponent: np.ndarray
    norm: np.ndarray
    loss: np.ndarray
    kind: np.ndarray
    listed: list[list[int]]  # where a row's elements are that are not 0, if that was asked for
    detail: np.ndarray  # SplitRow, as int32 [rows, 4]
    lists: np.ndarray  # int32 [rows, 16]


def _pieces(
    hi: np.ndarray, lo: np.ndarray, undo: np.ndarray, detail: np.ndarray, lists: np.ndarray
) -> Pieces:
    facts = detail.view(np.float32)
    listed = [list(row[:count]) for row, count in zip(lists, detail[:, 3] >> 8, strict=True)]
    kind = detail[:, 3] & 3
    return Pieces(hi, lo, undo, detail[:, 0], facts[:, 1], facts[:, 2], kind, listed, detail, lists)


def _on_the_host(name: str) -> str:
    text = (SOURCES / name).read_text().replace("#pragma once", "")
    text = re.sub(r'#include "[^"]*"', "", text)
    text = re.sub(r"__shared__ (\w+) (\w+);", r"\1& \2 = shared_memory<\1>();", text)
    text = re.sub(
        r"__shared__ float (\w+)\[([^\]]*)\];", r"float* \1 = &shared_memory<float>();", text
    )
    for function, body in _FUNCTIONS.items():
        start = re.compile(rf"\b{function}\([^)]*\) {{\n")
        found = start.search(text)
        if found:
            end = text.index("\n}\n", found.end())
            inside = text[found.end() : end]
            returned = re.search(r"return \w+;", inside)
            text = text[: found.end()] + body + (returned[0] if returned else "") + text[end:]
    return re.sub(r'asm(?: volatile)?\((?:[^;"]|"[^"]*")*\);', "std::abort();", text)


KERNELS = ("shorter", "short", "long", "longer", "columns", "few_columns")


class SplitKernels:
    """Compiled into ``folder``."""

    def __init__(self, compiler: str, folder: Path) -> None:
        source, library = folder / "split.cpp", folder / "split.so"
        source.write_text("\n".join((_SHIM, *map(_on_the_host, _HEADERS), _CALL)))
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", f"-I{SOURCES}"]
        toolchain.run([compiler, *flags, str(source), "-o", str(library)])
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name: str, matrix: np.ndarray, shares: int = 1, each: int = 3) -> Pieces:
        """Splits a float32 matrix of contiguous elements a line, rows or, of columns, K.

        Args:
            shares: CTAs of a cluster.
            each: rows that a warp takes.
        """
        lines, length = matrix.shape
        by_columns = name.endswith("columns")
        rows, k = (length, lines) if by_columns else (lines, length)
        pitch, ld = -(-length // 8) * 8, matrix.strides[0] // 4
        hi, lo = (np.full((lines, pitch), 0x7E00, dtype=np.uint16) for _ in range(2))
        undo, detail = np.full(rows, np.nan, np.float32), np.full((rows, 4), -1, np.int32)
        lists = np.full((rows, 16), -1, np.int32)
        arrays = (hi, lo, undo, detail, lists)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
        self._library.call(
            KERNELS.index(name),
            matrix.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(ld),
            matrix.ctypes.data % 16 == 0 and (ld % 4 == 0 or lines == 1),
            rows,
            k,
            shares,
            each,
            ctypes.c_int64(pitch),
            *pointers,
        )
        halves = (piece.view(np.float16)[:, :length] for piece in (hi, lo))
        return _pieces(*halves, undo, detail, lists)

    def join(self, parts: Sequence[Pieces], depth: int, listed: bool = True) -> Pieces:
        """What is known of rows whose K was split in ``parts`` of ``depth``; no pieces.

        Args:
            listed: whether the parts have lists.
        """
        detail, lists = (
            np.ascontiguousarray(np.stack([getattr(part, name) for part in parts]))
            for name in ("detail", "lists")
        )
        rows = detail.shape[1]
        undo, whole = np.full(rows, 7, np.float32), np.full((rows, 4), -1, np.int32)
        joined = np.full((rows, 16), -1, np.int32)
        arrays = (detail, lists if listed else None, undo, whole, joined)
        pointers = [None if a is None else a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
        self._library.join(rows, len(parts), depth, *pointers)
        return _pieces(np.empty(0), np.empty(0), undo, whole, joined)
