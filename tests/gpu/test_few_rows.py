"""Few rows of x: every configuration of their kernels, forced, against float64; what they leave."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from emitted import include
from epilogues import CHANCE, eager, error, random_operands
from forced_gemm import CHAIN, NAN, TEXTS, bias_of, guarded, poison
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue, kernels
from fusepass.kernels.build.build import build_cubins
from fusepass.kernels.plan import few as plan_few
from fusepass.kernels.plan.few import CONFIGS, Config

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional
ops = torch.ops.fusepass
NARROW = (torch.bfloat16, torch.float16)
_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


def _dtypes(config: Config) -> tuple[torch.dtype, ...]:
    return (torch.float32,) if config.float32 else NARROW


CASES = [(c, dtype) for c in CONFIGS for dtype in _dtypes(c)]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    assert kernels.load_binding()
    build_cubins(
        [
            (c.source, c.defines(dtype == torch.bfloat16), "90a", include(text, _NAMES[dtype]))
            for c, dtype in CASES
            for text in {CHAIN, _text_of(c)}
        ]
    )


def _text_of(config: Config) -> str:
    return TEXTS[CONFIGS.index(config) % len(TEXTS)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The configurations that were planned, in order."""
    answers: list[str] = []
    plan_kernel = kernels.plan_kernel

    def note(*problem: object) -> str:
        answer = plan_kernel(*problem)
        answers.append(answer.split("|")[0])
        return answer

    monkeypatch.setattr(kernels, "plan_kernel", note)
    ops._forget_plans()
    yield answers
    ops._forget_plans()


def _force(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: config)


def _matrix(rows: int, columns: int, dtype: torch.dtype, rng: random.Random) -> Tensor:
    return guarded(rows, columns, dtype, rng)


def _weight(n: int, k: int, dtype: torch.dtype, kn: bool, rng: random.Random) -> Tensor:
    w = _matrix(k, n, dtype, rng).t() if kn else _matrix(n, k, dtype, rng)
    w *= k**-0.5
    return w


def _shapes(config: Config, rng: random.Random) -> Iterator[tuple[int, int, int]]:
    """M up to what the configuration holds, N odd where it may be, K below a step and above."""
    unit = config.unit if config.w_is_kn else 1
    counts = (1, 2, 9, 64, 257, rng.randint(1, 900))
    lengths = [config.unit * c for c in counts if plan_few.fits(config, config.unit * c)]
    for m in {1, config.rows, max(1, config.rows - 1), rng.randint(1, config.rows)}:
        for n in (unit, config.batch + unit, unit * rng.randint(1, 700)):
            yield m, n, rng.choice(lengths)
    yield config.rows, 16384 + unit, 512
    if config.chain:  # one ends: K that ends within the next
        yield config.rows, config.batch + 1, 8204


@pytest.mark.parametrize(("config", "dtype"), CASES, ids=str)
def test_no_worse_than_eager(
    config: Config, dtype: torch.dtype, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(str((config, dtype)))
    torch.manual_seed(0)
    _force(monkeypatch, config)
    text = _text_of(config)
    epilogue = Epilogue.parse(text)
    got, theirs, exact = [], [], []
    for index, (m, n, k) in enumerate(_shapes(config, rng)):
        x, w = _matrix(m, k, dtype, rng), _weight(n, k, dtype, config.w_is_kn, rng)
        bias = bias_of(n, dtype) if index % 3 else None
        operands = random_operands(epilogue, index, dtype=dtype, device="cuda")
        poison(m, n, dtype)
        asked.clear()
        out = ops.linear(x, w, bias, text, operands)
        assert asked == [str(config)], f"{m}x{k}->{n}"
        poison(m, n, dtype)
        assert torch.equal(out, ops.linear(x, w, bias, text, operands)), "other bits"
        z = x.double() @ w.double().t() + (0 if bias is None else bias.double())
        got.append(out.flatten())
        theirs.append(eager(F.linear(x, w, bias), epilogue, operands).flatten())
        exact.append(epilogue.reference(z, *(v.double() for v in operands)).flatten())
        assert out.isfinite().all(), f"{m}x{k}->{n}"
    ours, theirs_, exact_ = torch.cat(got), torch.cat(theirs), torch.cat(exact)
    assert error(ours, exact_) <= error(theirs_, exact_) + CHANCE[dtype]


@pytest.mark.parametrize(("config", "dtype"), CASES, ids=str)
def test_not_finite_as_eager(
    config: Config, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN and infinities come out where they do in eager, and nowhere else."""
    _force(monkeypatch, config)
    ops._forget_plans()
    rng = random.Random(1)
    x, w = _matrix(config.rows, 520, dtype, rng), _weight(72, 520, dtype, config.w_is_kn, rng)
    for row, value in ((0, NAN), (config.rows - 1, float("inf"))):
        x[row, 513] = value
    w[3, 1] = -float("inf")
    out = ops.linear(x, w, None, CHAIN, [])
    wanted = eager(F.linear(x, w), Epilogue.parse(CHAIN), [])
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("kn", [False, True])
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_pre_activation(dtype: torch.dtype, kn: bool) -> None:
    torch.manual_seed(2)
    k = 1024 if kn else 512
    x, w = torch.randn(3, k, dtype=dtype), torch.randn(1000, k, dtype=dtype) / 22
    w = w.t().contiguous().t() if kn else w
    x, w, b = x.cuda(), w.cuda(), torch.randn(1000, dtype=dtype).cuda()
    poison(3, 1000, dtype)
    out, z = ops.linear_with_preact(x, w, b, CHAIN, [])
    exact = x.double() @ w.double().t() + b.double()
    assert error(z, exact) <= error(F.linear(x, w, b), exact) + CHANCE[dtype]
    assert torch.equal(out, ops.linear(x, w, b, CHAIN, []))


@pytest.mark.parametrize(
    ("dtype", "m", "kn"),
    [(torch.float32, 3, False), *product(NARROW, (3, 13), (False, True))],
    ids=str,
)
def test_operands_where_they_lie(dtype: torch.dtype, m: int, kn: bool, asked: list[str]) -> None:
    """A column, a row and a matrix of strides of its own, read by the kernel."""
    torch.manual_seed(4)
    n = 1000 if kn else {3: 1031, 13: 8491}[m]
    text, more = "mul(col0) mul(row0) add(mat0)", {"device": "cuda", "dtype": dtype}
    x, b = torch.randn(m, 1024, **more), None
    w = torch.randn(1024, n, **more).t() / 32 if kn else torch.randn(n, 1024, **more) / 32
    col, row = torch.randn(2 * n, **more)[::2], torch.randn(m, 1, **more)
    mat = torch.randn(n, m, **more).t()
    poison(m, n, dtype)
    (out,) = ops.gemm(x, [w], [b], text, [col, row, mat])
    assert len(asked) == 1 and asked[0].startswith("few rows")
    z = x.double() @ w.double().t()
    exact = z * col.double() * row.double() + mat.double()
    theirs = F.linear(x, w) * col * row + mat
    assert error(out, exact) <= error(theirs, exact) + CHANCE[dtype]


@pytest.mark.parametrize("m", [2, 15])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_gated_pair(dtype: torch.dtype, m: int, asked: list[str]) -> None:
    torch.manual_seed(5)
    more = {"device": "cuda", "dtype": dtype}
    n = 1032 if m == 2 else 8200  # of more than 8 rows strips fill the multiprocessors
    x, both = torch.randn(m, 2048, **more), torch.randn(2 * n, 2048, **more) / 45
    biases = [torch.randn(n, **more), None]
    poison(m, n, dtype)
    (out,) = ops.gemm(x, list(both.chunk(2)), biases, "silu mul(z1)", [])
    assert len(asked) == 1 and asked[0].startswith("few rows")
    gate, up = (x.double() @ w.double().t() for w in both.chunk(2))
    exact = F.silu(gate + biases[0].double()) * up
    theirs = F.silu(F.linear(x, both[:n], biases[0])) * F.linear(x, both[n:])
    assert error(out, exact) <= error(theirs, exact) + CHANCE[dtype]


def test_rows_cross_the_borders_without_a_compile() -> None:
    """One compiled model; each number of rows has its kernel."""
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.GELU()).cuda().bfloat16()
    compiled = torch.compile(model, backend="fusepass", dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(5, 512, device="cuda", dtype=torch.bfloat16))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for m in (2, 3, 4, 8, 9, 16, 17, 64, 65, 200):
                x = torch.randn(m, 512, device="cuda", dtype=torch.bfloat16)
                wanted = model(x)
                torch.testing.assert_close(compiled(x), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("what", ["k", "x", "weight", "kn"])
def test_what_is_not_aligned_is_left(what: str, asked: list[str]) -> None:
    """Without a question to the plan; the result is right all the same."""
    k = 516 if what == "k" else 512
    x = torch.randn(2, k + 1, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(301, k + 1, device="cuda", dtype=torch.bfloat16) / 22
    x = x[:, 1:] if what == "x" else x[:, :k].contiguous()
    w = w[:, 1:] if what == "weight" else w[:, :k].contiguous()
    if what == "kn":
        w = w.t().contiguous().t()
    out = ops.linear(x, w, None, CHAIN, [])
    assert asked == []
    torch.testing.assert_close(
        out, eager(F.linear(x, w), Epilogue.parse(CHAIN), []), rtol=2e-2, atol=2e-2
    )


@pytest.mark.parametrize(("m", "kn"), [(1, False), (1, True), (16, True)])
def test_chained_in_a_graph(m: int, kn: bool) -> None:
    """Each starts before the one ahead of it has ended, whose result it reads."""
    torch.manual_seed(3)
    weights = [torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16) / 32 for _ in range(8)]
    weights = [w.t() for w in weights] if kn else weights
    x = torch.randn(m, 1024, device="cuda", dtype=torch.bfloat16)

    def chain(x: Tensor) -> Tensor:
        for w in weights:
            x = ops.linear(x, w, None, "clamp(-4.0, 4.0)", [])
        return x

    wanted = chain(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(x)
    for _ in range(50):
        x.copy_(torch.randn_like(x))
        wanted = x
        for w in weights:
            wanted = ops.linear(wanted, w, None, "clamp(-4.0, 4.0)", [])
            torch.cuda.synchronize()
        out.fill_(NAN)
        graph.replay()
        assert torch.equal(out, wanted)
