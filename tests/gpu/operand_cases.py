"""Every configuration that the plan can choose, with programs that read and store what it takes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import torch
from forced_gemm import NAN, Runner, Variant, guarded
from torch import Tensor

from fusepass import Epilogue, kernels
from fusepass.ir import DType, Input
from fusepass.kernels.build.build import build_cubin, build_cubins
from fusepass.kernels.build.toolchain import SpillError
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan import winners
from fusepass.kernels.plan.configs import (
    CONFIGS,
    CONFIGS_WITH_MATRICES,
    CONFIGS_WITH_TWO_MATRICES,
)
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.narrow import NARROW_TILES
from fusepass.kernels.plan.problem import Problem, plan_code

# As many vectors as the kernel takes, and what a batch norm and a scale make of them.
VECTORS = (
    "mul(col0) sub(col1) mul(col2:f32) mul(col3) add(col4)",
    "mul(row0) sub(row1) mul(row2:f32) mul(row3) add(row4:f32) mul(row5)",
    "mul(col0:f32) sub(row0) mul(col1:f32) mul(col2) add(row1:f32) mul(col3) add(col4) silu",
    "mul(col0:f32) sub(col1:f32) mul(col2:f32) mul(col3:f32) "
    "add(col4:f32) mul(col5:f32) add(col6:f32) mul(col7:f32)",
    "sub(col0) mul(col1) mul(col2) add(col3) mul(col4) add(col5), z",
)
PROGRAMS = (
    "mul(0.5) clamp(-2.0, 2.0) gelu",
    "add(mat0)",
    "mul(col0) add(mat0)",
    "add(mat0) gelu",
    "mul(col0:f32) mul(row0) add(mat0) add(row1:f32) add(col1)",
    f"{VECTORS[0]} mul(col5) add(mat0)",
    "v0 = add(mat0); v0, v0 gelu",
    "add(mat0:f32) store:f32",
    "silu mul(mat0), z",
)
PAIRS = (
    "v0 = mul(mat0) add(mat1); v0 gelu, z, v0",
    "mat0 silu mul(z), mul(mat1)",
    "add(mat0) add(mat1)",
    "mul(mat0:bool) mul(1.25) add(mat1)",
)
MASKED = (
    "mul(mat0:bool)",
    "gelu where(mat0:bool, _, 0.0)",
    "v0 = mul(mat0:bool) mul(1.25); v0 gelu, v0",
    "mul(mat0:bool) store:f32",
)
SUMS = (
    "v0 = mul(mat0); v0, v0 col_sum",
    "v0 = mat0 tanh square rsub(1.0) mul(z); v0, v0 col_sum:f32, v0 square col_sum",
    "v0 = mat0 gelu_derivative mul(z); v0, v0 mul(col0), v0 col_sum",
    "v0 = mul(mat0:bool) mul(1.25); v0, v0 col_sum",
)
# Several results without a matrix.
RESULTS = (
    "gelu, tanh",
    "z, col_sum",
    "mul(0.5) store:f32",
    "v0 = mul(0.5); v0 store:f32, v0 col_sum:f32, v0 square col_sum",
    "mul(col0), z, sigmoid, abs store:f32",
)


@dataclass(frozen=True)
class Case(Variant):
    """One kernel."""

    @property
    def exists(self) -> bool:
        demand = Demand.of(self.epilogue, DType.BF16 if self.bf16 else DType.F16)
        assert isinstance(demand, Demand), demand
        whole = not self.w_is_kn or self.config.swapped or self.config.tile_n % 64 == 0
        return whole and plan.why_not(self.config, demand) is None

    def problem(self, m: int, n: int, k: int) -> Problem:
        return Problem(str(self.epilogue), plan_code(self.dtype), m, n, k, self.w_is_kn, False)


def build_cases(some: Iterable[Case]) -> None:
    """All of them at once; where one spills the plan takes another, which is no failure here."""
    assert kernels.load_binding()
    with suppress(SpillError):
        build_cubins([("sm90/gemm_sm90.cu", c.defines(), "90a", c.include) for c in some])


def cases(each: int) -> list[Case]:
    """So many programs of each configuration with matrices, three of each without, by turns;
    swapped ones have column sums as well."""
    found = []
    for i, config in enumerate((*CONFIGS, *NARROW_TILES)):
        some = [t for t in RESULTS if config.swapped or "col_sum" not in t]
        texts = (PROGRAMS[0], some[i % len(some)], VECTORS[i % len(VECTORS)])
        found += [Case(config, t, i % 2 == 0, False) for t in texts]
    for i, config in enumerate(CONFIGS_WITH_MATRICES):
        some = [PROGRAMS[1:][(i + j * 3) % len(PROGRAMS[1:])] for j in range(each)]
        some += [SUMS[i % len(SUMS)]] * config.swapped
        some.insert(0, MASKED[i % len(MASKED)])
        for j, text in enumerate(some):
            found.append(Case(config, text, (i + j) % 2 == 0, 0 < j == len(some) - 1))
    for i, config in enumerate(CONFIGS_WITH_TWO_MATRICES):
        found += [Case(config, t, (i + j) % 2 == 0, False) for j, t in enumerate(PAIRS)]
    return [case for case in found if case.exists]


def operands_of(case: Case, m: int, n: int, rng: random.Random) -> list[Tensor]:
    """As ``operands_for`` a program."""
    return operands_for(case.epilogue, case.dtype, m, n, rng)


def operands_for(
    program: Epilogue, site: torch.dtype, m: int, n: int, rng: random.Random
) -> list[Tensor]:
    """Random normal; matrices in rows of their own, vectors contiguous or not, among NaN."""
    return [_operand(i, site, m, n, rng) for i in program.operands]


def _operand(value: Input, site: torch.dtype, m: int, n: int, rng: random.Random) -> Tensor:
    dtype = site if value.dtype is None else value.dtype.in_torch
    if dtype == torch.bool:
        return _mask(m, n, rng)
    if value.kind == "mat":
        return guarded(m, n, dtype, rng)
    length, step = (n if value.kind == "col" else m), rng.choice((1, 1, 3))
    whole = torch.full((length + 2, step), NAN, dtype=dtype, device="cuda")
    vector = whole[1:-1, step // 2].copy_(torch.randn(length, device="cuda"))
    return vector if value.kind == "col" else vector[:, None]


def _mask(m: int, n: int, rng: random.Random) -> Tensor:
    """Rows at multiples of 16 bytes, in a place of their own."""
    before, pad = rng.randint(0, 3), 16 * rng.randint(0, 2)
    whole = torch.rand(before + m + 2, -(-n // 16) * 16 + 2 * pad, device="cuda") < 0.7
    return whole[before : before + m, pad : pad + n]


def force(case: Case, m: int, n: int, k: int) -> None:
    """What the next call of that size runs."""
    winners.forced[case.problem(m, n, k)] = case.config
    torch.ops.fusepass._forget_plans()


def call(
    case: Case, x: Tensor, w: Tensor, bias: Tensor | None, operands: list[Tensor]
) -> list[Tensor]:
    results: list[Tensor] = torch.ops.fusepass.gemm(x, [w], [bias], case.text, operands)
    return results


def reference(case: Case, z: Tensor, operands: list[Tensor]) -> tuple[Tensor, ...]:
    """The program of ``z`` in z's dtype."""
    given = (o if o.dtype == torch.bool else o.to(z.dtype) for o in operands)
    results = case.epilogue.reference(z, *given)
    return results if isinstance(results, tuple) else (results,)


def spilled(case: Case, run: Runner) -> list[str]:
    """The configuration that took the place of one that has too few registers for the program."""
    taken = [a.split("|")[0] for a in run.answers]
    try:
        build_cubin("sm90/gemm_sm90.cu", case.defines(), "90a", case.include)
    except SpillError:
        return taken
    return [str(case.config)]
