"""The pointwise kernels on the host: their own sources, a host thread for each of the device's."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fusepass.ir import DType, Epilogue
from fusepass.ir.emit import emit
from fusepass.ir.lower import lower
from fusepass.ir.operands import places
from fusepass.kernels import pointwise
from fusepass.kernels.build import build, toolchain
from fusepass.kernels.plan.problem import device_code

_MATH = Path(__file__).parent / "ir" / "host_math.h"
_HALF = (
    ('asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));', "r = half_value(v);"),
    ('asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));', "bits = half_bits(v);"),
    (
        'asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(*static_cast<const uint16_t*>(p)));',
        "r = half_value(*static_cast<const uint16_t*>(p));",
    ),
)
_CUDA = """
#include <algorithm>
#include <barrier>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#define __global__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)
struct uint4 { uint32_t x, y, z, w; };
struct uint2 { uint32_t x, y; };
struct Number { int x; };
static thread_local Number threadIdx, blockIdx;
static Number gridDim;
static std::unique_ptr<std::barrier<>> all;
inline void __syncthreads() { all->arrive_and_wait(); }
template <class T, class F> T bits_as(F v) {
  static_assert(sizeof(T) == sizeof(F));
  T r;
  memcpy(&r, &v, sizeof(T));
  return r;
}
inline float half_value(uint16_t bits) { return bits_as<_Float16>(bits); }
inline uint16_t half_bits(float v) { return bits_as<uint16_t>(static_cast<_Float16>(v)); }
inline float __uint_as_float(uint32_t bits) { return bits_as<float>(bits); }
inline uint32_t __float_as_uint(float v) { return bits_as<uint32_t>(v); }
"""
_CALL = """
template <class A>
void launch(void (*kernel)(A), const void* args, int blocks, int threads) {
  gridDim.x = blocks;
  for (int block = 0; block < blocks; ++block) {
    all = std::make_unique<std::barrier<>>(threads);
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i) {
      running.emplace_back([=] {
        threadIdx.x = i;
        blockIdx.x = block;
        kernel(*static_cast<const A*>(args));
      });
    }
    for (auto& thread : running) thread.join();
  }
}
#define EXPORTED(name, kernel, threads) \\
  extern "C" void name(const void* args, int blocks) { launch(kernel, args, blocks, threads); }
"""
_FLAT = "EXPORTED(call, fusepass_pointwise, fusepass::kPointwiseThreads)"
_TILES = """
EXPORTED(call, fusepass_pointwise_tiles, fusepass::kPointwiseThreads)
EXPORTED(sums, fusepass_column_sums, fusepass::kSumColumns * fusepass::kSumStrips)
"""

# --- pointwise_args.h and gemm.h ------------------------------------------------------------------

_P, _I64, _I32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


def _struct(name: str, *fields: tuple[str, type], base: type = ctypes.Structure) -> type:
    return type(name, (base,), {"_fields_": list(fields)})


_Narrow = _struct("Narrow", ("number", ctypes.c_float * 32), ("value", ctypes.c_float * 16))
_Wide = _struct("Wide", ("number", ctypes.c_double * 32), ("value", ctypes.c_double * 16))
_Either = _struct("Either", ("narrow", _Narrow), ("wide", _Wide), base=ctypes.Union)
_Args = _struct(
    "Args", ("z", _P), ("z1", _P), ("out", _P * 4), ("numel", _I64), ("aligned", ctypes.c_bool),
    ("pointer", _P * 16), ("dtype", _I32 * 16), ("scalars", _Either),
)  # fmt: skip
_Operand = _struct(
    "Operand", ("data", _P), ("dtype", _I32), ("inner", _I64), ("outer_stride", _I64),
    ("row_stride", _I64), ("column_stride", _I64),
)  # fmt: skip
_TileArgs = _struct(
    "TileArgs", ("all", _Args), ("m", _I64), ("n", _I64), ("rows", _I32), ("col", _Operand * 8),
    ("row", _Operand * 8), ("mat", _Operand * 8), ("mat_columns", _I64 * 8), ("partial", _P),
)  # fmt: skip
_SumArgs = _struct(
    "SumArgs", ("partial", _P), ("parts", _I64), ("n", _I64), ("out", _P * 4), ("dtype", _I32 * 4)
)


def place(tensor: Tensor, dtype: DType) -> ctypes.Structure:
    """As binding_operands.h places a row or mat operand, of two strides at most."""
    groups: list[list[int]] = []
    for size, stride in reversed([*zip(tensor.shape, tensor.stride(), strict=True)][:-1]):
        if size != 1 and groups and stride == groups[-1][0] * groups[-1][1]:
            groups[-1][0] *= size
        elif size != 1:
            groups.append([size, stride])
    (inner, row), (_, outer) = (*groups, [1, 0], [1, 0])[:2]
    column = 0 if tensor.shape[-1] == 1 else tensor.stride(-1)
    return _Operand(tensor.data_ptr(), device_code(dtype), inner, outer, row, column)


def place_columns(tensor: Tensor, dtype: DType, rows: int) -> ctypes.Structure:
    """As binding_operands.h places a col operand, of one stride between groups of rows at most."""
    of = place(tensor, dtype)
    groups = tensor.numel() // tensor.shape[-1]
    assert of.inner == groups, "groups at two strides are copied"
    outer = of.row_stride if groups > 1 else 0
    inner = rows // groups if outer else rows
    return _Operand(of.data, of.dtype, inner, outer, 0, tensor.stride(-1))


class HostPointwise:
    """The kernel that computes a program at a dtype, compiled into ``folder``."""

    def __init__(self, compiler: str, folder: Path, epilogue: Epilogue, dtype: DType) -> None:
        self.epilogue, self.dtype = epilogue, dtype
        self.flat = pointwise.is_flat(epilogue)
        self.computed = pointwise.program(epilogue, dtype, False)
        self.size = dtype.in_torch.itemsize
        kernel = "pointwise/pointwise.cu" if self.flat else "pointwise/pointwise_tiles.cu"
        math = re.sub(r"enum class DType.*\n", "", _MATH.read_text())
        parts = [
            _source("common/gemm.h"), math, _CUDA, _source("pointwise/pointwise_args.h"),
            _source("common/scalars.cuh"), _plain(emit(self.computed, dtype)),
            _source("pointwise/pointwise.cuh"), _source(kernel), _CALL,
            _FLAT if self.flat else _TILES,
        ]  # fmt: skip
        source, library = folder / "kernel.cpp", folder / "kernel.so"
        source.write_text("\n".join(parts))
        defines = {"DTYPE": device_code(dtype), "WIDTH": 16 // self.size, "BITWISE": 0}
        flags = [f"-DFUSEPASS_{name}={value}" for name, value in defines.items()]
        flags += ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread"]
        toolchain.run([compiler, *flags, str(source), "-o", str(library)])
        self.library = ctypes.CDLL(str(library))

    def __call__(
        self, z: Tensor, z1: Tensor, operands: Sequence[Tensor], rows: int
    ) -> list[Tensor]:
        """The outputs; they start full of NaN, or True. ``rows``: those of a warp."""
        args = _TileArgs()
        args.all.z, args.all.z1, args.all.numel = z.data_ptr(), z1.data_ptr(), z.numel()
        outs = [self._room(z, i) for i in range(len(self.epilogue.outputs))]
        args.all.out[: len(outs)] = [t.data_ptr() for t in outs]
        stored = [t for t, o in zip(outs, self.epilogue.outputs, strict=True) if not o.is_sum]
        args.all.aligned = all(t.data_ptr() % 16 == 0 for t in (z, z1, *stored))
        wide = self.dtype is DType.F64
        scalars = args.all.scalars.wide if wide else args.all.scalars.narrow
        numbers = lower(self.computed, self.dtype).numbers
        scalars.number[: len(numbers)] = numbers
        for where, operand in zip(places(self.epilogue), operands, strict=True):
            dtype = where.dtype or self.dtype
            if where.kind == "$":
                args.all.pointer[where.index] = operand.data_ptr()
                args.all.dtype[where.index] = device_code(DType(DType.of(operand.dtype)))
            elif where.kind == "col":
                args.col[where.index] = place_columns(operand, dtype, z.numel() // z.shape[-1])
            else:
                getattr(args, where.kind)[where.index] = place(operand, dtype)
        self._launch(args, z, outs, rows)
        return outs

    def _launch(self, args: ctypes.Structure, z: Tensor, outs: Sequence[Tensor], rows: int) -> None:
        if self.flat:
            self.library.call(ctypes.byref(args.all), -(-z.numel() // (128 * 32 // self.size)))
            return
        n = z.shape[-1]
        args.m, args.n, args.rows = z.numel() // n, n, rows
        blocks, across = -(-args.m // (4 * rows)), -(-n // (32 * 16 // self.size))
        sums = [i for i, o in enumerate(self.epilogue.outputs) if o.is_sum]
        kept = torch.float64 if self.dtype is DType.F64 else torch.float32
        partial = torch.full((len(sums), blocks, n), float("nan"), dtype=kept)
        args.partial = partial.data_ptr()
        self.library.call(ctypes.byref(args), blocks * across)
        if sums:
            adding = _SumArgs(partial.data_ptr(), blocks, n)
            adding.out[: len(sums)] = [outs[i].data_ptr() for i in sums]
            dtypes = [DType(DType.of(outs[i].dtype)) for i in sums]
            adding.dtype[: len(sums)] = [device_code(d) for d in dtypes]
            self.library.sums(ctypes.byref(adding), len(sums) * -(-n // 32))

    def _room(self, z: Tensor, index: int) -> Tensor:
        output = self.epilogue.outputs[index]
        dtype = (output.dtype or self.dtype).in_torch
        full = True if dtype == torch.bool else float("nan")
        return torch.full(z.shape[-1:] if output.is_sum else z.shape, full, dtype=dtype)


def _source(name: str) -> str:
    return _plain((build.SOURCES / name).read_text())


def _plain(text: str) -> str:
    text = re.sub(r'#include "[^"]*"|#pragma (once|unroll)', "", text)
    for device, host in _HALF:
        text = text.replace(device, host)
    return text
