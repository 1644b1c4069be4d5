"""Emitted includes compiled for the host: the text a GPU kernel compiles, verbatim."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusepass.ir import DType, Epilogue
from fusepass.ir.emit import emit
from fusepass.ir.lower import lower
from fusepass.kernels.build import toolchain

_HEADER = Path(__file__).parent / "host_math.h"
_INCLUDES = ('#pragma once\n#include "common/epilogue_math.cuh"\n',)
_RUN = """
struct From {
  const double* numbers;
  const double* operands;
  double number(int i) const { return numbers[i]; }
  double operand(int i) const { return operands[i]; }
};
template <class E>
void run(const double* const* in, double* const* out, int count, From from) {
  constexpr int kWidth = 4;
  typename E::T s[E::kScalars + 1];
  E::load(s, from);
  for (int first = 0; first < count; first += kWidth) {
    typename E::template Batch<kWidth> b;
    int next = 0;
    FUSEPASS_EACH b.z[i] = in[0][first + i];
    ++next;
    if constexpr (E::kReadsZ1) {
      FUSEPASS_EACH b.z1[i] = in[next][first + i];
      ++next;
    }
    if constexpr (E::kCols > 0) for (int k = 0; k < E::kCols; ++k, ++next) {
      FUSEPASS_EACH b.col[k][i] = in[next][first + i];
    }
    if constexpr (E::kRows > 0) for (int k = 0; k < E::kRows; ++k, ++next) {
      FUSEPASS_EACH b.row[k][i] = in[next][first + i];
    }
    if constexpr (E::kMats > 0) for (int k = 0; k < E::kMats; ++k, ++next) {
      FUSEPASS_EACH b.mat[k][i] = in[next][first + i];
    }
    E::begin(b, s);
    E::middle(b, s);
    E::end(b, s);
    for (int k = 0; k < E::kOutputs; ++k) FUSEPASS_EACH out[k][first + i] = b.out[k][i];
  }
}
extern "C" void call(int which, const double* const* in, double* const* out, int count,
                     const double* numbers, const double* operands, int exp2, int other) {
  exp2_ulps = exp2;
  other_ulps = other;
  const From from{numbers, operands};
  switch (which) {
%s  }
}
"""

Case = tuple[Epilogue, DType]


class HostEpilogues:
    """``cases`` compiled into ``folder``; ``contract``: a product and a sum may become an FMA."""

    def __init__(
        self, compiler: str, folder: Path, cases: Sequence[Case], contract: bool = False
    ) -> None:
        self.cases = list(cases)
        bodies, switch = [], []
        for i, (epilogue, dtype) in enumerate(self.cases):
            text = emit(epilogue, dtype)
            for include in _INCLUDES:
                text = text.replace(include, "")
            bodies.append(text.replace("struct Epilogue {", f"struct Epilogue{i} {{"))
            switch.append(f"case {i}: return run<fusepass::Epilogue{i}>(in, out, count, from);")
        source, library = folder / "epilogues.cpp", folder / "epilogues.so"
        parts = (_HEADER.read_text(), *bodies, _RUN % "\n".join(switch))
        source.write_text("\n".join(parts))
        mode = "fast" if contract else "off"
        flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-march=native"]
        command = [compiler, *flags, f"-ffp-contract={mode}", str(source), "-o", str(library)]
        toolchain.run(command)
        self._library = ctypes.CDLL(str(library))

    def __call__(
        self,
        case: Case,
        *inputs: np.ndarray,
        operands: Sequence[float] = (),
        ulps: tuple[int, int] = (0, 0),
    ) -> list[np.ndarray]:
        """The outputs, float64 arrays of what the kernel's type holds.

        Args:
            inputs: z, z1 if it is read, columns, rows, matrices: one element each per element.
            operands: the run-time scalars.
            ulps: by how much 2^v, and the other approximations, are off.
        """
        epilogue, dtype = case
        count = len(inputs[0])
        padded = [np.zeros(-(-count // 4) * 4) for _ in inputs]
        for room, values in zip(padded, inputs, strict=True):
            room[:count] = values
        outs = [np.full_like(padded[0], 1e300) for _ in epilogue.outputs]
        numbers = np.array([*lower(epilogue, dtype).numbers, 0.0])
        scalars = np.array([*operands, 0.0], dtype=np.float64)
        self._library.call(
            self.cases.index(case), _pointers(padded), _pointers(outs), len(padded[0]),
            _pointer(numbers), _pointer(scalars), *ulps,
        )  # fmt: skip
        return [out[:count] for out in outs]


def _pointer(values: np.ndarray) -> ctypes.c_void_p:
    return values.ctypes.data_as(ctypes.c_void_p)


def _pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
