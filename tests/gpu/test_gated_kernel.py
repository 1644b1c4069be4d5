"""Two weights of one x on Hopper: every configuration of the plan, against float64."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from emitted import include
from epilogues import error
from forced_gemm import bias_of, poison, stored
from torch import Tensor

from fusepass import kernels
from fusepass.kernels.build.build import build_cubins
from fusepass.kernels.plan import few as plan_few
from fusepass.kernels.plan import gated as plan_gated
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.demand import Demand

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional
ACTIVATIONS = {
    "silu mul(z1)": F.silu,
    "gelu mul(z1)": F.gelu,
    "gelu_tanh mul(z1)": lambda z: F.gelu(z, approximate="tanh"),
    "clamp(0.0, inf) mul(z1)": F.relu,
    "sigmoid mul(z1)": torch.sigmoid,
}
KEPT = ", z, z1"


class Variant(NamedTuple):
    """A kernel with two weights."""

    config: plan.Config
    text: str
    bf16: bool
    w_is_kn: bool
    x_is_km: bool
    kept: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float16

    @property
    def whole(self) -> str:
        return self.text + KEPT * self.kept

    def __str__(self) -> str:
        orders = ("[K, M] " if self.x_is_km else "") + ("[K, N]" if self.w_is_kn else "[N, K]")
        return f"{self.config}, {orders}, {self.whole}, {'bf16' if self.bf16 else 'fp16'}"


def _variants() -> Iterator[Variant]:
    texts = list(ACTIVATIONS)
    for i, config in enumerate(plan_gated.CONFIGS):
        for j, kept in enumerate((False, True)):
            demand = Demand(stores=(2,) * (3 if kept else 1), gated=True)
            if plan.why_not(config, demand) is not None:
                continue
            yield Variant(config, texts[(i + j) % len(texts)], i % 2 == 0, False, False, kept)
        for orders in ((True, False), (False, True), (True, True)):
            if plan.fits(config, (4096, 4096, 4096), *orders, 132, Demand(gated=True)):
                yield Variant(config, texts[i % len(texts)], i % 2 == 1, *orders, False)


VARIANTS = list(_variants())


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    assert kernels.load_binding()
    build_cubins(
        [
            (
                "sm90/gemm_sm90.cu",
                plan.defines(v.config, v.bf16, v.w_is_kn, False, v.x_is_km),
                "90a",
                include(v.whole, "bf16" if v.bf16 else "f16"),
            )
            for v in VARIANTS
        ]
    )


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the op was told to run, each time that it asked."""
    told: list[str] = []
    ask = kernels.plan_kernel

    def answer(*problem: object) -> str:
        told.append(ask(*problem))
        return told[-1]

    monkeypatch.setattr(kernels, "plan_kernel", answer)
    yield told
    torch.ops.fusepass._forget_plans()


def forced(monkeypatch: pytest.MonkeyPatch, config: plan.Config) -> None:
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)
    monkeypatch.setattr(plan_gated, "choose", lambda *question: config)
    monkeypatch.setattr(plan_gated, "candidates", lambda *question: [config])
    torch.ops.fusepass._forget_plans()


def shapes(rng: random.Random, config: plan.Config) -> Iterator[tuple[int, int, int]]:
    edges_m = [1, 63, 65, config.tile_m - 1, config.tile_m + 1, 2 * config.tile_m]
    edges_n = [8, config.tile_n // 2 // 8 * 8, config.tile_n // 2 // 8 * 8 + 8, 3 * config.tile_n]
    edges_k = [8, 64, 72, 64 * config.stages + 8, 1024]
    found = 0
    while found < 8:
        shape = rng.choice(edges_m), rng.choice(edges_n), rng.choice(edges_k)
        if found % 2:
            shape = rng.randint(1, 3000), 8 * rng.randint(1, 250), 8 * rng.randint(1, 150)
        if shape[0] * shape[1] >= 512:  # of a few elements, chance says whose error is larger
            found += 1
            yield shape


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_worse_than_eager_on_random_shapes(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], variant: Variant
) -> None:
    forced(monkeypatch, variant.config)
    rng = random.Random(str(variant))
    torch.manual_seed(0)
    activation = ACTIVATIONS[variant.text]
    for index, (m, n, k) in enumerate(shapes(rng, variant.config)):
        x = stored(m, k, variant.x_is_km, variant.dtype, rng)
        weights = [stored(n, k, variant.w_is_kn, variant.dtype, rng) for _ in range(2)]
        for weight in weights:
            weight *= k**-0.5
        biases = [bias_of(n, variant.dtype) if index % 4 in (0, 1 + i) else None for i in (0, 1)]
        outs = run(variant, x, weights, biases)
        assert answers[-1].split("|")[0] == str(variant.config), "another kernel ran"
        where = f"{m}x{k}->{n}, biases {[b is not None for b in biases]}"
        pairs = list(zip(weights, biases, strict=True))
        exact = [x.double() @ w.double().t() + (0 if b is None else b.double()) for w, b in pairs]
        eager = [F.linear(x, w, b) for w, b in pairs]
        wanted = [activation(exact[0]) * exact[1], *exact]
        theirs = [activation(eager[0]) * eager[1], *eager]
        for out, right, other in zip(outs, wanted, theirs, strict=False):
            assert out.is_contiguous() and out.shape == right.shape, where
            assert error(out, right) <= 1.02 * error(other, right) + 2e-3 * (out.numel() < 512), (
                where
            )
        for first, again in zip(outs, run(variant, x, weights, biases), strict=True):
            assert torch.equal(first, again), f"another run, other bits: {where}"


def run(
    variant: Variant, x: Tensor, weights: list[Tensor], biases: list[Tensor | None]
) -> list[Tensor]:
    poison(x.shape[0], weights[0].shape[0], variant.dtype)
    outs: list[Tensor] = torch.ops.fusepass.gemm(x, weights, biases, variant.whole, [])
    assert len(outs) == (3 if variant.kept else 1)
    return outs


@pytest.mark.parametrize("text", ["silu mul(z1)", "gelu mul(z1), z, z1"])
def test_not_finite_as_eager(text: str) -> None:
    torch.manual_seed(0)
    x, gate, up = (torch.randn(s, 256, device="cuda").bfloat16() for s in (300, 264, 264))
    for row, value in ((7, float("nan")), (130, float("inf")), (299, -float("inf"))):
        x[row, 40] = value
    out, *kept = torch.ops.fusepass.gemm(x, [gate, up], [None, None], text, [])
    z, z1 = F.linear(x, gate), F.linear(x, up)
    wanted = (F.silu if "silu" in text else F.gelu)(z) * z1
    for found, right in zip((out, *kept), (wanted, z, z1), strict=False):
        torch.testing.assert_close(found, right, rtol=2e-2, atol=0.5, equal_nan=True)


def test_halves_of_one_weight_are_read_where_they_lie(answers: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 500, 896, device="cuda").bfloat16()
    both, bias = torch.randn(9728, 896, device="cuda").bfloat16() / 30, None
    torch.ops.fusepass._forget_plans()
    before = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    (out,) = torch.ops.fusepass.gemm(x, list(both.chunk(2)), [bias, bias], "silu mul(z1)", [])
    assert answers and answers[-1] != "hybrid"
    used = torch.cuda.max_memory_allocated() - before
    assert used < both.numel()  # no copy of a weight
    z, z1 = F.linear(x, both).float().chunk(2, dim=-1)
    torch.testing.assert_close(out.float(), F.silu(z) * z1, rtol=2e-2, atol=2e-2)
