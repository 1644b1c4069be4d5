"""Few rows of several weights of one x: every configuration of strips, against float64."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from emitted import include
from epilogues import error
from forced_gemm import bias_of, guarded, poison
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import kernels
from fusepass.kernels.build.build import build_cubins
from fusepass.kernels.plan import few
from fusepass.kernels.plan import several as plan

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional
linears = torch.ops.fusepass.linears
CASES = [(config, dtype) for config in few.SEVERAL for dtype in (torch.bfloat16, torch.float16)]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    assert kernels.load_binding()
    build_cubins(
        [
            (c.source, c.defines(bf16, several=True), "90a", include("", "bf16" if bf16 else "f16"))
            for c, bf16 in ((c, dtype is torch.bfloat16) for c, dtype in CASES)
        ]
    )


def weight(n: int, k: int, kn: bool, dtype: torch.dtype, rng: random.Random) -> Tensor:
    w = guarded(k, n, dtype, rng).t() if kn else guarded(n, k, dtype, rng)
    w *= k**-0.5
    return w


def widths(config: few.Config, rng: random.Random) -> Iterator[list[int]]:
    """Columns of each weight: fewer than a strip's, just a strip's, more; odd where they may be."""
    unit = 8 if config.w_is_kn else 1
    some = (unit, 64 - unit, 64, 64 + unit, unit * rng.randint(1, 2048 // unit))
    for count in (2, 3, 4):
        yield rng.choices(some, k=count)
    yield [2048, 512, 512]


@pytest.mark.parametrize(("config", "dtype"), CASES, ids=str)
def test_no_worse_than_eager(
    config: few.Config, dtype: torch.dtype, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "choose", lambda *question: config)
    rng = random.Random(str((config, dtype)))
    torch.manual_seed(0)
    lengths = [k for k in (8, 64, 264, 1032, 2048, 4096) if few.fits(config, k)]
    got, theirs, exact = [], [], []
    for index, ns in enumerate(n for _ in range(3) for n in widths(config, rng)):
        m, k = rng.choice((1, config.rows - 1, config.rows)), rng.choice(lengths)
        x = guarded(m, k, dtype, rng)
        ws = [weight(n, k, config.w_is_kn, dtype, rng) for n in ns]
        bs = [bias_of(n, dtype) if (index + i) % 3 else None for i, n in enumerate(ns)]
        answers.clear()
        torch.ops.fusepass._forget_plans()
        for n in ns:
            poison(m, n, dtype)
        outs = linears(x, ws, bs)
        assert [a.split("|")[0] for a in answers] == [str(config)], f"{m}x{k}->{ns}"
        for n in ns:
            poison(m, n, dtype)
        again = linears(x, ws, bs)
        for out, same, w, b in zip(outs, again, ws, bs, strict=True):
            assert torch.equal(out, same), "another run, other bits"
            right = x.double() @ w.double().t() + (0 if b is None else b.double())
            assert out.is_contiguous() and out.shape == right.shape
            got.append(out.flatten())
            theirs.append(F.linear(x, w, b).flatten())
            exact.append(right.flatten())
    right = torch.cat(exact)
    assert error(torch.cat(got), right) <= 1.02 * error(torch.cat(theirs), right)


def inputs(m: int) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """Of Llama-3.2-1B's queries, keys and values; the second without a bias."""
    more = {"device": "cuda", "dtype": torch.bfloat16}
    ws = [torch.randn(n, 2048, **more) * 2048**-0.5 for n in (2048, 512, 512)]
    bs = [torch.randn(2048, **more), None, torch.randn(512, **more)]
    return torch.randn(m, 2048, **more), ws, bs


@pytest.mark.parametrize("m", [1, 8, 9, 16])
def test_not_finite_where_eager_is_not(m: int, answers: list[str]) -> None:
    x, ws, bs = inputs(m)
    x[m - 1, 40] = float("nan")
    ws[1][5, 9] = float("inf")  # of one weight, in its own result alone
    assert bs[2] is not None
    bs[2][511] = -float("inf")
    outs = linears(x, ws, bs)
    assert [a.split("|")[0][:8] for a in answers] == ["few rows"]
    for out, w, b in zip(outs, ws, bs, strict=True):
        torch.testing.assert_close(out, F.linear(x, w, b), rtol=2e-2, atol=2e-2, equal_nan=True)
    if m > 1:
        assert not outs[0][0].isnan().any() and outs[1][0].isinf().sum() == 1


def test_more_rows_than_strips_have_and_an_x_that_starts_anywhere(answers: list[str]) -> None:
    """Each weight by itself."""
    x, ws, bs = inputs(24)
    shifted = [w[:, 4:2044] for w in ws]
    for rows, weights, told in ((x, ws, ["hybrid"]), (x[:8, 4:2044], shifted, [])):
        answers.clear()
        for out, w, b in zip(linears(rows, weights, bs), weights, bs, strict=True):
            torch.testing.assert_close(out, F.linear(rows, w, b), rtol=2e-2, atol=2e-2)
        assert answers == told


def test_captured_in_a_graph_and_replayed() -> None:
    x, ws, bs = inputs(1)
    linears(x, ws, bs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = linears(x, ws, bs)
    for _ in range(3):
        x.normal_()
        graph.replay()
        for out, w, b in zip(outs, ws, bs, strict=True):
            torch.testing.assert_close(out, F.linear(x, w, b), rtol=2e-2, atol=2e-2)
