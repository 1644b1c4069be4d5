"""Backwards whose products have several results: a pair's, those of biases, of a layer scale."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from epilogues import CHANCE, error
from graphs import Fused, fuse
from torch import Tensor, nn

WIDTH, HIDDEN = 24, 40
DRAWS = 40


class Mlp(nn.Module):
    """A Linear, ``act`` and a Linear, with biases."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Gated(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=bias) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LayerScale(nn.Module):
    """Two residuals, the first of them scaled by a learnt number a column."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.first(x)
        return x + self.second(F.gelu(x))


def tanh_gelu(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


# model -> the outputs of its backward's first site, and how many sums over rows stay Inductor's: of
# the gradient that the backward is given
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], int]] = {
    "gelu": (lambda: Mlp(F.gelu), ("store", "col_sum"), 1),
    "gelu by tanh": (lambda: Mlp(tanh_gelu), ("store", "col_sum"), 1),
    "relu": (lambda: Mlp(F.relu), ("store", "col_sum"), 1),
    "a gated pair": (lambda: Gated(False), ("store", "store"), 0),
    "a gated pair with biases": (lambda: Gated(True), ("store", "store", "col_sum", "col_sum"), 0),
    "layer scale": (LayerScale, ("store", "store", "col_sum", "col_sum"), 1),
}


def gradients(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    run(x).square().sum(dtype=torch.float64).backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters())]


def sites(fused: Fused) -> list[tuple[str, ...]]:
    """The kinds of the outputs of each op that has several results."""
    from fusepass import Epilogue

    ops = [n for g in fused.graphs for n in g.nodes if n.target is torch.ops.fusepass.gemm.default]
    kinds = [tuple(o.kind for o in Epilogue.parse(str(n.args[3])).outputs) for n in ops]
    return [k for k in kinds if len(k) > 1]


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("sums_on_the_cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str, dtype: torch.dtype) -> None:
    """Every parameter's and the input's are as near to float64's as eager's are.

    In the root mean square of several inputs: of a few elements in 16 bits, one is chance.
    """
    make, outputs, left = CASES[name]
    model = make().to(dtype)
    fused, double = fuse(model), copy.deepcopy(model).double()
    errors: list[list[tuple[float, float]]] = []
    for _ in range(DRAWS):
        x = torch.randn(4, 6, WIDTH, dtype=dtype)
        found, eager = gradients(fused, model, x), gradients(model, model, x)
        exact = gradients(double, double, x.double())
        for ours, theirs in zip(found, eager, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        triples = zip(found, eager, exact, strict=True)
        errors.append([(error(o, e) ** 2, error(t, e) ** 2) for o, t, e in triples])
    for each in zip(*errors, strict=True):
        own, other = ((sum(squares) / DRAWS) ** 0.5 for squares in zip(*each, strict=True))
        assert own <= other + CHANCE[dtype]
    assert outputs in sites(fused)
    sums = [n for n in fused.graphs[0].nodes if n.target is torch.ops.aten.sum.dim_IntList]
    assert len(sums) == left


@pytest.mark.usefixtures("sums_on_the_cpu")
def test_a_checkpoints_backward_has_them_too() -> None:
    model, x = Mlp(F.gelu).double(), torch.randn(4, 6, WIDTH, dtype=torch.float64)
    run = lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)  # noqa: E731
    fused = fuse(run)
    found, eager = gradients(fused, model, x), gradients(model, model, x)
    torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-12)
    assert ("store", "col_sum") in sites(fused)


def test_on_hopper_a_gated_pair_reads_gate_and_up_and_writes_both_gradients() -> None:
    """What bf16 rounds on the way to silu(gate) is computed of gate again, in the epilogue."""
    torch.manual_seed(0)
    model = Gated(False).bfloat16()
    model.gate, model.up = (nn.Linear(128, 1024, bias=False).bfloat16() for _ in range(2))
    model.down = nn.Linear(1024, 128, bias=False).bfloat16()
    fused = fuse(model, hopper=True)
    fused(torch.randn(2048, 128).bfloat16().requires_grad_()).sum().backward()
    gemm = torch.ops.fusepass.gemm.default
    (backward,) = [n for n in fused.graphs[0].nodes if n.target is gemm and "mat1" in n.args[3]]
    assert backward.args[3].endswith("mul(mat0) mul(v0) mul(v1), mat1 silu mul(z)")
    names = {n.target for n in fused.graphs[0].nodes if "fusepass" not in str(n.target)}
    assert torch.ops.aten.exp.default not in names and torch.ops.aten.sigmoid.default not in names
