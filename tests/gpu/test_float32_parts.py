"""float32 in "highest" where the pieces of whole operands would take much memory.

K, or columns of the output, are split and multiplied one part after the other; rows as in
test_float32_orders.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from float32_problems import CHAIN, MIB, NAN, both, chain, peak, stored, with_few

from fusepass import kernels
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import few as plan_few

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from accuracy import CASES, NOT_FINITE, errors, same_pattern, within_contract

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional
OP = torch.ops.fusepass.linear
# K of parts that end within a step of 64, in the first part, or leave the last ones empty.
PROBLEMS = [(128, 128, 2048), (333, 514, 1000), (257, 130, 5000), (65, 66, 517), (2, 3, 70)]


@pytest.fixture(params=[(plan_f32.TILES[0], 6, 3), (plan_f32.TILES[1], 4, 4)], ids=str)
def in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of one width, K in so many segments and parts, whatever the plan thinks of it."""
    tile, segments, parts = request.param
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)
    monkeypatch.setattr(plan_f32, "choose", lambda m, *args: tile.config(m, segments, parts))
    assert kernels.load_binding()
    torch.ops.fusepass._forget_plans()


def poisoned() -> None:
    """What the allocator hands out next for pieces, facts and sums is full of NaN."""
    full = [torch.full((size, MIB // 4), NAN, device="cuda") for size in (1, 4, 32, 128)]
    del full


# --- K --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(("kn", "km"), [(True, True), (False, False), (True, False)])
def test_shapes_orders_and_outputs(kn: bool, km: bool) -> None:
    for m, n, k in PROBLEMS:
        torch.manual_seed(k)
        x, w, b = stored(m, k, km), stored(n, k, kn), torch.randn(n, device="cuda")
        poisoned()
        out, z = both(x, w, b)
        assert errors(z, x, w, b)[0] < 4e-7, (m, n, k)
        torch.testing.assert_close(out, chain(z), rtol=3e-7, atol=3e-7)
        poisoned()
        assert torch.equal(out, OP(x, w, b, CHAIN, []))


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("km", [False, True])
def test_unsafe_in_one_part_or_in_all(km: bool) -> None:
    for m, n, k in PROBLEMS[:4]:
        torch.manual_seed(k)
        for first, second in ((k // 3, k // 2), (k - 1, 0)):
            x, w, b = stored(m, k, km), stored(n, k, km), torch.randn(n, device="cuda")
            x[:, first] *= 1e6
            w[:, first] *= 1e-6
            w[:, second] *= 1e6
            x[:, second] *= 1e-6
            poisoned()
            z = both(x, w, b)[1]
            assert within_contract(z, F.linear(x, w, b), x, w, b), (m, n, k)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("name", CASES)
def test_the_contract_is_kept(name: str) -> None:
    torch.manual_seed(3)
    x, w, b = (t.cuda() for t in CASES[name](1280, 1152, 4096))
    x, w = x.t().contiguous().t(), w.t().contiguous().t()
    poisoned()
    assert within_contract(both(x, w, b)[1], F.linear(x, w, b), x, w, b)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("km", [False, True])
def test_rows_of_few_elements_across_parts(km: bool) -> None:
    """Alone summed in float64, wherever their elements are."""
    for m, n, k in [(300, 200, 2048), (130, 514, 9000)]:
        torch.manual_seed(k)
        x, few_x = with_few(m, k, [3, 64, m - 1], km, last=1.0)
        w, few_w = with_few(n, k, [0, 63, 128], km, last=1.0)
        b = torch.randn(n, device="cuda")
        poisoned()
        z = both(x, w, b)[1]
        exact = (x.double() @ w.double().T + b).float()
        alone = few_x[:, None] | few_w
        assert torch.equal(z[alone], exact[alone]), (m, n, k)
        assert not torch.equal(z, exact)  # which it is only where all is summed in float64
        assert errors(z, x, w, b)[0] < 4e-7


@pytest.mark.usefixtures("in_parts")
def test_nans_and_infinities_stand_where_eagers_do() -> None:
    for make in NOT_FINITE.values():
        x, w, b = (t.cuda() for t in make(300, 200, 520))
        poisoned()
        assert same_pattern(both(x, w, b)[1], F.linear(x, w, b))


@pytest.mark.usefixtures("in_parts")
def test_rows_and_parts_of_zeros_and_of_any_size() -> None:
    torch.manual_seed(1)
    x, w = stored(200, 2048, True), stored(130, 2048, True)
    b = torch.zeros(130, device="cuda")
    x[:, :512] = 0
    x[3] = 0
    w[:, 1536:] = 0
    x[4] *= 1e-30
    w[5] *= 1e30
    x[6, 512:1024] *= 1e-20
    poisoned()
    z = both(x, w, b)[1]
    assert within_contract(z, F.linear(x, w), x, w, b) and (z[3] == 0).all()
    x[:] = 0
    assert (both(x, w, b)[1] == 0).all()


@pytest.mark.usefixtures("in_parts")
def test_under_a_cuda_graph_and_on_another_stream() -> None:
    x, w, b = stored(256, 4096, True), stored(192, 4096, True), torch.randn(192, device="cuda")
    expected = OP(x, w, b, CHAIN, [])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(OP(x, w, b, CHAIN, []), expected)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = OP(x, w, b, CHAIN, [])
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, OP(x, w, b, CHAIN, []))


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("text", ["add(mat0)", "z, z col_sum", "mul(col0) add(row0)"])
def test_epilogues_of_tensors(text: str) -> None:
    x, w, b = stored(200, 2048, True), stored(132, 2048, True), torch.randn(132, device="cuda")
    z = F.linear(x.double(), w.double(), b.double())
    col, row, mat = (torch.randn(s, device="cuda") for s in ((132,), (200, 1), (200, 132)))
    given = {"add(mat0)": [mat], "z, z col_sum": [], "mul(col0) add(row0)": [col, row]}[text]
    poisoned()
    outputs = torch.ops.fusepass.gemm(x, [w], [b], text, given)
    expected = {"add(mat0)": [z + mat], "z, z col_sum": [z, z.sum(0)]}
    for out, right in zip(outputs, expected.get(text, [z * col + row]), strict=True):
        torch.testing.assert_close(out.double(), right, rtol=1e-5, atol=1e-3)


def test_an_operand_split_before_is_taken_whole() -> None:
    x, w = stored(512, 65536, True), stored(512, 65536, True)
    plain = OP(x, w, None, "", [])
    split = torch.ops.fusepass.split(x)
    zero = torch.zeros(512, device="cuda")
    for splits in ((split, None), (None, torch.ops.fusepass.split(w))):
        out = OP.split(x, w, None, "", [], *splits)
        assert within_contract(out, F.linear(x, w), x, w, zero)
    assert within_contract(plain, F.linear(x, w), x, w, zero)


@pytest.mark.parametrize("name", ["uniform(0, 1)", "normal", "uniform, mean 1000"])
def test_a_weight_gradient_of_many_tokens(name: str) -> None:
    """As the plan runs it: as accurate as eager, in less memory than a third of its pieces."""
    assert kernels.load_binding()
    torch.ops.fusepass._forget_plans()
    torch.manual_seed(0)
    x, w, _ = (t.cuda() for t in CASES[name](512, 512, 65536))
    x, w = x.t().contiguous().t(), w.t().contiguous().t()
    assert "parts" in (plan_f32.choose(512, 512, 65536, False, 132, True, True, True) or "")
    OP(x, w, None, "", [])
    poisoned()
    taken = []
    assert peak(lambda: taken.append(OP(x, w, None, "", [])) or taken) < 256 / 3
    zero = torch.zeros(512, device="cuda")
    assert within_contract(taken[0], F.linear(x, w), x, w, zero)


# --- rows and columns -----------------------------------------------------------------------------


@pytest.mark.usefixtures("always_split")
def test_rows_in_parts_with_sums_of_columns() -> None:
    """Each part leaves its strips, which the last one adds."""
    m, n, k = 30000, 3072, 4608
    x, w, mat = (torch.randn(s, device="cuda") for s in ((m, k), (n, k), (m, n)))
    text = "v0 = mul(mat0); v0, v0 col_sum, z store:bf16"
    taken = []
    poisoned()
    gemm = torch.ops.fusepass.gemm
    room = peak(lambda: taken.append(gemm(x, [w], [None], text, [mat])) or taken)
    out, total, half = taken[0]
    strips = out.nbytes / 16
    assert room < (out.nbytes + half.nbytes + strips) / MIB + 54 + 527 / 2 + 15
    z = F.linear(x.double(), w.double())
    torch.testing.assert_close(out.double(), z * mat, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(total.double(), (z * mat).sum(0), rtol=1e-5, atol=1e-1)
    torch.testing.assert_close(half.double(), z, rtol=2.0**-8, atol=1e-3)


@pytest.mark.usefixtures("always_split")
@pytest.mark.parametrize("kn", [False, True])
def test_a_large_w_is_split_in_parts(kn: bool) -> None:
    """The same bits as in one piece, in less memory than its pieces would take."""
    m, n, k = 4098, 30000 - 2, 4608
    x, w, b = torch.randn(m, k, device="cuda"), stored(n, k, kn), torch.randn(n, device="cuda")
    splits = torch.ops.fusepass.split(x), torch.ops.fusepass.split(w)
    whole = OP.split(x, w, b, CHAIN, [], *splits)
    del splits
    taken = []
    poisoned()
    room = peak(lambda: taken.append(OP(x, w, b, CHAIN, [])) or taken) - whole.nbytes / MIB
    assert room < 72 + 527 / 2 + 5
    assert torch.equal(taken[0], whole)
    poisoned()
    out, z = torch.ops.fusepass.linear_with_preact(x, w, b, CHAIN, [])
    assert torch.equal(out, whole)
    torch.testing.assert_close(chain(z), out, rtol=3e-7, atol=3e-7)


@pytest.mark.usefixtures("always_split")
def test_columns_in_parts_with_tensors_beside_z() -> None:
    m, n, k = 4098, 30000, 4608
    x, w, b = (torch.randn(s, device="cuda") for s in ((m, k), (n, k), (n,)))
    col, row, mat = (torch.randn(s, device="cuda") for s in ((n,), (m, 1), (m, n)))
    odd = torch.randn(n, m, device="cuda").t()
    text = "v0 = mul(col0) add(row0) add(mat0) mul(mat1); v0, v0 store:bf16, v0 col_sum"
    poisoned()
    out, half, total = torch.ops.fusepass.gemm(x, [w], [b], text, [col, row, mat, odd])
    z = F.linear(x.double(), w.double(), b.double())
    expected = (z * col + row + mat) * odd
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-2)
    assert torch.equal(half, out.bfloat16())
    torch.testing.assert_close(total.double(), expected.sum(0), rtol=1e-5, atol=1e-1)
