"""float32 on Hopper: the split kernel in "highest", the TF32 kernel where torch allows it.

Whether cuBLAS would be faster is the plan's business: here every shape takes the kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from float32_problems import CHAIN, both, chain

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import kernels
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import tf32 as plan_tf32

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from accuracy import CASES, NOT_FINITE, errors, same_pattern, within_contract

pytestmark = [pytest.mark.gpu, pytest.mark.hopper, pytest.mark.usefixtures("always_split")]

F = torch.nn.functional
INF, NAN = float("inf"), float("nan")


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


# --- highest --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [256, 1024, 4096])  # 256: of less the plan splits none
@pytest.mark.parametrize("name", CASES)
def test_the_contract_is_kept(name: str, k: int) -> None:
    torch.manual_seed(k)
    # Tiles enough for cuBLAS not to split K; where it does, the plan leaves the problem to it.
    x, w, b = (t.cuda() for t in CASES[name](1280, 1152, k))
    assert within_contract(both(x, w, b)[1], F.linear(x, w, b), x, w, b)


@pytest.mark.parametrize("k", [1024, 32768])
def test_where_a_product_outweighs_the_others_no_float32_is_closer(k: int) -> None:
    """Of 32768 elements some are small enough to lose digits, too: that must not hide the large."""
    x, w, b = (t.cuda() for t in CASES["outlier columns, aligned"](256, 256, k))
    exact = x.double() @ w.double().T + b.double()
    assert torch.equal(both(x, w, b)[1], exact.float())


@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("name", NOT_FINITE)
def test_nans_and_infinities_stand_where_eagers_do(name: str) -> None:
    x, w, b = (t.cuda() for t in NOT_FINITE[name](300, 200, 520))
    assert same_pattern(both(x, w, b)[1], F.linear(x, w, b))


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("where", ["x", "w", "b", "all"])
def test_not_finite_as_eager(where: str, value: float) -> None:
    x = torch.randn(200, 512, device="cuda")
    w = torch.randn(300, 512, device="cuda")
    b = torch.randn(300, device="cuda")
    w[7] = 0  # inf * 0 is NaN
    if where in ("x", "all"):
        x[17, 40] = value
    if where in ("w", "all"):
        w[130, 40] = value
    if where in ("b", "all"):
        b[31] = value
    out, z = both(x, w, b)
    eager = F.linear(x, w, b)
    torch.testing.assert_close(z, eager, rtol=1e-4, atol=1e-3, equal_nan=True)
    torch.testing.assert_close(out, chain(z), rtol=1e-6, atol=1e-6, equal_nan=True)


def test_no_infinity_near_the_largest_float() -> None:
    x = torch.zeros(128, 256, device="cuda")
    x[:, 0] = torch.finfo(torch.float32).max
    w = torch.zeros(128, 256, device="cuda")
    w[:, 0] = 1.0
    assert torch.equal(both(x, w, None)[1], x[:, :1].expand(128, 128))


@pytest.mark.usefixtures("schedule")
def test_small_integers_are_exact() -> None:
    x, w, b = (t.cuda() for t in CASES["small integers"](300, 200, 2048))
    assert torch.equal(both(x, w, b)[1].double(), x.double() @ w.double().T + b)


def test_precision_is_read_when_the_op_runs(tf32: None) -> None:
    x, w, b = (t.cuda() for t in CASES["normal"](256, 256, 1024))
    high = errors(both(x, w, b)[1], x, w, b)[0]
    torch.set_float32_matmul_precision("highest")
    highest = errors(both(x, w, b)[1], x, w, b)[0]
    assert highest < 1e-6 < high < 1e-3


def test_under_a_cuda_graph_and_on_another_stream() -> None:
    x, w, b = (t.cuda() for t in CASES["normal"](256, 256, 1024))
    expected = both(x, w, b)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(both(x, w, b)[0], expected)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = both(x, w, b)[0]
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, both(x, w, b)[0])


# --- a weight split before ------------------------------------------------------------------------


def test_a_matrix_that_cannot_be_split_is_summed_in_float64() -> None:
    w = torch.randn(256, device="cuda").expand(128, 256)  # all rows are one
    split = torch.ops.fusepass.split(w)
    assert (split == 255).all()
    x, aligned = torch.randn(200, 256, device="cuda"), w.contiguous()
    out = torch.ops.fusepass.linear.split(x, aligned, None, CHAIN, [], None, split)
    torch.testing.assert_close(out, chain(F.linear(x, aligned)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["split", "hybrid"])
@pytest.mark.parametrize("other", [(64, 256), (128, 252), (256, 128)])
def test_a_split_of_another_size_is_refused(
    way: str, other: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "hybrid":
        monkeypatch.setattr(plan_f32, "choose", lambda *args, **kwargs: None)
    x, w = torch.randn(200, 256, device="cuda"), torch.randn(128, 256, device="cuda")
    for matrix in (torch.randn(other, device="cuda"), torch.randn(256, 128, device="cuda").t()):
        split = torch.ops.fusepass.split(matrix)
        with pytest.raises(ValueError, match="fusepass::split"):
            torch.ops.fusepass.linear.split(x, w, None, CHAIN, [], None, split)


@torch.no_grad()
def test_freezing_splits_the_weight_when_it_compiles() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1024, 2048), torch.nn.GELU()).cuda()
    x = torch.randn(2048, 1024, device="cuda")
    plain = torch.compile(model, backend="fusepass")(x)
    torch._dynamo.reset()
    with torch._inductor.config.patch(freezing=True):
        frozen = torch.compile(model, backend="fusepass")
        frozen(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        assert torch.equal(frozen(x), plain)
    kernels_run = [e.key for e in profile.key_averages()]
    splits = sum(e.count for e in profile.key_averages() if "fusepass_split" in e.key)
    assert splits == 1, kernels_run  # of x alone


# --- TF32 -----------------------------------------------------------------------------------------


@pytest.fixture(params=plan_tf32.TILES, ids=str)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> plan_tf32.Tile:
    """One schedule, whatever the plan thinks of it."""
    found: plan_tf32.Tile = request.param
    monkeypatch.setattr(plan_tf32, "TILES", (found,))
    monkeypatch.setattr(plan_tf32, "hybrid_seconds", lambda *args: 1.0)
    monkeypatch.setattr(plan_tf32, "_MIN_K", 1)
    assert kernels.load_binding()
    torch.ops.fusepass._forget_plans()
    return found


@pytest.mark.parametrize(("m", "n", "k"), [(129, 128, 256), (333, 514, 1000), (257, 2048, 2052)])
def test_tf32_is_as_accurate_as_eager(
    tf32: None, tile: plan_tf32.Tile, m: int, n: int, k: int
) -> None:
    assert plan_tf32.choose(m, n, k, False, 132) is not None
    wide = -(-k // 4) * 4
    x = torch.randn(m, wide, device="cuda")[:, :k]
    w = torch.randn(n, wide, device="cuda")[:, :k]
    b = torch.randn(n, device="cuda")
    out, z = both(x, w, b)
    assert errors(z, x, w, b)[0] <= 1.1 * errors(F.linear(x, w, b), x, w, b)[0]
    torch.testing.assert_close(out, chain(z), rtol=3e-7, atol=3e-7)


def test_tf32_rounds_to_nearest(tf32: None) -> None:
    """Cut operands would bias positive data: 7.8e-4 instead of 2.9e-4."""
    x, w, b = (t.cuda() for t in CASES["uniform(0, 1)"](256, 256, 4096))
    assert errors(both(x, w, b)[1], x, w, b)[0] < 4e-4
