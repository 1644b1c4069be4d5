"""float32 in "highest": operands of every order, K whole and in segments, splits made before."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from float32_problems import CHAIN, PROBLEMS, both, chain, stored, with_few

from fusepass.kernels.plan import f32 as plan_f32

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from accuracy import CASES, errors, within_contract

pytestmark = [pytest.mark.gpu, pytest.mark.hopper]

F = torch.nn.functional


@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("km", [False, True])
@pytest.mark.parametrize("kn", [False, True])
def test_shapes_orders_and_outputs(kn: bool, km: bool) -> None:
    for m, n, k in PROBLEMS:
        torch.manual_seed(k)
        x, w, b = stored(m, k, km), stored(n, k, kn), torch.randn(n, device="cuda")
        out, z = both(x, w, b)
        assert errors(z, x, w, b)[0] < 4e-7, (m, n, k)
        torch.testing.assert_close(out, chain(z), rtol=3e-7, atol=3e-7)
        # The build without the second output, and a second run, give the same bits.
        assert torch.equal(out, torch.ops.fusepass.linear(x, w, b, CHAIN, []))
        bare = torch.ops.fusepass.linear(x, w, None, "", [])
        torch.testing.assert_close(bare + b, z, rtol=1e-5, atol=1e-4)
        assert torch.equal(bare, both(x, w, None)[1])


@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("km", [False, True])
@pytest.mark.parametrize("kn", [False, True])
def test_unsafe_tiles_are_summed_in_float64(kn: bool, km: bool) -> None:
    for m, n, k in [*PROBLEMS, (130, 130, 4), (2, 2, 2)]:
        torch.manual_seed(k)
        x, w, b = stored(m, k, km), stored(n, k, kn), torch.randn(n, device="cuda")
        x[:, k // 3] *= 1e6
        w[:, k // 3] *= 1e-6
        w[:, k // 2] *= 1e6
        x[:, k // 2] *= 1e-6
        out, z = both(x, w, b)
        assert within_contract(z, F.linear(x, w, b), x, w, b), (m, n, k)
        torch.testing.assert_close(out, chain(z), rtol=3e-7, atol=3e-7)


@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("km", [False, True])
@pytest.mark.parametrize("kn", [False, True])
def test_rows_of_few_elements_alone_are_summed_in_float64(kn: bool, km: bool) -> None:
    for m, n, k in [(300, 200, 2048), (130, 514, 9000), (65, 129, 517)]:
        torch.manual_seed(k)
        x, few_x = with_few(m, k, [3, 64, m - 1], km)
        w, few_w = with_few(n, k, [0, 63, 128], kn)
        b = torch.randn(n, device="cuda")
        z = both(x, w, b)[1]
        exact = (x.double() @ w.double().T + b).float()
        alone = few_x[:, None] | few_w
        assert torch.equal(z[alone], exact[alone]), (m, n, k)
        assert not torch.equal(z, exact)  # which it is only where all is summed in float64
        assert errors(z, x, w, b)[0] < 4e-7
        many, _ = with_few(m, k, list(range(17)), km)
        z = both(many, w, b)[1][:64]
        assert torch.equal(z, (many[:64].double() @ w.double().T + b).float())


@pytest.mark.usefixtures("schedule")
def test_a_gradient_with_zero_rows() -> None:
    """Padding and masked losses: exact, and no reason to sum a tile in float64."""
    torch.manual_seed(0)
    # As many tiles as the plan wants for one segment: with fewer cuBLAS's sums are shorter.
    x, g = torch.randn(1040, 1280, device="cuda"), torch.randn(1040, 1536, device="cuda") * 1e-6
    g[torch.rand(1040, device="cuda") < 0.5] = 0
    out = torch.ops.fusepass.linear(g.t(), x.t(), None, "", [])  # g^T x
    zero = torch.zeros(1280, device="cuda")
    assert within_contract(out, g.t() @ x, g.t(), x.t(), zero)
    g[:] = 0
    assert (torch.ops.fusepass.linear(g.t(), x.t(), None, "", []) == 0).all()


@pytest.mark.parametrize("name", ["uniform(0, 1)", "normal", "uniform, mean 1000"])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(512, 512, 65536), (1024, 512, 32768), (1024, 1024, 4096)]
)
def test_few_tiles_with_a_long_k_are_as_accurate_as_eager(
    name: str, m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch, always_split: None
) -> None:
    """Where cuBLAS cuts K, as it does with weight gradients, its short sums are accurate."""
    narrow = min(plan_f32.TILES, key=lambda tile: tile.n)
    monkeypatch.setattr(plan_f32, "choose", lambda m, *args: narrow.config(m, 4))
    torch.ops.fusepass._forget_plans()
    torch.manual_seed(k)
    x, w, _ = (t.cuda() for t in CASES[name](m, n, k))
    zero = torch.zeros(n, device="cuda")
    for kn, km in ((False, False), (True, True)):
        x_stored = x.t().contiguous().t() if km else x
        w_stored = w.t().contiguous().t() if kn else w
        z = torch.ops.fusepass.linear(x_stored, w_stored, None, "", [])
        assert within_contract(z, F.linear(x_stored, w_stored), x, w, zero)


@pytest.mark.parametrize("km", [False, True])
@pytest.mark.parametrize("kn", [False, True])
def test_operands_split_before_give_the_same_bits(kn: bool, km: bool, always_split: None) -> None:
    # A cluster holds K up to 4096; beyond, matrices are read twice.
    for m, n, k in [*PROBLEMS, (70, 96, 4096), (70, 96, 4100)]:
        x, w = stored(m, k, km), stored(n, k, kn)
        x_split, w_split = torch.ops.fusepass.split(x), torch.ops.fusepass.split(w)
        assert w_split.shape == plan_f32.split_shape(n, k, kn)
        plain = torch.ops.fusepass.linear(x, w, None, CHAIN, [])
        for splits in ((x_split, None), (None, w_split), (x_split, w_split)):
            assert torch.equal(
                torch.ops.fusepass.linear.split(x, w, None, CHAIN, [], *splits), plain
            )


@pytest.mark.parametrize("km", [False, True])
def test_a_large_x_is_split_in_parts(km: bool, always_split: None) -> None:
    """The same bits as in one piece, in less memory than its pieces would take."""
    m, n, k = 65536 - 300, 512, 512
    x, w, b = stored(m, k, km), torch.randn(n, k, device="cuda"), torch.randn(n, device="cuda")
    op = torch.ops.fusepass.linear
    splits = torch.ops.fusepass.split(x), torch.ops.fusepass.split(w)
    whole = op.split(x, w, b, CHAIN, [], *splits)
    del splits
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    parts = op(x, w, b, CHAIN, [])
    assert torch.cuda.max_memory_allocated() - before < 1.5 * whole.nbytes
    assert torch.equal(parts, whole)
    out, z = torch.ops.fusepass.linear_with_preact(x, w, b, CHAIN, [])
    assert torch.equal(out, whole)
    torch.testing.assert_close(chain(z), out, rtol=3e-7, atol=3e-7)
