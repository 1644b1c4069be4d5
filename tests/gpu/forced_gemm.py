"""Every configuration of the 16-bit GEMM, forced, whatever the plan would have chosen."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from emitted import include
from epilogues import Scalar, chain, steps
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue, kernels
from fusepass.ir import Input
from fusepass.kernels.build.build import build_cubins
from fusepass.kernels.plan import few as plan_few
from fusepass.kernels.plan import narrow as plan_narrow
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan import winners
from fusepass.kernels.plan.problem import Problem, plan_code

CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"
TEXTS = (
    CHAIN,
    "mul($0) gelu_tanh",
    "div(1.7) clamp($0, $1) mul(-1.5) gelu",
    "clamp(0.0, inf)",
    "gelu",
    "clamp(-inf, $0) div($1)",
    "mul(-0.7) gelu clamp(-0.1, 3.0)",
    "gelu_tanh mul($0)",
    "",
)
NAN = float("nan")


@dataclass(frozen=True)
class Variant:
    """One kernel, but for the second output, and what it is called with."""

    config: plan.Config
    text: str
    bf16: bool
    w_is_kn: bool = False
    x_is_km: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float16

    @property
    def epilogue(self) -> Epilogue:
        return Epilogue.parse(self.text)

    def defines(self, with_preact: bool = False) -> dict[str, object]:
        orders = (self.w_is_kn, with_preact, self.x_is_km)
        return plan.defines(self.config, self.bf16, *orders)

    @property
    def include(self) -> str:
        return include(self.text, "bf16" if self.bf16 else "f16")

    def __str__(self) -> str:
        layout = ("[K, M] " if self.x_is_km else "") + ("[K, N]" if self.w_is_kn else "[N, K]")
        return f"{self.config}, {layout}, {self.text}, {'bf16' if self.bf16 else 'fp16'}"


# What the kernel can be besides what the plan chooses among: each form with each order of operands.
FORMS = tuple(
    plan.Config.parse(text)
    for text in (
        "128x192 pingpong cluster1 stages4 group12",
        "192x128 pingpong cluster2 stages4 group12 beside",
        "128x192 pingpong cluster2 stages4 group12 swapped",
        "128x128 cooperative cluster2 stages6 group12 swapped beside",
        "192x128 cooperative cluster1 stages4 group12 swapped",
        "192x192 cooperative cluster1 stages4 group12 split2",
        "128x128 cooperative cluster1 stages6 group12 split4",
        "128x256 cooperative cluster1 stages4 group12 swapped split2",
        "128x192 cooperative cluster2 stages4 group12 swapped beside",
        "128x128 pingpong cluster1 stages5 group12 swapped",
    )
)
# These have columns that no operand of the other order has: boxes of 64.
NARROW_FORMS = tuple(
    plan.Config.parse(text)
    for text in (
        "128x160 pingpong cluster2 stages5 group12 swapped",
        "128x208 pingpong cluster1 stages4 group12 swapped",
        "64x40 pingpong cluster1 stages8 group8 swapped",
        "256x208 cooperative cluster2 stages3 group12 swapped",
        "256x144 cooperative cluster1 stages4 group12 swapped",
        "256x200 cooperative cluster2 stages3 group12 swapped beside",
    )
)
ORDERS = ((False, False), (True, False), (False, True), (True, True))  # w_is_kn, x_is_km


def _text(config: plan.Config, i: int) -> str:
    """One of ``TEXTS``. Three consumers have no registers for two numbers of the run, a division
    and a GELU: there the plan takes another configuration."""
    text = TEXTS[i % len(TEXTS)]
    return _text(config, i + 1) if config.turns > 2 and "div(1.7) clamp($0, $1)" in text else text


def _variants() -> list[Variant]:
    found = [Variant(c, _text(c, i), i % 2 == 0, False) for i, c in enumerate(plan.CONFIGS)]
    whole = [c for c in plan.CONFIGS if c.tile_n % 64 == 0][:5]
    found += [Variant(c, TEXTS[-1 - i], i % 2 == 1, True) for i, c in enumerate(whole)]
    for i, c in enumerate(FORMS):
        for j, orders in enumerate(ORDERS):
            found.append(Variant(c, TEXTS[(i + j) % len(TEXTS)], (i + j) % 2 == 0, *orders))
    found += [
        Variant(c, "gelu_tanh mul($0)", i % 2 == 0, False)
        for i, c in enumerate((*NARROW_FORMS, *plan_narrow.NARROW_TILES))
    ]
    return found


VARIANTS = _variants()
SIMPLE = Variant(plan.CONFIGS[0], CHAIN, True, False)
EVERY_VALUE = [
    Variant(plan.CONFIGS[0], text, bf16, False)
    for text in ("gelu", "gelu_tanh", CHAIN, "mul(0.7) gelu mul(1.3)")
    for bf16 in (True, False)
]


def build(wanted: Iterable[tuple[Variant, bool]]) -> None:
    """All the kernels at once. One that spills fails: the plan chooses among all of ``CONFIGS``."""
    assert kernels.load_binding()
    build_cubins([("sm90/gemm_sm90.cu", v.defines(p), "90a", v.include) for v, p in wanted])


class Runner:
    """Calls the ops with a forced configuration and sees to it that it is what runs."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.plan_kernel = kernels.plan_kernel

    def answer(self, *problem: object) -> str:
        self.answers.append(self.plan_kernel(*problem))
        return self.answers[-1]

    def force(self, variant: Variant, x: Tensor, n: int, with_preact: bool) -> None:
        k = x.shape[-1]
        problem = Problem(
            variant.text,
            plan_code(variant.dtype),
            x.numel() // k,
            n,
            k,
            variant.w_is_kn,
            with_preact,
            variant.x_is_km,
        )
        for biased in {False, problem.bare}:  # the plan of a product alone knows of its bias
            winners.forced[replace(problem, biased=biased)] = variant.config
        torch.ops.fusepass._forget_plans()

    def __call__(
        self, variant: Variant, x: Tensor, w: Tensor, *more: Any, with_preact: bool = False
    ) -> tuple[Tensor, ...]:
        self.force(variant, x, w.shape[0], with_preact)
        self.answers.clear()
        results = call(variant, x, w, *more, with_preact=with_preact)
        assert len(self.answers) == 1, "the op asked for no kernel: it took the hybrid"
        assert self.answers[0].split("|")[0] == str(variant.config)
        return results


def call(
    variant: Variant,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    operands: Sequence[Tensor] = (),
    *,
    with_preact: bool = False,
) -> tuple[Tensor, ...]:
    """The op, with whatever kernel the plan has for it."""
    ops = torch.ops.fusepass
    op = ops.linear_with_preact if with_preact else ops.linear
    result = op(x, w, bias, variant.text, list(operands))
    return result if with_preact else (result,)


@contextmanager
def forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    runner = Runner()
    monkeypatch.setattr(kernels, "plan_kernel", runner.answer)
    monkeypatch.setattr(plan, "_MIN_M", 1)  # few rows are others', too
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)
    try:
        yield runner
    finally:
        winners.forced.clear()
        torch.ops.fusepass._forget_plans()


# --- inputs among NaN, outputs in memory full of NaN ----------------------------------------------


def guarded(rows: int, columns: int, dtype: torch.dtype, rng: random.Random) -> Tensor:
    """Random normal, row-strided and at an offset; whatever is not of it is NaN."""
    before, after, pad = rng.randint(0, 3), rng.randint(1, 3), 8 * rng.randint(0, 3)
    stride = -(-columns // 8) * 8 + pad + 8 * rng.randint(0, 2)
    whole = torch.full((before + rows + after, stride), NAN, dtype=dtype, device="cuda")
    inner = whole[before : before + rows, pad : pad + columns]
    return inner.copy_(torch.randn(rows, columns, device="cuda"))


def stored(rows: int, k: int, transposed: bool, dtype: torch.dtype, rng: random.Random) -> Tensor:
    """[rows, k] as ``guarded``; ``transposed``: of a matrix [k, rows]."""
    return guarded(k, rows, dtype, rng).t() if transposed else guarded(rows, k, dtype, rng)


def x_of(m: int, k: int, variant: Variant, rng: random.Random) -> Tensor:
    return stored(m, k, variant.x_is_km, variant.dtype, rng)


def weight_of(n: int, k: int, variant: Variant, rng: random.Random) -> Tensor:
    weight = stored(n, k, variant.w_is_kn, variant.dtype, rng)
    weight *= k**-0.5
    return weight


def bias_of(n: int, dtype: torch.dtype) -> Tensor:
    whole = torch.full((n + 16,), NAN, dtype=dtype, device="cuda")
    return whole[8 : 8 + n].copy_(torch.randn(n, device="cuda"))


def poison(m: int, n: int, dtype: torch.dtype) -> None:
    """What the allocator hands out next for an output is full of NaN."""
    full = [torch.full((m, n), NAN, dtype=dtype, device="cuda") for _ in range(6)]
    del full


def shapes(rng: random.Random, config: plan.Config) -> Iterator[tuple[int, int, int]]:
    edges_m = [
        1,
        2,
        63,
        64,
        65,
        config.tile_m - 1,
        config.tile_m,
        config.tile_m + 1,
        2 * config.tile_m,
    ]
    edges_n = [8, config.tile_n - 8, config.tile_n, config.tile_n + 8, 3 * config.tile_n]
    edges_k = [8, 56, 64, 72, 64 * config.stages, 64 * config.stages + 8, 1024]
    for _ in range(8):
        yield rng.choice(edges_m), rng.choice(edges_n), rng.choice(edges_k)
        yield rng.randint(1, 3000), 8 * rng.randint(1, 250), 8 * rng.randint(1, 150)


def with_other_numbers(variant: Variant, rng: random.Random) -> Variant:
    """The same stages with random constants: bounds infinite or crossed among them."""
    inf = float("inf")
    choices = {
        "factor": lambda: rng.choice([0.5, 2.0, -1.0, rng.choice([-1, 1]) * rng.uniform(0.1, 3)]),
        "low": lambda: rng.choice([-inf, -2.0, 0.0, rng.uniform(-3, 1)]),
        "high": lambda: rng.choice([inf, 2.0, 6.0, rng.uniform(-1, 3)]),
    }

    def other(name: str, scalars: tuple[Scalar, ...]) -> tuple[str, tuple[Scalar, ...]]:
        kinds = ("low", "high") if name == "clamp" else ("factor",)
        pairs = zip(scalars, kinds, strict=False)
        return name, tuple(v if isinstance(v, Input) else choices[k]() for v, k in pairs)

    return replace(variant, text=str(chain([other(*step) for step in steps(variant.epilogue)])))
