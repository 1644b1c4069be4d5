"""What the plan names for matrices that lie as they come, the binding runs: no promise is broken.

The binding's own checks and readers of configurations are asked, compiled for the host.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_program import build

from fusepass.ir import Epilogue
from fusepass.kernels.build import toolchain
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import few as plan_few
from fusepass.kernels.plan import gated as plan_gated
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan import tf32 as plan_tf32
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.problem import BFLOAT16, FLOAT16, FLOAT32, TF32, ir_dtype

pytestmark = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs CUDA's headers")

_FILES = ("sm90/gemm_sm90", "sm90/gemm_sm90_tf32", "sm90_f32/gemm_sm90_f32", "few_rows/few_rows")

# Reads m, n, k, w_is_kn, x_is_km, the plan's dtype, weights, mats, cols, rows of a group that has
# cols of its own (0: they are the same for all), outputs that are stored and the configuration;
# says why that kernel does not take the problem, or "runs".
_PROGRAM = (
    "".join(f'#include "{name}_launch.h"\n' for name in _FILES)
    + r"""
#include <cstdio>
#include <iostream>
#include <sstream>
using namespace fusepass;

static const char* refusal(const GemmProblem& p, const std::string& config) {
  Split90Kernels split{};
  FewRowsConfig few{};
  Gemm90Config tiles{};
  const char* text = config.c_str();
  if (split90_parse_config(text, &split)) return split90_unsupported(p);
  if (few_rows_parse_config(text, &few)) return few_rows_unsupported(p);
  if (tf32_parse_config(text, &tiles)) return tf32_unsupported(p);
  return gemm90_parse_config(text, &tiles) ? gemm90_unsupported(p) : "no configuration";
}

int main() {
  alignas(16) static char memory[16];
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    GemmProblem p{};
    int dtype, weights, mats, cols, group, stores;
    in >> p.m >> p.n >> p.k >> p.w_is_kn >> p.x_is_km >> dtype >> weights >> mats >> cols;
    in >> group >> stores;
    p.dtype = dtype == 4 ? DType::kFloat32 : static_cast<DType>(dtype);
    p.x = memory;
    p.ldx = p.x_is_km ? p.m : p.k;
    for (int i = 0; i < weights; ++i) p.w[i] = memory, p.ldw[i] = p.w_is_kn ? p.n : p.k;
    for (int i = 0; i < mats; ++i) p.mat[i] = {memory, p.dtype, p.m, 0, p.n, 1};
    for (int i = 0; i < cols; ++i) {
      p.col[i] = {memory, p.dtype, group > 0 ? group : p.m, group > 0 ? p.n : 0, 0, 1};
    }
    for (int i = 0; i < stores; ++i) p.out[i] = {memory, p.dtype, false};
    std::string config;
    std::getline(in >> std::ws, config);
    const char* why = refusal(p, config);
    std::puts(why != nullptr ? why : "runs");
  }
}
"""
)

_SIZES = (1, 2, 4, 7, 8, 16, 64, 65, 66, 72, 128, 260, 512, 770, 1001, 1024, 4096, 8192, 50257)
_ORDERS = tuple(itertools.product((False, True), repeat=2))
_TEXTS = ("gelu", "", "add(mat0)", "mul(col0) gelu", "gelu, z", "silu mul(z1)")


@pytest.fixture(scope="module")
def binding(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = (f"{file}_launch.cpp" for file in _FILES)
    return build(host_compiler, tmp_path_factory.mktemp("binding"), _PROGRAM, sources)


def _planned(
    text: str, dtype: int, m: int, n: int, k: int, w_is_kn: bool, x_is_km: bool, group: int
) -> Iterator[str]:
    """The configurations that any plan has for the problem."""
    program, bare, orders = Epilogue.parse(text), not text, (w_is_kn, x_is_km)
    gated = "z1" in text
    few = plan_few.choose(dtype, m, n, k, *orders, gated, bare)
    if few is not None:
        yield str(few)
    if dtype == FLOAT32 and not gated:
        yield plan_f32.choose(m, n, k, False, 132, *orders, bare) or ""
    if dtype == TF32 and not gated and not x_is_km:
        yield plan_tf32.choose(m, n, k, w_is_kn, 132, bare=bare) or ""
    if dtype in (FLOAT16, BFLOAT16):
        demand = Demand.of(program, ir_dtype(dtype), group=group)
        assert isinstance(demand, Demand)
        choose = plan_gated.choose if gated else plan.choose
        config = choose(m, n, k, w_is_kn, demand, 132, x_is_km)
        yield "" if config is None else str(config)


def test_what_is_planned_runs(binding: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    shapes = [tuple(rng.choice(_SIZES) for _ in range(3)) for _ in range(700)]
    lines = []
    for (m, n, k), text, dtype in itertools.product(shapes, _TEXTS, (BFLOAT16, FLOAT32, TF32)):
        orders = rng.choice(_ORDERS)
        if dtype == TF32 and text not in ("", "gelu", "gelu, z"):
            continue
        kinds = Epilogue.parse(text)
        group = rng.choice(
            [g for g in (0, 64, 256) if kinds.count("col") and m % max(g, 1) == 0] or [0]
        )
        counts = (
            1 + ("z1" in text),
            kinds.count("mat"),
            kinds.count("col"),
            group,
            len(kinds.outputs),
        )
        asked = " ".join(map(str, map(int, (m, n, k, *orders, dtype, *counts))))
        lines += [f"{asked} {c}" for c in _planned(text, dtype, m, n, k, *orders, group) if c]
    assert {line.split()[11] for line in lines} >= {"few", "split", "tf32"} and len(lines) > 500
    assert sum(line.split()[9] != "0" for line in lines) > 20
    (tmp_path / "problems").write_text("\n".join(lines) + "\n")
    printed = toolchain.run(["/bin/sh", "-c", f"'{binding}' < problems"], tmp_path)
    refused = [
        (a, line) for a, line in zip(printed.splitlines(), lines, strict=True) if a != "runs"
    ]
    assert not refused, refused[:5]
