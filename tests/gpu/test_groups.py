"""Col operands of groups of rows, [B, 1, N] beside x [B, S, K], in every kernel that reads cols."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from epilogues import CHANCE, error
from forced_gemm import NAN, Runner, bias_of, guarded, poison
from operand_cases import Case, build_cases, call, reference, spilled
from small_models import DiTBlock, compiled
from torch import Tensor

import fusepass
from fusepass import kernels
from fusepass.ir import Input
from fusepass.kernels.plan import winners
from fusepass.kernels.plan.configs import CONFIGS, CONFIGS_WITH_MATRICES

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional
Names = Callable[[Callable[[], object]], list[str]]
GATED = "mul(col0) add(mat0)"
WITH_MATRICES = (
    GATED,
    "mul(col0:f32) add(mat0) add(col1)",
    "v0 = mul(col0) add(mat0); v0, v0 gelu",
)
WITHOUT = ("mul(col0)", "mul(col0) add(col1:f32) silu", "mul(col0) add(row0:f32)", "mul(col0), z",
           "mul(col0) sub(col1) mul(col2:f32) mul(col3) add(col4)")  # fmt: skip


def _cases() -> list[Case]:
    found = [
        Case(config, texts[i % len(texts)], i % 2 == 0)
        for configs, texts in ((CONFIGS_WITH_MATRICES, WITH_MATRICES), (CONFIGS, WITHOUT))
        for i, config in enumerate(configs)
    ]
    found += [Case(c, GATED, i % 2 == 1) for i, c in enumerate(CONFIGS_WITH_MATRICES[:4])]
    return [case for case in dict.fromkeys(found) if case.exists]


CASES = _cases()


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    build_cases(CASES)


def _unit(case: Case) -> int:
    """The least rows of a group that the configuration takes."""
    config = case.config
    of_consumer = config.tile_m // (1 if config.pingpong else config.consumers)
    return math.lcm(64, config.tile_n // config.split if config.swapped else of_consumer)


def _operand(
    value: Input, site: torch.dtype, sizes: tuple[int, int, int], rng: random.Random
) -> Tensor:
    """Of a col the first of each group, among NaN: a part of a row, every second number, or a row
    at an odd distance."""
    batch, group, n = sizes
    dtype = site if value.dtype is None else value.dtype.in_torch
    if value.kind == "mat":
        return guarded(batch * group, n, dtype, rng).unflatten(0, (batch, group))
    if value.kind == "row":
        return torch.randn(batch, group, 1, device="cuda").to(dtype)
    step, more = rng.choice(((1, 16), (2, 0), (1, 1)))
    whole = torch.full((batch, 1, n * step + more), NAN, dtype=dtype, device="cuda")
    return whole[..., : n * step : step].copy_(torch.randn(batch, 1, n, device="cuda"))


def _force(case: Case, batch: int, group: int, n: int, k: int) -> None:
    problem = replace(case.problem(batch * group, n, k), group=group)
    winners.forced[problem] = case.config
    torch.ops.fusepass._forget_plans()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_configuration(run: Runner, case: Case) -> None:
    """Groups of one consumer's rows and of more, of which a tile or a cluster may hold several, and
    the last tile one; column by column, N below a tile and beyond."""
    rng = random.Random(str(case))
    torch.manual_seed(0)
    c, unit = case.config, _unit(case)
    for batch, group, n, k in (
        (3, unit, 264, 72 * c.split),
        (5, unit, c.tile_n + 8, 264),
        (2, 4 * unit, 1032, 64 * c.stages + 8),
    ):
        sizes = (batch, group, n)
        x = guarded(batch * group, k, case.dtype, rng).unflatten(0, (batch, group))
        w = guarded(n, k, case.dtype, rng)
        w *= k**-0.5
        bias = bias_of(n, case.dtype) if rng.random() < 0.5 else None
        operands = [_operand(i, case.dtype, sizes, rng) for i in case.epilogue.operands]
        _force(case, batch, group, n, k)
        run.answers.clear()
        poison(batch * group, n, case.dtype)
        outs = call(case, x, w, bias, operands)
        assert [a.split("|")[0] for a in run.answers] in ([str(c)], spilled(case, run))
        poison(batch * group, n, case.dtype)
        again = call(case, x, w, bias, operands)
        z = x.double() @ w.double().t() + (0 if bias is None else bias.double())
        exact = reference(case, z, operands)
        eager = reference(case, F.linear(x, w, bias), operands)
        for out, other, wanted, usual in zip(outs, again, exact, eager, strict=True):
            assert torch.equal(out, other), f"another run, other bits: {batch}x{group}x{k}->{n}"
            assert out.isfinite().all() and out.shape == wanted.shape
            most = 1.02 * error(usual.to(out.dtype), wanted) + 1e-6
            assert error(out, wanted) <= most, f"{batch}x{group}x{k}->{n}"


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_what_is_not_finite_stays_in_its_group(run: Runner, case: Case) -> None:
    rng, n, k = random.Random(0), 264, 128
    group = _unit(case)
    x = guarded(3 * group, k, case.dtype, rng).unflatten(0, (3, group))
    w = guarded(n, k, case.dtype, rng)
    operands = [_operand(i, case.dtype, (3, group, n), rng) for i in case.epilogue.operands]
    operands[0][0, 0, 7], operands[0][1, 0, 260], operands[0][2, 0, 0] = NAN, math.inf, -math.inf
    _force(case, 3, group, n, k)
    outs = call(case, x, w, None, operands)
    for out, wanted in zip(outs, reference(case, F.linear(x, w), operands), strict=True):
        assert torch.equal(out.isnan(), wanted.isnan())
        assert torch.equal(out.isinf(), wanted.isinf())


@pytest.mark.parametrize("group", [63, 96, 100, 320])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_groups_that_no_tile_divides(run: Runner, dtype: torch.dtype, group: int) -> None:
    """Of 64 rows, of float32 16, or a multiple the plan is asked; else two kernels run."""
    x, w = torch.randn(3, group, 256, device="cuda"), torch.randn(520, 256, device="cuda") / 16
    gate, mat = torch.randn(3, 1, 520, device="cuda"), torch.randn(3, group, 520, device="cuda")
    x, w, gate, mat = (t.to(dtype) for t in (x, w, gate, mat))
    torch.ops.fusepass._forget_plans()
    poison(3 * group, 520, dtype)
    (out,) = torch.ops.fusepass.gemm(x, [w], [None], GATED, [gate, mat])
    whole = group % (16 if dtype == torch.float32 else 64) == 0
    assert len(run.answers) == whole, run.answers
    wanted = x.double() @ w.double().t() * gate + mat
    assert error(out, wanted) <= error(F.linear(x, w) * gate + mat, wanted) + CHANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_few_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which each lies where it lies: groups of any size."""
    answers: list[str] = []
    ask = kernels.plan_kernel
    monkeypatch.setattr(kernels, "plan_kernel", lambda *p: answers.append(ask(*p)) or answers[-1])
    torch.ops.fusepass._forget_plans()
    for batch, group, n in ((2, 1, 4096), (4, 2, 4096), (2, 3, 4104), (1, 5, 4096)):
        x, w = (torch.randn(s, device="cuda") for s in ((batch, group, 1024), (n, 1024)))
        gate, mat = torch.randn(batch, 1, 3 * n, device="cuda"), torch.randn(batch, group, n)
        x, w, gate, mat = (t.cuda().to(dtype) for t in (x, w / 32, gate, mat))
        gate = gate[..., n : 2 * n]
        poison(batch * group, n, dtype)
        (out,) = torch.ops.fusepass.gemm(x, [w], [None], GATED, [gate, mat])
        wanted = x.double() @ w.double().t() * gate + mat
        assert error(out, wanted) <= error(F.linear(x, w) * gate + mat, wanted) + CHANCE[dtype]
    assert len(answers) == 4 and all(a.startswith("few") for a in answers), answers
    torch.ops.fusepass._forget_plans()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_dit_block(dtype: torch.dtype) -> None:
    """Compiled, in one kernel each: both gates, with the residual, and the GELU."""
    torch.manual_seed(0)
    block = DiTBlock(1152, 16).to("cuda", dtype)
    x = torch.randn(64, 256, 1152, device="cuda").to(dtype)
    c = torch.randn(64, 1152, device="cuda").to(dtype)
    with torch.no_grad():
        report = fusepass.explain(block, x, c)
        out, eager = compiled(block)(x, c), block(x, c)
        exact = copy.deepcopy(block).double()(x.double(), c.double())
    taken = [(s.epilogue, s.kernel) for s in report.sites if s.epilogue and s.m == "16384"]
    assert [text for text, _ in taken] == [GATED, "gelu_tanh", GATED], report
    assert all(str(kernel).startswith("one kernel") for _, kernel in taken), taken
    assert error(out, exact) <= 1.05 * error(eager, exact) + CHANCE[dtype]


def test_a_stream_of_patches(run_kernels: Names) -> None:
    """It starts in a convolution's order; what Inductor computes of it for the first op lies row
    after row, or that would be two kernels."""
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(DiTBlock(1152, 16) for _ in range(2)).to("cuda", torch.bfloat16)
    patch = torch.nn.Conv2d(4, 1152, 2, stride=2, device="cuda", dtype=torch.bfloat16)
    positions = torch.randn(1, 256, 1152, device="cuda", dtype=torch.bfloat16)

    def model(latents: Tensor, c: Tensor) -> Tensor:
        x = patch(latents).flatten(2).transpose(1, 2) + positions
        for block in blocks:
            x = block(x, c)
        return F.layer_norm(x, x.shape[-1:])

    latents = torch.randn(64, 4, 32, 32, device="cuda", dtype=torch.bfloat16)
    c = torch.randn(64, 1152, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        whole = compiled(model)
        out, eager = whole(latents, c), model(latents, c)
        names = run_kernels(lambda: whole(latents, c))
        for part in (blocks, patch):
            part.double()
        positions = positions.double()
        exact = model(latents.double(), c.double())
    assert error(out, exact) <= 1.05 * error(eager, exact) + CHANCE[torch.bfloat16]
    assert sum("fusepass_gemm" in name for name in names) >= 8, names
    assert not any("fusepass_pointwise" in name for name in names), names
