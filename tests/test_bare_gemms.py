"""Products alone: every one of a graph, forward and backward, where a kernel of ours is faster.

The pass is told that it compiles for an H200; the graphs run on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from graphs import fuse
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fusepass.kernels import library

Problem = tuple[Any, ...]


def stored(rows: int, columns: int, transposed: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """[rows, columns], stored as its transpose or as it is."""
    value = torch.randn(columns, rows) if transposed else torch.randn(rows, columns)
    return (value.t() if transposed else value).to(dtype)


def error(found: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> float:
    exact = a.double() @ b.double() + bias.double()
    return float((found.double() - exact).abs().max())


ORDERS = list(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize(("x_is_km", "w_is_kn"), ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_of_every_order(
    x_is_km: bool, w_is_kn: bool, dtype: torch.dtype, bias: bool, faster: list[Problem]
) -> None:
    """Strides say the order, and nothing is copied."""
    x, kn = stored(64, 32, x_is_km, dtype), stored(32, 48, not w_is_kn, dtype)
    b = torch.randn(48, dtype=dtype)
    with torch.no_grad():
        fused = fuse(lambda x, kn, b: torch.addmm(b, x, kn) if bias else x @ kn, hopper=True)
        found = fused(x, kn, b)
    added = b if bias else torch.zeros((), dtype=dtype)
    eager = error(x @ kn + added, x, kn, added)
    assert error(found, x, kn, added) <= 1.5 * eager
    assert [(s.epilogue, s.kernel) for s in fused.report.sites] == [("", "one kernel")]
    assert (dtype, 64, 48, 32, w_is_kn, 132, x_is_km, True, bias) in faster
    (op,) = fused.graphs[0].find_nodes(
        op="call_function", target=torch.ops.fusepass.linear.constant
    )
    ours, weight, _, epilogue = op.args
    assert epilogue == ""
    assert ours.meta["val"].stride() == ((1, 64) if x_is_km else (32, 1))
    assert weight.meta["val"].stride() == ((1, 48) if w_is_kn else (32, 1))
    views = {torch.ops.aten.permute.default, torch.ops.fusepass.linear.constant}
    assert {n.target for n in fused.graphs[0].nodes if n.op == "call_function"} <= views


def test_golden_training_step(faster: list[Problem]) -> None:
    """Forward, both gradients: three ops, their operands views of what is there."""
    linear = nn.Linear(32, 48)
    fused = fuse(lambda x: linear(x).lgamma(), hopper=True)
    fused(torch.randn(64, 32, requires_grad=True)).sum().backward()
    assert_expected_inline(
        fused.after[0],
        """\
primals_1: f32[48, 32]
primals_2: f32[48]
primals_3: f32[64, 32]
tangents_1: f32[64, 48]
permute: f32[32, 48] = aten.permute(primals_1, [1, 0])
linear_default: f32[64, 48] = fusepass.linear(primals_3, primals_1, primals_2, '')
lgamma: f32[64, 48] = aten.lgamma(linear_default)
digamma: f32[64, 48] = aten.digamma(linear_default)
mul: f32[64, 48] = aten.mul(tangents_1, digamma)
linear_default_1: f32[64, 32] = fusepass.linear(mul, permute, None, '')
permute_2: f32[48, 64] = aten.permute(mul, [1, 0])
permute_default: f32[32, 64] = aten.permute(primals_3, [1, 0])
linear_default_2: f32[48, 32] = fusepass.linear(permute_2, permute_default, None, '')
permute_3: f32[32, 48] = aten.permute(linear_default_2, [1, 0])
sum_1: f32[1, 48] = aten.sum(mul, [0], True)
view: f32[48] = aten.view(sum_1, [48])
permute_4: f32[48, 32] = aten.permute(permute_3, [1, 0])
return [lgamma, permute_4, view, linear_default_1]""",
    )


def train(run: Callable[..., Any], model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    run(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("shape", [(64, 32), (2, 3, 32)])
def test_gradients(shape: tuple[int, ...], faster: list[Problem]) -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32)).double()
    x = torch.randn(shape, dtype=torch.float64)
    single = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
    single.load_state_dict(model.state_dict())
    fused = fuse(single, hopper=True)
    found, expected = train(fused, single, x.float()), train(model, model, x)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)
    sites = [(s.epilogue, s.backward) for s in fused.report.sites]
    assert sites == [("gelu", False), ("", False), *[("", True)] * 4]
    assert fused.report.misses == ()
    assert "aten.mm" not in fused.after[0] and "aten.addmm" not in fused.after[0]


def test_where_an_epilogue_is_left_the_product_may_be_taken(monkeypatch: Any) -> None:
    """Two kernels for GEMM and epilogue are no gain, the GEMM alone is one."""
    monkeypatch.setattr(library, "chosen", lambda *problem: problem[-1])
    linear = nn.Linear(32, 48)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(linear(x)).atan(), hopper=True)
        x = torch.randn(64, 32)
        torch.testing.assert_close(fused(x), F.relu(linear(x)).atan())
    (site,) = fused.report.sites
    assert site.epilogue == "" and site.follows == (
        "Inductor fuses these stages with what follows, for free"
    )


TAILS: dict[str, tuple[Callable[..., Any], str]] = {
    "a gate": (lambda h, g, v: h * g, ""),
    "a sum over rows": (lambda h, g, v: h.view(2, 32, 48).float().sum(-1), ""),
    "a product": (lambda h, g, v: h @ v, "gelu"),
    "a gate and a product": (lambda h, g, v: (h * g, h @ v), "gelu"),
    "a gate and the caller": (lambda h, g, v: (h * g, h), "gelu"),
}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_epilogue_must_save_a_kernel_or_traffic(
    name: str, dtype: torch.dtype, faster: list[Problem]
) -> None:
    """On tensor cores: what each next kernel computes in passing is not computed in the GEMM."""
    tail, narrow = TAILS[name]
    x, kn, g, v = (torch.randn(s).to(dtype) for s in ((64, 32), (32, 48), (64, 48), (48, 32)))
    with torch.no_grad():
        fused = fuse(lambda *args: tail(F.gelu(args[0] @ args[1]), *args[2:]), hopper=True)
        fused(x, kn, g, v)
    first = fused.report.sites[0]
    assert first.epilogue == (narrow if dtype == torch.bfloat16 else "gelu")


# what reads the sum with a residual -> how many matrices less a next kernel reads or writes
SPARED: dict[str, tuple[Callable[..., Any], int | None]] = {
    "a norm": (lambda s, v: F.layer_norm(s, (48,)), 1),
    "a norm, and a product": (lambda s, v: (F.layer_norm(s, (48,)), s @ v), 2),
    "a norm, and the caller": (lambda s, v: (F.layer_norm(s, (48,)), s), 2),
    "a norm, and the sum with a product of it": (
        lambda s, v: s + torch.relu(F.layer_norm(s, (48,)) @ v), 2
    ),
    "a product": (lambda s, v: s @ v, None),
    "the caller": (lambda s, v: s, None),
}  # fmt: skip


@pytest.mark.parametrize("name", SPARED)
@pytest.mark.parametrize("faster_so", [False, True])
def test_a_residual_before_a_norm_is_taken_where_the_norm_gains_more_than_the_gemm_loses(
    name: str, faster_so: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A norm would add it in passing: it then reads a matrix more, and writes the sum if that is
    needed. The plan weighs that; where nobody adds it in passing, the kernel that would counts."""
    tail, spared = SPARED[name]
    asked: list[int | None] = []

    def chosen_program(*problem: Any) -> bool:
        *_, spared, group = problem
        assert group == 0
        asked.append(spared)
        return spared is None or faster_so

    monkeypatch.setattr(library, "chosen_program", chosen_program)
    monkeypatch.setattr(library, "chosen", lambda *problem: False)
    x, kn, r, v = (
        torch.randn(s, dtype=torch.bfloat16) for s in ((64, 32), (32, 48), (64, 48), (48, 48))
    )
    with torch.no_grad():
        fused = fuse(lambda x, kn, r, v: tail(x @ kn + r, v), hopper=True)
        fused(x, kn, r, v)
    taken = faster_so or spared is None
    assert ("add(mat0)" in fused.epilogues) is taken
    assert {s for s in asked if s is not None} == ({spared} - {None})
    if not taken:
        free = "Inductor fuses these stages with what follows, for free"
        assert fused.reasons[0] == free


def test_what_the_backward_reads_is_no_epilogue_for_free(faster: list[Problem]) -> None:
    linear = nn.Linear(32, 48, dtype=torch.bfloat16)
    fused = fuse(lambda x: F.relu(linear(x)) * x[:, :1], hopper=True)
    fused(torch.randn(64, 32, dtype=torch.bfloat16)).sum().backward()
    assert fused.report.sites[0].epilogue == "clamp(0.0, inf)"


# --- counters ------------------------------------------------------------------------------------


def test_flops_of_forward_and_backward_are_counted(faster: list[Problem]) -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
    x = torch.randn(64, 32)
    counts = []
    for function in (model, fuse(model, hopper=True)):
        train(function, model, x)
        with FlopCounterMode(display=False) as counter:
            train(function, model, x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 6 * 2 * 64 * 32 * 48


def test_the_report_has_every_product_and_its_flops(faster: list[Problem]) -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
    fused = fuse(model, hopper=True)
    train(fused, model, torch.randn(64, 32))
    assert [s.flops for s in fused.report.sites] == [2 * 64 * 32 * 48] * 6
    assert (len(fused.report.fused), len(fused.report.gemms)) == (1, 5)
