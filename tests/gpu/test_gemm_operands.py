"""What the 16-bit GEMM on Hopper reads and stores besides: in every configuration that there is."""

from __future__ import annotations

import random

import pytest
import torch
from epilogues import error
from forced_gemm import NAN, Runner, bias_of, guarded, poison
from operand_cases import Case, build_cases, call, cases, force, operands_of, reference, spilled

from fusepass.kernels.plan import winners
from fusepass.kernels.plan.configs import CONFIGS_WITH_MATRICES

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional
CASES = cases(2)
ADD = Case(CONFIGS_WITH_MATRICES[0], "add(mat0)", True)


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Those of the tests that run."""
    marked = (getattr(item, "callspec", None) for item in request.session.items)
    asked = {c.params["case"] for c in marked if c is not None and "case" in c.params}
    build_cases([ADD, *(case for case in CASES if case in asked)])


def inputs(
    case: Case, m: int, n: int, k: int, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x = guarded(m, k, case.dtype, rng)
    w = guarded(k, n, case.dtype, rng).t() if case.w_is_kn else guarded(n, k, case.dtype, rng)
    w *= k**-0.5
    return x, w, bias_of(n, case.dtype) if rng.random() < 0.5 else None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_worse_than_eager(run: Runner, case: Case) -> None:
    rng = random.Random(str(case))
    torch.manual_seed(0)
    c = case.config
    for m, n, k in (
        (37, 264, 72 * c.split),
        (777, 520, 264),
        (2 * c.tile_m + 1, c.tile_n + 8, 64 * c.stages + 8),
        (1500, 1032, 136),
    ):
        x, w, bias = inputs(case, m, n, k, rng)
        operands = operands_of(case, m, n, rng)
        force(case, m, n, k)
        run.answers.clear()
        poison(m, n, case.dtype)
        outs = call(case, x, w, bias, operands)
        assert [a.split("|")[0] for a in run.answers] in ([str(c)], spilled(case, run)), run.answers
        poison(m, n, case.dtype)
        again = call(case, x, w, bias, operands)
        z = x.double() @ w.double().t() + (0 if bias is None else bias.double())
        exact = reference(case, z, operands)
        eager = reference(case, F.linear(x, w, bias), operands)
        for out, other, wanted, usual in zip(outs, again, exact, eager, strict=True):
            assert torch.equal(out, other), f"another run, other bits: {m}x{k}->{n}"
            assert out.isfinite().all() and out.shape == wanted.shape
            most = 1.02 * error(usual.to(out.dtype), wanted) + 1e-6
            assert error(out, wanted) <= most, f"{m}x{k}->{n}, bias {bias is not None}"


@pytest.mark.parametrize("case", [c for c in CASES if "mat0" in c.text][::5], ids=str)
def test_not_finite_as_eager(run: Runner, case: Case) -> None:
    rng = random.Random(0)
    m, n, k = 300, 264, 128
    x, w, bias = inputs(case, m, n, k, rng)
    operands = operands_of(case, m, n, rng)
    values = (NAN, float("inf"), -float("inf"))
    for row, value in zip((7, 130, 299), values, strict=True):
        x[row, 40] = value
    for operand in operands:
        if operand.shape == (m, n):
            for row, value in zip((3, 131, 298), values, strict=True):
                operand[row, 200] = value
    force(case, m, n, k)
    outs = call(case, x, w, bias, operands)
    for out, wanted in zip(outs, reference(case, F.linear(x, w, bias), operands), strict=True):
        torch.testing.assert_close(
            out.float(), wanted.float(), rtol=3e-2, atol=3e-2, equal_nan=True
        )


def test_a_matrix_whose_rows_tma_cannot_read_takes_two_kernels(run: Runner) -> None:
    """A row that does not start at 16 bytes; one matrix expanded over a batch."""
    x = torch.randn(300, 128, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(256, 128, device="cuda", dtype=torch.bfloat16)
    odd = torch.randn(300, 257, device="cuda", dtype=torch.bfloat16)[:, 1:]
    expanded = torch.randn(1, 256, device="cuda", dtype=torch.bfloat16).expand(300, 256)
    transposed = torch.randn(256, 300, device="cuda", dtype=torch.bfloat16).t()
    for mat in (odd, expanded, transposed):
        run.answers.clear()
        (out,) = call(ADD, x, w, None, [mat])
        assert not run.answers
        wanted = x.double() @ w.double().t() + mat.double()
        assert error(out, wanted) <= 1.02 * error(F.linear(x, w) + mat, wanted)


def test_an_operand_is_not_written(run: Runner) -> None:
    x = torch.randn(500, 256, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16)
    mat = torch.randn(500, 512, device="cuda", dtype=torch.bfloat16)
    before = mat.clone()
    force(ADD, 500, 512, 256)
    (out,) = call(ADD, x, w, None, [mat])
    assert torch.equal(mat, before) and out.data_ptr() != mat.data_ptr()
    assert winners.forced
