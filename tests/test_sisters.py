"""Linears of one input without epilogues: which of them run in one launch, and which never do.

The pass is told that it compiles for an H200; the graphs run on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import graphs
import pytest
import torch
from epilogues import CHANCE, error
from expecttest import assert_expected_inline
from graphs import Fused, fuse
from sister_models import (
    BF16,
    ROWS,
    WIDTH,
    Activated,
    Attention,
    Biased,
    Chained,
    Convolutions,
    Drawn,
    Five,
    InPlace,
    Later,
    Normed,
    Odd,
    OfAResult,
    OfTwoInputs,
    OfTwoOrders,
    Tied,
    Two,
    Unused,
    WithoutABias,
    joined,
    left,
)
from torch import Tensor, nn

from fusepass.kernels import library
from fusepass.kernels.calls import Linears, calls_in, linears_in
from fusepass.rewrite import sisters
from fusepass.rewrite.transaction import Transaction


def on_a_gpu(model: Callable[..., Any], *inputs: Tensor, **kwargs: Any) -> Fused:
    """What the pass makes of it, its results held against float64 as eager's are."""
    fused = fuse(model, hopper=True, **kwargs)
    with torch.no_grad():
        found, eager = fused(*inputs), model(*inputs)
        assert isinstance(model, nn.Module)
        exact = copy.deepcopy(model).double()(*(t.double() for t in inputs))
    if isinstance(found, Tensor):
        found, eager, exact = [found], [eager], [exact]
    for ours, theirs, right in zip(found, eager, exact, strict=True):
        assert ours.stride() == theirs.stride() and ours.dtype == theirs.dtype
        assert error(ours, right) <= 1.05 * error(theirs, right) + CHANCE[ours.dtype]
    return fused


def test_golden() -> None:
    """One op in the place of the first, of the weights as they lie; nothing is packed."""
    model, x = Attention(kv=64).to(BF16), torch.randn(2, 128, WIDTH, dtype=BF16)
    fused = on_a_gpu(model, x)
    assert_expected_inline(
        fused.after[0][: fused.after[0].index("view_1")],
        """\
arg0_1: bf16[2, 128, 128]
arg1_1: bf16[128, 128]
arg2_1: bf16[128]
arg3_1: bf16[64, 128]
arg4_1: bf16[64]
arg5_1: bf16[64, 128]
arg6_1: bf16[64]
view: bf16[256, 128] = aten.view(arg0_1, [256, 128])
linears_default = fusepass.linears(view, [arg1_1, arg3_1, arg5_1], [arg2_1, arg4_1, arg6_1])
getitem_2: bf16[256, 128] = getitem(linears_default, 0)
getitem_3: bf16[256, 64] = getitem(linears_default, 1)
getitem_4: bf16[256, 64] = getitem(linears_default, 2)
""",
    )
    assert [(s.module, s.kernel) for s in fused.report.sites] == [
        ("q", "one launch with `k` and `v`"),
        ("k", "one launch with `q` and `v`"),
        ("v", "one launch with `q` and `k`"),
    ]
    whys = {s.why for s in fused.report.sites}
    assert len(whys) == 1 and "by the model; one after the other takes" in whys.pop()
    assert fused.report.misses == () and all(s.follows is None for s in fused.report.sites)
    (told,) = linears_in(fused.graphs[0])  # as what is built ahead is found
    assert told == Linears("linears_default", BF16, 256, (128, 64, 64), 128, False, False)
    assert list(calls_in(fused.graphs[0])) == []


# --- which do -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "widths"),
    [
        (Attention, [(128, 128, 128)]),
        (WithoutABias, [(128, 128, 128)]),
        (Convolutions, [(128, 64, 64)]),
        (Biased, [(128, 128, 128)]),
        (Tied, [(128, 128, 128)]),
        (Later, [(128, 128, 128)]),
        (Normed, [(128, 128, 128)]),
        (Unused, [(128, 128)]),
        (Activated, [(128, 128)]),
        (InPlace, [(128, 128, 128)]),
        (Five, [(64, 72, 80, 88)]),
        (Chained, [(128, 128), (128, 128)]),
    ],
)
def test_these_run_in_one_launch(kind: type[nn.Module], widths: list[tuple[int, ...]]) -> None:
    fused = on_a_gpu(kind().to(BF16), torch.randn(2, ROWS // 2, WIDTH, dtype=BF16))
    assert joined(fused) == widths
    assert left(fused) == (kind in (Activated, Five))


def test_layers_of_one_memory_are_apart() -> None:
    """All at once their results would have to be kept until the last layer."""
    inputs = (torch.randn(2, n, WIDTH, dtype=BF16) for n in (96, 128))
    fused = on_a_gpu(Two().to(BF16), *inputs)
    assert joined(fused) == [(128, 128)] * 2 and left(fused) == 2


@pytest.mark.parametrize("train", [False, True])
def test_autocast(train: bool) -> None:
    """Each Linear's input is cast by itself, and its weight."""
    model, x = Attention(), torch.randn(2, 128, WIDTH, requires_grad=train)
    fused = fuse(model, hopper=True)
    with torch.autocast("cpu", BF16), torch.set_grad_enabled(train):
        found, eager = fused(x), model(x)
    torch.testing.assert_close(found, eager)
    assert joined(fused) == [(128, 128, 128)]


def test_a_dynamic_batch_is_compiled_once() -> None:
    model = Attention(kv=64).to(BF16)
    fused, plain = (fuse(model, hopper=hopper, dynamic=True) for hopper in (True, False))
    with torch.no_grad():
        for rows in (128, 96, 72):
            x = torch.randn(2, rows, WIDTH, dtype=BF16)
            torch.testing.assert_close(fused(x), plain(x), rtol=2e-2, atol=2e-2)
    assert joined(fused)[0] == (128, 64, 64) and len(fused.graphs) == len(plain.graphs)


@pytest.mark.parametrize("ours", ["all", "keys and values"])
def test_products_that_were_sites_by_themselves(ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those beside them that were torch's."""
    fast = (128, 64) if ours == "all" else (64,)
    monkeypatch.setattr(library, "chosen", lambda dtype, m, n, *more: n in fast)
    fused = on_a_gpu(Attention(kv=64).to(BF16), torch.randn(2, 128, WIDTH, dtype=BF16))
    assert joined(fused) == [(128, 64, 64)] and left(fused) == 0
    assert [s.kernel for s in fused.report.sites] == [
        "one launch with `k` and `v`",
        "one launch with `q` and `v`",
        "one launch with `q` and `k`",
    ]
    assert fused.report.misses == ()


# --- which never do -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OfAResult, Drawn, OfTwoOrders, OfTwoInputs])
def test_these_never_do(kind: type[Attention]) -> None:
    fused = fuse(kind().to(BF16), hopper=True)
    with torch.no_grad():
        fused(torch.randn(2, ROWS // 2, WIDTH, dtype=BF16))
    assert joined(fused) == [] and left(fused) == 2
    assert all(e.apart is None for e in (*fused.report.sites, *fused.report.misses))


@pytest.mark.parametrize(
    ("dtype", "numerics", "hopper"),
    [(torch.float32, "accurate", True), (BF16, "bitwise", True), (BF16, "accurate", False)],
    ids=["float32", "bitwise", "a CPU"],
)
def test_elsewhere_they_are_as_they_were(dtype: torch.dtype, numerics: str, hopper: bool) -> None:
    model, x = Attention().to(dtype), torch.randn(2, ROWS // 2, WIDTH, dtype=dtype)
    fused = fuse(model, numerics, hopper=hopper)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert joined(fused) == [] and left(fused) == 3


@pytest.mark.parametrize(
    ("rows", "width", "slow", "reason"),
    [
        (32, WIDTH, False, "no kernel takes several weights of these sizes"),
        (ROWS, 132, False, None),  # whose rows no copy of a kernel reads
        (
            ROWS,
            WIDTH,
            True,
            "because that takes 2 us, by the model; one after the other takes 1 us",
        ),
    ],
)
def test_where_it_is_not_faster_the_report_says_so(
    rows: int, width: int, slow: bool, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slow:
        times = sisters.Together(False, 2e-6, 1e-6)
        monkeypatch.setattr(sisters, "linears_together", lambda *question: times)
    fused = fuse(nn.Sequential(Five()).to(BF16) if width == WIDTH else Odd(width), hopper=True)
    with torch.no_grad():
        fused(torch.randn(rows, width, dtype=BF16))
    assert joined(fused) == []
    told = [e.apart for e in (*fused.report.sites, *fused.report.misses)]
    if reason is None:
        assert told == [None] * len(told)
    else:
        names = "`1` and `2` and `3`"
        assert told[0] == f"not in one launch with {names}: {reason}".replace(": b", ", b")
        assert f"          {told[0]}" in str(fused.report).splitlines()


def test_a_failure_leaves_the_graph_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(sisters, "_hand_on", fail)
    fused, seen = fuse(Attention().to(BF16), hopper=True), list[str]()
    rolled_back = Transaction.roll_back

    def roll_back(edit: Transaction) -> None:
        rolled_back(edit)
        seen.append(graphs.text(edit.graph))

    monkeypatch.setattr(Transaction, "roll_back", roll_back)
    with pytest.raises(Exception, match="no"), torch.no_grad():
        fused(torch.randn(2, 128, WIDTH, dtype=BF16))
    assert seen == fused.before
