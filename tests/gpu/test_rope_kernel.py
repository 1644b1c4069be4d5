"""RoPE behind a Linear in one kernel: in every configuration that has whole heads in a thread."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from epilogues import CHANCE, error
from forced_gemm import NAN, Runner, bias_of, guarded, poison
from operand_cases import Case, build_cases, call, reference, spilled
from small_models import PackedAttention, RopeAttention, compiled, tables
from torch import Tensor

import fusepass
from fusepass.ir import DType
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan import winners
from fusepass.kernels.plan.configs import configs_for
from fusepass.kernels.plan.demand import Demand

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional


@dataclass(frozen=True)
class Kind:
    """What is exchanged of heads of ``columns``, beside tables of ``table``, which divides as many
    or is a multiple."""

    rot: str
    columns: int
    table: int
    first: str = ""

    def text(self, more: str = "") -> str:
        part = f" where({self.first}, _, z)" if self.first else ""
        return f"v0 = {self.rot} mul(mat1); mul(mat0) add(v0){part}{more}"

    def heads(self, least: int) -> int:
        """No fewer, of which there are whole tables."""
        each = max(1, self.table // self.columns)
        return -(-least // each) * each


KINDS = (
    Kind("rot64", 64, 64),
    Kind("rot128", 128, 128),
    Kind("rot256", 256, 256),
    Kind("rot2", 64, 64),
    Kind("rot96", 96, 192),
    Kind("rot64of128", 128, 64, "first64of128"),
    Kind("rot32of64", 64, 64, "first32of64"),
    Kind("rot2", 128, 64, "first64of128"),
    Kind("rot2", 256, 64, "first64of256"),
    Kind("rot32of80", 80, 320, "first32of80"),
    Kind("rot40of80", 80, 320, "first40of80"),
    Kind("rot20of80", 80, 320, "first20of80"),
    Kind("rot24of96", 96, 192, "first24of96"),
    Kind("rot76of80", 80, 320, "first76of80"),
)


@dataclass(frozen=True)
class Rope(Case):
    """One kernel."""

    kind: Kind = KINDS[0]


def _cases() -> list[Rope]:
    found = []
    for kind in KINDS:
        demand = Demand.of(fusepass.Epilogue.parse(kind.text()), DType.BF16)
        assert isinstance(demand, Demand)
        for i, config in enumerate(configs_for(demand)):
            if plan.why_not(config, demand) is None:
                more = " mul(0.125)" if i % 2 else ""
                found.append(Rope(config, kind.text(more), i % 2 == 0, kind=kind))
    return found


CASES = _cases()


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """What the tests that were asked for run."""
    given = [getattr(i, "callspec", None) for i in request.session.items]
    asked = {c.params.get("case") for c in given if c is not None}
    build_cases(case for case in CASES if case in asked)


def _table(
    batch: int, rows: int, width: int, dtype: torch.dtype, shared: bool, rng: random.Random
) -> Tensor:
    """[batch, rows, width] among NaN, the same for each of the batch if ``shared``."""
    if shared:
        return guarded(rows, width, dtype, rng).expand(batch, -1, -1)
    return guarded(batch * rows, width, dtype, rng).unflatten(0, (batch, rows))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_configuration(run: Runner, case: Rope) -> None:
    """Odd rows of one batch, and whole boxes of several; one head and more than a tile has."""
    rng = random.Random(str(case))
    torch.manual_seed(0)
    c, kind = case.config, case.kind
    for batch, rows, least, k, shared in (
        (1, 777, 3, 264, False),
        (1, 3, 1, 72, True),
        (3, 80, 5, 64 * c.stages + 8, True),
        (2, 101, c.tile_n // kind.columns + 1, 136, False),
    ):
        m, n = batch * rows, kind.heads(least) * kind.columns
        x = guarded(m, k, case.dtype, rng).unflatten(0, (batch, rows))
        w = guarded(n, k, case.dtype, rng)
        w *= k**-0.5
        bias = bias_of(n, case.dtype) if rng.random() < 0.5 else None
        operands = [_table(batch, rows, kind.table, case.dtype, shared, rng) for _ in range(2)]
        winners.forced[case.problem(m, n, k)] = c
        torch.ops.fusepass._forget_plans()
        run.answers.clear()
        poison(m, n, case.dtype)
        outs = call(case, x, w, bias, operands)
        assert [a.split("|")[0] for a in run.answers] in ([str(c)], spilled(case, run)), run.answers
        poison(m, n, case.dtype)
        (again,) = call(case, x, w, bias, operands)
        z = x.double() @ w.double().t() + (0 if bias is None else bias.double())
        (exact,) = reference(case, z, operands)
        (eager,) = reference(case, F.linear(x, w, bias), operands)
        (out,) = outs
        what = f"{batch}x{rows}x{k}->{n}"
        assert torch.equal(out, again), f"another run, other bits: {what}"
        assert out.isfinite().all() and out.shape == exact.shape
        assert error(out, exact) <= 1.02 * error(eager, exact) + 1e-6, what


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_not_finite_as_eager(run: Runner, case: Rope) -> None:
    rng = random.Random(0)
    m, n, k = 300, case.kind.heads(3) * case.kind.columns, 128
    x, w = guarded(m, k, case.dtype, rng), guarded(n, k, case.dtype, rng)
    operands = [guarded(m, case.kind.table, case.dtype, rng) for _ in range(2)]
    for row, value in zip((7, 130, 299), (NAN, math.inf, -math.inf), strict=True):
        x[row, 40] = operands[0][row - 1, 3] = operands[1][row - 2, 60] = value
    w[5, 3] = math.inf
    winners.forced[case.problem(m, n, k)] = case.config
    torch.ops.fusepass._forget_plans()
    (out,) = call(case, x, w, None, operands)
    (wanted,) = reference(case, F.linear(x, w), operands)
    assert torch.equal(out.isnan(), wanted.isnan())
    assert torch.equal(out.isinf(), wanted.isinf())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_two_kernels(dtype: torch.dtype) -> None:
    """Where no such kernel is taken: few rows, batches of odd rows, other dtypes, odd heads."""
    torch.manual_seed(0)
    for rot, first, width, batch, rows, heads in (
        ("rot64", "", 64, 2, 5, 4),
        ("rot6", "", 6, 1, 1, 7),
        ("rot2", "", 10, 3, 33, 3),
        ("rot6of10", "first6of10", 10, 3, 33, 3),
        ("rot2", "first6of14", 14, 2, 17, 3),
        ("rot32of80", "first32of80", 80, 2, 17, 4),
    ):
        n, k = heads * width, 40
        x, w = torch.randn(batch, rows, k, device="cuda"), torch.randn(n, k, device="cuda") / 8
        cos, sin = torch.randn(2, 1, rows, width, device="cuda")
        x, w, cos, sin = (t.to(dtype) for t in (x, w, cos, sin))
        cos = cos.expand(batch, -1, -1)
        sin = sin.expand(batch, -1, -1).contiguous()
        torch.ops.fusepass._forget_plans()
        poison(batch * rows, n, dtype)
        text = Kind(rot, width, width, first).text()
        (out,) = torch.ops.fusepass.gemm(x, [w], [None], text, [cos, sin])
        program = fusepass.Epilogue.parse(text)
        exact = program.reference(x.double() @ w.double().t(), cos.double(), sin.double())
        eager = program.reference(F.linear(x, w), cos, sin)
        assert out.isfinite().all()
        room = CHANCE[dtype] + torch.finfo(dtype).eps / out.numel() ** 0.5
        assert error(out, exact) <= error(eager, exact) + room


@pytest.mark.parametrize(
    ("width", "turned", "text"),
    [
        (64, None, "rot64 "),
        (128, None, "rot128 "),
        (128, 64, "first64of128"),
        (80, 40, "first40of80"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention(dtype: torch.dtype, width: int, turned: int | None, text: str) -> None:
    """Compiled: q and k of grouped heads in one kernel each, no less exact than eager, twice alike;
    and of other numbers of rows, without RoPE's own kernel or with it."""
    torch.manual_seed(0)
    groups = 16 if width == 80 else 1024 // width
    sizes = (2048, 2 * groups, groups, width)
    model, exact = (RopeAttention(*sizes, turned=turned) for _ in range(2))
    _check_attention(model, exact, dtype, turned or width, text)


@pytest.mark.parametrize(("width", "bias"), [(64, True), (96, False)])
def test_one_weight(width: int, bias: bool) -> None:
    """For queries, keys and values: a product for each of them."""
    torch.manual_seed(0)
    model, exact = (PackedAttention(2048, 32, 32, width, bias) for _ in range(2))
    _check_attention(model, exact, torch.bfloat16, width, f"rot{width} ")


def _check_attention(
    model: RopeAttention, exact: RopeAttention, dtype: torch.dtype, turned: int, text: str
) -> None:
    model = model.to("cuda", dtype).eval()
    exact = exact.cuda().double()
    exact.load_state_dict(model.state_dict())
    call = compiled(model)
    for batch, rows in ((2, 2048), (4, 1024), (1, 77)):
        x = torch.randn(batch, rows, 2048, device="cuda").to(dtype)
        cos, sin = (t.to("cuda", dtype) for t in tables(rows, turned))
        with torch.no_grad():
            if rows == 2048:
                report = fusepass.explain(model, x, cos, sin)
                taken = [s for s in report.sites if text in s.epilogue]
                assert len(taken) == 2, report
                assert all(str(s.kernel).startswith("one kernel") for s in taken), report
            out, again, eager = call(x, cos, sin), call(x, cos, sin), model(x, cos, sin)
            wanted = exact(x.double(), cos.double(), sin.double())
        assert torch.equal(out, again) and out.stride() == eager.stride()
        assert error(out, wanted) <= 1.05 * error(eager, wanted) + CHANCE[dtype]
