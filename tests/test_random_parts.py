"""Random models of parts that transformers of language have less often: what lies in another order,
is written in place, gated, routed, shared, adapted or normalized over the batch.

As random layers do (test_random_blocks.py): the pass never fails, and what it makes of a model, as
an H200 would have it rewritten, computes what eager does, forward and backward, NaN where that has
NaN, with every product told once.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import graphs
import pytest
import torch
from epilogues import error
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fusepass
from fusepass.match.gemms import flops, is_product, is_taken_apart
from fusepass.report import Report
from fusepass.report.summary import Flops
from fusepass.rewrite import graph_pass

F = nn.functional
DTYPES = (torch.bfloat16, torch.bfloat16, torch.float16, torch.float32)
SIZES = ((1, 1), (3, 1), (2, 17), (2, 64), (4, 128), (0, 8))  # batch, length
ACTIVATIONS = (F.silu, F.gelu, torch.tanh, F.elu, F.leaky_relu, F.softplus, F.hardswish)


class Layers(nn.Module):
    """What the parts below choose from."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.up, self.gate = (nn.Linear(width, 2 * width, bias=rng.random() < 0.6) for _ in "ab")
        self.one, self.other = (nn.Linear(width, width, bias=rng.random() < 0.6) for _ in "ab")
        self.down, self.many = nn.Linear(2 * width, width), nn.Linear(width, 6 * width)
        self.narrow, self.wide = nn.Linear(width, 8, bias=False), nn.Linear(8, width, bias=False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))
        self.norm, self.batch = nn.LayerNorm(width), nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))
        self.activation, self.which = rng.choice(ACTIVATIONS), rng.randrange(6)


def permuted(p: Layers, x: Tensor) -> Tensor:
    """ConvNeXt's: rows of an image, whose channels come first in memory or in name."""
    image = x.unsqueeze(2).permute(0, 3, 1, 2)
    z = p.down(p.activation(p.up(p.norm(image.permute(0, 2, 3, 1)))))
    z = (p.scale * z).permute(0, 3, 1, 2)
    return (image + z).permute(0, 2, 3, 1).squeeze(2)


def windows(p: Layers, x: Tensor) -> Tensor:
    """Shifted windows of four rows, padded, and attention in each."""
    batch, length, width = x.shape
    y = F.pad(x, (0, 0, 0, -length % 4)).roll(-2, 1)
    rows = y.reshape(batch, y.shape[1] // 4, 4, width).flatten(0, 1)
    q, k, v = (
        p.many(rows)[..., : 3 * width].unflatten(-1, (3, 4, width // 4)).permute(2, 0, 3, 1, 4)
    )
    z = ((q * width**-0.5) @ k.mT + p.scale[:4]).softmax(-1) @ v
    z = p.one(z.transpose(1, 2).flatten(2)).reshape(y.shape).roll(2, 1)
    return x + z[:, :length]


def modulated(p: Layers, x: Tensor) -> Tensor:
    """adaLN: shift, scale and gate are chunks of one Linear of a row for each of the batch."""
    shift, scale, gate, *_ = p.many(F.silu(x.mean(1))).unsqueeze(1).chunk(6, -1)
    return x + gate * p.down(p.activation(p.up(p.norm(x) * (1 + scale) + shift)))


def routed(p: Layers, x: Tensor) -> Tensor:
    weights, chosen = p.narrow(x)[..., :2].softmax(-1).max(-1, keepdim=True)
    outs = (p.one(x), p.activation(p.other(x)))
    return x + sum(weights * (chosen == i) * out for i, out in enumerate(outs))


def between(p: Layers, x: Tensor) -> Tensor:
    gate = torch.sigmoid(p.one(x))
    if p.which % 3 == 0:
        return torch.lerp(x, p.activation(p.other(x)), gate)
    if p.which % 3 == 1:
        return gate * torch.tanh(p.other(x)) + (1 - gate) * x
    return torch.maximum(p.one(x), p.other(x)) * p.narrow(x)[..., :1]


def adapted(p: Layers, x: Tensor) -> Tensor:
    z = p.one(x) + p.wide(p.narrow(x)) * 2.0
    return x + (p.activation(z) if p.which % 2 else p.normed(z))


def over_the_batch(p: Layers, x: Tensor) -> Tensor:
    if p.which % 2:
        return x + p.activation(p.batch(p.one(x).flatten(0, 1))).view(x.shape)
    return x + p.batch(p.one(x).mT).mT


def excited(p: Layers, x: Tensor) -> Tensor:
    z = p.activation(p.one(x))
    return x + z * torch.sigmoid(p.wide(F.relu(p.narrow(z.mean(1, keepdim=True)))))


def written(p: Layers, x: Tensor) -> Tensor:
    z = p.one(x)
    if p.which == 0:
        z.add_(x).mul_(0.5).relu_()
    elif p.which == 1:
        z[..., ::2] *= 2
        z[:, 0] = 0.5
    elif p.which == 2:
        z.masked_fill_(x > 1, 0.0)
    elif p.which == 3:
        z.transpose(1, 2).mul_(2.0)
    else:
        z = z.clone().mul_(0.5) + z.tanh_()
    return x + p.other(z)


def split(p: Layers, x: Tensor) -> Tensor:
    width = x.shape[-1]
    a, b = p.up(x).split([width - 8, width + 8], -1) if p.which == 0 else p.up(x).chunk(2, -1)
    if p.which == 0:
        return x + F.pad(F.silu(a), (0, 8)) * b[..., :width]
    if p.which == 1:
        z = p.up(x)
        return x + z[..., ::2] * F.gelu(z[..., 1::2])
    return x + (F.gelu(a) * b if p.which % 2 else F.glu(p.gate(x)) - a)


def again(p: Layers, x: Tensor) -> Tensor:
    """Results, weights and inputs that have several readers."""
    z = p.one(x)
    y = p.activation(z)
    return (y + z) * F.linear(y, p.one.weight) + p.other(x + y) * z.mean(1, keepdim=True)


def in_steps(p: Layers, x: Tensor) -> Tensor:
    """A position between two of a table's rows."""
    place = torch.sigmoid(p.one(x)) * 3
    first = place.floor()
    beyond = place - first
    table = p.scale[:5] * torch.arange(5, device=x.device)
    rows = first.detach().nan_to_num(0.0).long()
    return x + table[rows] * (1 - beyond) + table[rows + 1] * beyond


PARTS: tuple[Callable[[Layers, Tensor], Tensor], ...] = (
    permuted, windows, modulated, routed, between, adapted, over_the_batch, excited, written, split,
    again, in_steps,
)  # fmt: skip


class Model(nn.Module):
    def __init__(self, rng: random.Random, first: int) -> None:
        super().__init__()
        self.width = rng.choice((64, 128))
        parts = (PARTS[first % len(PARTS)], rng.choice(PARTS))
        self.parts = parts[: rng.choice((1, 2))]
        self.layers = nn.ModuleList(Layers(rng, self.width) for _ in self.parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for part, layers in zip(self.parts, self.layers, strict=True):
            x = part(layers, x)
        return x, x[..., ::2]


def some_input(rng: random.Random, model: Model, dtype: torch.dtype) -> Tensor:
    """[batch, length, width], in one of the ways that it may lie in memory."""
    (batch, length), width = rng.choice(SIZES), model.width
    return rng.choice(
        (
            torch.randn(batch, length, width),
            torch.randn(length, batch, width).transpose(0, 1),
            torch.randn(batch, width, length).mT,
            torch.randn(1, length, width).expand(batch, -1, -1),
            torch.randn(batch, length, 2 * width)[..., 8 : 8 + width],
            torch.randn(batch, length, 2 * width)[..., ::2],
        )
    ).to(dtype)


def results(
    call: Callable[[Tensor], tuple[Tensor, ...]], model: nn.Module, x: Tensor, train: bool
) -> list[Tensor | None]:
    """What ``call`` gives, and, in training, the gradients of ``x`` and the parameters."""
    x = x.detach().requires_grad_(train)
    with torch.set_grad_enabled(train):
        outs = call(x)
    if not train:
        return [out.detach() for out in outs]
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    loss = sum((o.double().sin().sum() for o in outs), torch.zeros((), dtype=torch.float64))
    return [*(o.detach() for o in outs), *torch.autograd.grad(loss, leaves, allow_unused=True)]


def no_further(found: Tensor | None, eager: Tensor | None, exact: Tensor | None) -> bool:
    """Whether ``found`` is about as close to ``exact`` as ``eager`` is, and NaN where that is."""
    if found is None or eager is None or exact is None:
        return found is eager is exact
    alike = found.dtype is eager.dtype and found.shape == eager.shape
    same = torch.equal(found.isnan(), eager.isnan())
    rounding = torch.finfo(found.dtype).eps
    return alike and same and error(found, exact) <= 2 * error(eager, exact) + rounding


@pytest.mark.sampled(12)
@pytest.mark.parametrize("seed", range(48))
def test_parts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = rng.choice(DTYPES)
    model = Model(rng, seed).to(dtype)
    x, train, dynamic = some_input(rng, model, dtype), rng.random() < 0.5, rng.random() < 0.4
    if x.numel() and not train and rng.random() < 0.3:
        x = x.clone()
        x[-1, -1, 5] = float("nan")
    model.train(train and x.shape[0] * x.shape[1] > 1)
    reference, own = copy.deepcopy(model).double(), copy.deepcopy(model)
    monkeypatch.setattr(graphs, "run", counted)
    fused = graphs.fuse(own, hopper=rng.random() < 0.8, dynamic=dynamic)
    every = (
        results(fused, own, x, train),
        results(model, model, x, train),
        results(reference, reference, x.double(), train),
    )
    assert all(no_further(*values) for values in zip(*every, strict=True))
    states = (m.state_dict().values() for m in (own, model, reference))
    assert all(no_further(*s) for s in zip(*states, strict=True) if s[0].is_floating_point())


def counted(graph: torch.fx.Graph, numerics: str) -> Report:
    """The pass, of which each product is told once."""
    products = [n for n in graph.nodes if is_product(n) or is_taken_apart(n)]
    wanted = sum(flops(node) or 0 for node in products)
    report = graph_pass.run(graph, numerics)
    graph.lint()
    assert Flops.of(report.sites, report.misses).total == wanted
    return report


@pytest.mark.sampled(12)
@pytest.mark.parametrize("part", PARTS)
def test_parts_are_explained(part: Callable[[Layers, Tensor], Tensor]) -> None:
    layers, x = Layers(random.Random(0), 64).eval(), torch.randn(2, 16, 64)
    with torch.no_grad():
        report = fusepass.explain(lambda x: part(layers, x), x)
        with FlopCounterMode(display=False) as counter:
            part(layers, x)
    assert Flops.of(report.sites, report.misses).total == counter.get_total_flops()
    assert not [m.reason for m in report.misses if "failed" in m.reason]
