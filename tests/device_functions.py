"""The kernels' stage functions on the host: their own source, with the GPU's instructions replaced.

The approximate instructions (2^v and 1/v) give the correctly rounded value, off by a chosen number
of units in the last place, so that their whole range of error can be tried.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np

from fusepass.kernels import toolchain
from fusepass.kernels.build import SOURCES
from fusepass.stages import STAGES

_HEADERS = ("gemm_sm90_stages.cuh", "gemm_sm90_epilogue.cuh", "stages.cuh")
_INSTRUCTIONS = {
    "ex2.approx.ftz.f32": "{out} = approximately(std::exp2(double({in_})), exp2_ulps);",
    "rcp.approx.ftz.f32": "{out} = approximately(1.0 / double({in_}), reciprocal_ulps);",
}
_ASM = re.compile(
    r'asm(?: volatile)?\(\s*"(?P<name>[\w.]+)[^"]*"'
    r'\s*:\s*"[=+]f"\((?P<out>\w+)\)(?:\s*:\s*"f"\((?P<in_>\w+)\))?\);'
)
_ANY_ASM = re.compile(r'asm(?: volatile)?\((?:[^;"]|"[^"]*")*\);')

_SHIM = """
#include <math.h>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#define __device__
#define __host__
#define __forceinline__ inline
#define FUSEPASS_BF16 1
#define FUSEPASS_STAGES mul
static int exp2_ulps, reciprocal_ulps;
static float approximately(double exact, int ulps) {
  float v = float(exact);
  if (v == 0 || !std::isfinite(v)) return v;
  for (int i = 0; i < std::abs(ulps); ++i) v = std::nextafter(v, ulps > 0 ? INFINITY : -INFINITY);
  return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
"""

_CALLS = """
using namespace fusepass;
template <class... kStages>
float of_gemm(Chain<kStages...> chain, float v) {
  float one[1] = {v};
  chain.apply(one, nullptr);
  return one[0];
}
extern "C" void call(int which, float* v, int count, int exp2, int reciprocal) {
  exp2_ulps = exp2;
  reciprocal_ulps = reciprocal;
  for (int i = 0; i < count; ++i) switch (which) {
%s  }
}
"""


def _functions() -> dict[str, str]:
    """What a kernel computes a stage without scalars by: name -> the expression for one element."""
    shared = (SOURCES / "stages.cuh").read_text()
    found = {}
    for name in (name for name, row in STAGES.items() if row.arity == 0):
        found[f"gemm {name}"] = f"of_gemm(chain_of(List<>{{}} | {name}), v[i])"
        found[f"float32 {name}"] = f"stage_{name}(v[i])"
        if f" stage_{name}_16bit(" in shared:
            found[f"hybrid {name}"] = f"stage_{name}_16bit(v[i])"
    found["gemm gelu_within_2"] = "of_gemm(chain_of(List<>{} | gelu_within_2), v[i])"
    return found


FUNCTIONS = _functions()


def _on_the_host(name: str) -> str:
    def instruction(match: re.Match[str]) -> str:
        template = _INSTRUCTIONS.get(match["name"])
        if template is None:
            return "std::abort();"
        return template.format(out=match["out"], in_=match["in_"] or match["out"])

    text = (SOURCES / name).read_text().replace("#pragma once", "")
    for header in _HEADERS:
        text = text.replace(f'#include "{header}"', "")
    return _ANY_ASM.sub("std::abort();", _ASM.sub(instruction, text))


class DeviceFunctions:
    """Compiled into ``folder``; ``contract`` says whether a product and a sum may become an FMA."""

    def __init__(self, compiler: str, folder: Path, contract: bool) -> None:
        headers = (_on_the_host(name) for name in _HEADERS)
        source, library = folder / "functions.cpp", folder / "functions.so"
        cases = (f"case {i}: v[i] = {call}; break;" for i, call in enumerate(FUNCTIONS.values()))
        source.write_text("\n".join((_SHIM, *headers, _CALLS % "\n".join(cases))))
        flags = ["-std=c++17", "-O2", "-w", "-shared", "-fPIC", "-march=native", f"-I{SOURCES}"]
        mode = "fast" if contract else "off"
        command = [compiler, *flags, f"-ffp-contract={mode}", str(source), "-o", str(library)]
        toolchain.run(command)
        self._library = ctypes.CDLL(str(library))

    def __call__(
        self, name: str, z: np.ndarray, exp2_ulps: int, reciprocal_ulps: int
    ) -> np.ndarray:
        """``name`` of FUNCTIONS for every element of ``z``, float32."""
        v = np.array(z, dtype=np.float32, copy=True)
        pointer = v.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._library.call(list(FUNCTIONS).index(name), pointer, v.size, exp2_ulps, reciprocal_ulps)
        return v
