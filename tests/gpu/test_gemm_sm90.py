"""The 16-bit GEMM on Hopper: shapes, layouts, epilogues and values, in every configuration."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from epilogues import eager, error, random_operands, without_cancellation
from forced_gemm import (
    EVERY_VALUE,
    NAN,
    TEXTS,
    VARIANTS,
    Runner,
    Variant,
    bias_of,
    build,
    call,
    poison,
    shapes,
    weight_of,
    with_other_numbers,
    x_of,
)
from torch import Tensor

from fusepass.kernels.plan import sm90 as plan

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    both = [(v, preact) for v in VARIANTS for preact in (False, True)]
    build([*both, *((v, False) for v in EVERY_VALUE)])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_worse_than_eager_on_random_shapes(run: Runner, variant: Variant) -> None:
    rng = random.Random(str(variant))
    torch.manual_seed(0)
    for index, (m, n, k) in enumerate(shapes(rng, variant.config)):
        # Some numbers have a kernel of their own: each variant's stand among random ones.
        one = variant if index % 4 < 2 else with_other_numbers(variant, rng)
        has_bias = rng.random() < 0.6
        where = f"{m}x{k}->{n}, bias {has_bias}, {one}"
        operands = random_operands(one.epilogue, index, dtype=one.dtype, device="cuda")
        samples: list[Results] = []
        while m * n * len(samples) < 2048:  # of a few elements, chance says whose error is larger
            forced_or_known = call if samples else run
            samples.append(_sample(forced_or_known, one, (m, n, k), has_bias, operands, rng, where))
        columns = zip(*samples, strict=True)
        pooled = Results(*(torch.cat([t.flatten() for t in each]) for each in columns))
        eager_error = error(pooled.eager_z, pooled.exact_z)
        assert error(pooled.z, pooled.exact_z) <= 1.02 * eager_error + 1e-6, where
        worst = 1.02 * error(pooled.eager_out, pooled.exact) + 1e-6
        assert error(pooled.out, pooled.exact) <= worst, where
        assert error(pooled.alone, pooled.exact) <= worst, where


class Results(NamedTuple):
    out: Tensor
    z: Tensor
    alone: Tensor  # out without z
    eager_out: Tensor
    eager_z: Tensor
    exact: Tensor  # in float64
    exact_z: Tensor


def _sample(
    run: Callable[..., tuple[Tensor, ...]],
    variant: Variant,
    shape: tuple[int, int, int],
    has_bias: bool,
    operands: list[Tensor],
    rng: random.Random,
    where: str,
) -> Results:
    m, n, k = shape
    epilogue, dtype = variant.epilogue, variant.dtype
    x, w = x_of(m, k, variant, rng), weight_of(n, k, variant, rng)
    bias = bias_of(n, dtype) if has_bias else None
    poison(m, n, dtype)
    out, z = run(variant, x, w, bias, operands, with_preact=True)
    poison(m, n, dtype)
    (alone,) = run(variant, x, w, bias, operands)
    assert out.is_contiguous() and z.is_contiguous() and out.shape == z.shape == (m, n)
    assert out.isfinite().all() and z.isfinite().all() and alone.isfinite().all(), where
    again = (*call(variant, x, w, bias, operands, with_preact=True),
             *call(variant, x, w, bias, operands))  # fmt: skip
    for first, second in zip((out, z, alone), again, strict=True):
        assert torch.equal(first, second), f"another run, other bits: {where}"
    exact_z = x.double() @ w.double().t() + (0 if bias is None else bias.double())
    exact = epilogue.reference(exact_z, *(v.double() for v in operands))
    eager_z = F.linear(x, w, bias)
    eager_out = eager(eager_z, epilogue, operands)
    return Results(out, z, alone, eager_out, eager_z, exact, exact_z)


def test_batches_and_host_operands(run: Runner) -> None:
    variant = Variant(plan.CONFIGS[1], TEXTS[1], False, False)
    x = torch.randn(3, 50, 128, device="cuda", dtype=variant.dtype)
    w = torch.randn(200, 128, device="cuda", dtype=variant.dtype) / 11
    wanted = F.gelu(F.linear(x.float(), w.float()) * 0.7, approximate="tanh")
    for operand in (torch.tensor(0.7), torch.tensor(0.7, device="cuda")):
        (out,) = run(variant, x, w, None, [operand])
        torch.testing.assert_close(out.float(), wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[-1]], ids=str)
def test_not_finite_as_eager(run: Runner, variant: Variant) -> None:
    rng = random.Random(0)
    x, w = x_of(300, 256, variant, rng), weight_of(264, 256, variant, rng)
    operands = random_operands(variant.epilogue, 0, dtype=variant.dtype, device="cuda")
    for row, value in ((7, NAN), (130, float("inf")), (299, -float("inf"))):
        x[row, 40] = value
    out, z = run(variant, x, w, None, operands, with_preact=True)
    eager_z = F.linear(x, w)
    torch.testing.assert_close(z, eager_z, rtol=2e-2, atol=2e-2, equal_nan=True)
    wanted = eager(eager_z, variant.epilogue, operands)
    torch.testing.assert_close(out, wanted, rtol=2e-2, atol=2e-2, equal_nan=True)


@pytest.mark.parametrize("variant", EVERY_VALUE, ids=str)
def test_every_16_bit_value(run: Runner, variant: Variant) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32, device="cuda").to(torch.int16)
    z = bits.view(variant.dtype)[:, None]
    x = torch.cat([z, torch.zeros(2**16, 7, device="cuda", dtype=z.dtype)], dim=1)
    w = torch.zeros(16, 8, device="cuda", dtype=z.dtype)
    w[:, 0] = 1
    (all_columns,) = run(variant, x, w)
    got = all_columns[:, :1]
    in_float32 = variant.epilogue.reference(z.float())
    assert torch.equal(got.isnan(), in_float32.isnan())
    number = ~got.isnan()
    assert torch.equal(all_columns[number[:, 0]], got[number].expand(16, -1).t())
    exact = without_cancellation(variant.epilogue, z.double())
    info = torch.finfo(z.dtype)
    finite = exact.isfinite() & (exact.abs() <= info.max)
    assert torch.equal(got[~finite & number], exact[~finite & number].to(z.dtype))
    got, exact = got[finite].double(), exact[finite]
    unit = torch.exp2(exact.abs().clamp_min(info.smallest_normal).log2().floor()) * info.eps
    # docs/numerics.md has the bounds. What a GELU is off by, a factor behind it multiplies.
    relative = 2.0**-12 if variant.bf16 else 2.0**-15
    factor = float("".join(re.findall(r"gelu mul\((.+)\)$", str(variant.epilogue))) or 1)
    absolute = 2.0**-44 * max(1.0, abs(factor))
    beyond = (got - exact).abs() - unit / 2 - (relative * exact.abs()).clamp_min(absolute)
    worst = int(beyond.argmax())
    assert float(beyond[worst]) <= 0, f"{float(got[worst])}, not {float(exact[worst])}"
