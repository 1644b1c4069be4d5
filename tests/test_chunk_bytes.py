"""A chunk of a bool matrix in the 16-bit kernel, as TMA permutes it: its source, on the host."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES

# A function of the header that reads what lies at addresses; here they are kept, too.
_SHIM = """
#include <cstdint>
#define __device__
#define __forceinline__ inline
static const uint8_t* memory;
static uint32_t* addresses;
static uint32_t load_shared_8(uint32_t at) { *addresses++ = at; return memory[at]; }
static uint16_t load_shared_16(uint32_t at) {
  *addresses++ = at;
  return memory[at] | memory[at + 1] << 8;
}
constexpr bool kSwapped = SWAPPED;
"""
_CALL = """
extern "C" void get(const uint8_t* from, uint32_t* values, uint32_t* seen, int unit, int thread) {
  memory = from, addresses = seen;
  get_bytes(0, reinterpret_cast<uint32_t(&)[4]>(*values), unit, thread);
}
"""


def source() -> str:
    text = (SOURCES / "sm90" / "gemm_sm90_chunk.cuh").read_text()
    start = text.index("__device__ __forceinline__ void get_bytes")
    return text[start : text.index("\n}\n", start) + 3]


def permuted(chunk: np.ndarray) -> np.ndarray:
    """Lines of 64 bytes in shared memory, TMA's pattern of 64: CU_TENSOR_MAP_SWIZZLE_64B."""
    lines = chunk.reshape(len(chunk), 4, 16)
    own = [lines[i][np.arange(4) ^ i // 2 % 4] for i in range(len(chunk))]
    return np.ascontiguousarray(np.stack(own))


@pytest.mark.parametrize("swapped", [False, True])
def test_each_thread_reads_its_elements_and_no_bank_twice(
    swapped: bool, host_compiler: str, tmp_path: Path
) -> None:
    (tmp_path / "get.cpp").write_text(_SHIM + source() + _CALL)
    defined = f"-DSWAPPED={int(swapped)}"
    command = [host_compiler, "-std=c++17", "-shared", "-fPIC", defined, "get.cpp", "-o", "get.so"]
    toolchain.run(command, tmp_path)
    library = ctypes.CDLL(str(tmp_path / "get.so"))
    units, threads = (5, 128) if swapped else (8, 32)
    rng = np.random.default_rng(0)
    chunk = rng.integers(0, 256, (8 * units if swapped else 16, 64), dtype=np.uint8)
    memory, reads = permuted(chunk), 4 if swapped else 2
    for unit in range(units):
        seen = np.zeros((threads, 4), np.uint32)
        for thread in range(threads):
            values = np.zeros(4, np.uint32)
            pointers = (a.ctypes.data_as(ctypes.c_void_p) for a in (memory, values, seen[thread]))
            library.get(*pointers, unit, thread)
            quad, row = thread % 4, thread % 32 // 4
            if swapped:  # two rows, and columns 8 apart, of the warp's 16
                rows = chunk[8 * unit + 2 * quad :][:2]
                wanted = rows[:, thread // 32 * 16 + row :][:, [0, 8]].T.ravel()
            else:  # two columns, and rows 8 apart, as pairs
                pairs = chunk[[row, row + 8], 8 * unit + 2 * quad :][:, :2].astype(np.uint32)
                wanted = np.array([*(pairs[:, 0] | pairs[:, 1] << 8), 0, 0])
            assert (values == wanted).all()
        for warp in seen[:, :reads].reshape(-1, 32, reads):
            for words in warp.T // 4:
                assert len({w % 32 for w in words}) == len(set(words.tolist()))
