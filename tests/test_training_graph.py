"""Training: the pass on joint graphs. Gradients are the original graph's own."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from graphs import Fused, fuse
from torch import nn

from fusepass.match.facts import Graph

Tail = Callable[[torch.Tensor, torch.Tensor], object]


class Model(nn.Module):
    """A Linear and ``tail(z, scale)`` with a learnable scale."""

    def __init__(self, tail: Tail, dtype: torch.dtype = torch.float32, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40, bias=bias, dtype=dtype)
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=dtype))
        nn.init.normal_(self.linear.weight, std=0.5)
        self.tail = tail

    def forward(self, x: torch.Tensor) -> object:
        return self.tail(self.linear(x), self.scale)


def gradients(run: Callable, model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """d(sum of squares of all outputs) by the input and every parameter, and the outputs."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    outputs = run(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((o.float() if o.dtype.itemsize < 4 else o).square().sum() for o in outputs).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "input": x.grad, **{f"output {i}": o.detach() for i, o in enumerate(outputs)}}


def check(model: nn.Module, x: torch.Tensor, numerics: str = "accurate") -> Fused:
    """Every gradient is as near to float64's as eager's is."""
    fused = fuse(model, numerics)
    found, eager = gradients(fused, model, x), gradients(model, model, x)
    double = copy.deepcopy(model).double()
    exact = gradients(double, double, x.double())
    assert found.keys() == eager.keys() == exact.keys()
    for name, expected in exact.items():
        assert found[name].dtype == eager[name].dtype
        own, theirs = ((g[name].double() - expected).abs().max() for g in (found, eager))
        precision = torch.finfo(x.dtype).eps * expected.abs().max()
        assert own <= 1.5 * theirs + 4 * precision, name
        if numerics == "bitwise" and name.startswith("output"):
            assert torch.equal(found[name], eager[name])
    return fused


def seed(z: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.gelu(F.hardtanh(z * 0.5, -2, 2))


SEED = "mul(0.5) clamp(-2.0, 2.0) gelu"
TAILS: dict[str, tuple[Tail, list[str]]] = {
    "seed": (seed, [SEED]),
    "learnable scale": (lambda z, s: F.gelu((z * s).clamp(0, 2)), ["mul($0) clamp(0.0, 2.0) gelu"]),
    "learnable divisor": (lambda z, s: F.relu(z / s), ["div($0) clamp(0.0, inf)"]),
    "tanh": (lambda z, s: F.gelu(z, approximate="tanh"), ["gelu_tanh"]),
    "by hand": (lambda z, s: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))), ["gelu"]),
    "relu": (lambda z, s: F.relu(z), ["clamp(0.0, inf)"]),
    "in place": (lambda z, s: F.gelu(z.mul_(0.5).clamp_(-2, 2)), [SEED]),
    "intermediate returned": (
        lambda z, s: (lambda y: (F.gelu(y), y, z))(z * 2), ["v0 = mul(2.0); v0 gelu, v0"]
    ),
    "transposed": (lambda z, s: F.gelu(z.t() * 3), ["mul(3.0) gelu"]),
    "detached branch": (
        lambda z, s: F.gelu(z) + F.relu(z.detach()), ["v0 = clamp(0.0, inf); gelu add(v0)"]
    ),
    "unknown behind": (lambda z, s: torch.atan(F.gelu(z)), ["gelu"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(name: str, dtype: torch.dtype) -> None:
    tail, epilogues = TAILS[name]
    fused = check(Model(tail, dtype), torch.randn(6, 24, dtype=dtype))
    assert fused.epilogues == epilogues and fused.reasons == []


@pytest.mark.parametrize("shape", [(6, 24), (2, 3, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
def test_gradients_of_every_anchor(shape: tuple[int, ...], bias: bool, numerics: str) -> None:
    fused = check(Model(seed, bias=bias), torch.randn(shape), numerics)
    assert fused.epilogues == [SEED] and fused.reasons == []


def test_the_gradient_of_a_bias_stored_as_a_row() -> None:
    class Row(Model):
        def __init__(self) -> None:
            super().__init__(seed, bias=False)
            self.row = nn.Parameter(torch.randn(1, 40))

        def forward(self, x: torch.Tensor) -> object:
            return self.tail(self.linear(x) + self.row, self.scale)

    fused = check(Row(), torch.randn(2, 3, 24))
    assert fused.epilogues == [SEED] and fused.reasons == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_gradients_of_every_dtype(dtype: torch.dtype) -> None:
    fused = check(Model(seed, dtype), torch.randn(6, 24, dtype=dtype))
    assert fused.epilogues == [SEED]


def test_gradients_of_two_layers_with_a_tied_weight() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.gelu(self.b(F.relu(self.a(F.gelu(self.a(x)))))) * 2

    fused = check(Two(), torch.randn(6, 24))
    forward = [s.epilogue for s in fused.report.sites if not s.backward]
    assert forward == ["gelu", "clamp(0.0, inf)", "gelu mul(2.0)"]
    backward = [s.epilogue for s in fused.report.sites if s.backward]
    assert len(backward) == 2 and backward[0] == "mat0 le(0.0) where(0.0, z)"


def test_a_frozen_weight_and_no_gradient_of_the_input() -> None:
    model, x = Model(seed), torch.randn(6, 24)
    model.linear.weight.requires_grad_(False)
    fused = fuse(model)
    fused(x).sum().backward()
    found = model.linear.bias.grad.clone()
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(found, model.linear.bias.grad)
    assert model.linear.weight.grad is None and len(fused.epilogues) == 1


def test_the_backwards_products_are_sites_and_misses() -> None:
    """The gradients of both inputs are scaled, one goes on through a function's; those of the
    weights are products alone."""
    linear = nn.Linear(24, 24)
    model = lambda x: linear(torch.atan(linear(x * 2)) * 3).atan().sum()  # noqa: E731
    fused = fuse(model)
    x = torch.randn(6, 24, requires_grad=True)
    found = torch.autograd.grad(fused(x), [x, linear.weight])
    torch.testing.assert_close(found, torch.autograd.grad(model(x), [x, linear.weight]))
    sites = fused.report.sites
    assert [(s.epilogue, s.kind) for s in sites] == [
        ("v0 = mat0 square add(1.0); mul(3.0) div(v0)", "gradient"),
        ("mul(2.0)", "gradient"),
    ]
    backward = [m.reason for m in fused.report.misses if m.backward]
    assert backward == ["a product alone, which torch's GEMM computes on the CPU"] * 2
    assert fused.reasons == ["`atan` is not a stage fusepass knows"] * 2


def test_golden_joint_graph() -> None:
    """The backward is the original's, behind the pre-activation; the forward's nodes are gone."""
    linear = nn.Linear(24, 40)
    fused = fuse(lambda x: F.gelu(linear(x)))
    fused(torch.randn(6, 24)).sum().backward()
    assert_expected_inline(
        fused.after[0],
        """\
primals_1: f32[40, 24]
primals_2: f32[40]
primals_3: f32[6, 24]
tangents_1: f32[6, 40]
linear_with_preact_default = fusepass.linear_with_preact(primals_3, primals_1, primals_2, 'gelu', [])
getitem: f32[6, 40] = getitem(linear_with_preact_default, 0)
getitem_1: f32[6, 40] = getitem(linear_with_preact_default, 1)
detach_default: f32[6, 40] = aten.detach(getitem_1)
mul_3: f32[6, 40] = aten.mul(detach_default, 0.7071067811865476)
erf_1: f32[6, 40] = aten.erf(mul_3)
add_1: f32[6, 40] = aten.add(erf_1, 1)
mul_4: f32[6, 40] = aten.mul(add_1, 0.5)
mul_5: f32[6, 40] = aten.mul(detach_default, detach_default)
mul_6: f32[6, 40] = aten.mul(mul_5, -0.5)
exp: f32[6, 40] = aten.exp(mul_6)
mul_7: f32[6, 40] = aten.mul(exp, 0.3989422804014327)
mul_8: f32[6, 40] = aten.mul(detach_default, mul_7)
add_2: f32[6, 40] = aten.add(mul_4, mul_8)
mul_9: f32[6, 40] = aten.mul(tangents_1, add_2)
permute_1: f32[40, 6] = aten.permute(mul_9, [1, 0])
mm: f32[40, 24] = aten.mm(permute_1, primals_3)
permute_2: f32[24, 40] = aten.permute(mm, [1, 0])
sum_1: f32[1, 40] = aten.sum(mul_9, [0], True)
view: f32[40] = aten.view(sum_1, [40])
permute_3: f32[40, 24] = aten.permute(permute_2, [1, 0])
return [getitem, permute_3, view, None]""",  # noqa: E501
    )


def test_golden_relu_needs_no_pre_activation() -> None:
    """relu's backward reads its result: nothing but the result is computed and saved."""
    linear = nn.Linear(24, 40, bias=False)
    fused = fuse(lambda x: F.relu(linear(x)))
    fused(torch.randn(6, 24)).sum().backward()
    assert_expected_inline(
        fused.after[0],
        """\
primals_1: f32[40, 24]
primals_2: f32[6, 24]
tangents_1: f32[6, 40]
linear_default: f32[6, 40] = fusepass.linear(primals_2, primals_1, None, 'clamp(0.0, inf)', [])
alias: f32[6, 40] = aten.alias(linear_default)
alias_1: f32[6, 40] = aten.alias(alias)
le: bool[6, 40] = aten.le(alias_1, 0)
scalar_tensor: f32[] = aten.scalar_tensor(0, dtype=torch.float32, layout=torch.strided, device=cpu)
where: f32[6, 40] = aten.where(le, scalar_tensor, tangents_1)
permute_1: f32[40, 6] = aten.permute(where, [1, 0])
mm_1: f32[40, 24] = aten.mm(permute_1, primals_2)
permute_2: f32[24, 40] = aten.permute(mm_1, [1, 0])
permute_3: f32[40, 24] = aten.permute(permute_2, [1, 0])
return [linear_default, permute_3, None]""",
    )


@pytest.mark.parametrize("budget", [1.0, 0.5])
def test_under_a_memory_budget_the_backward_may_compute_the_result_again(budget: float) -> None:
    """What it reads is then computed from the pre-activation, which has one name to be weighed by.

    Without a budget the backward reads the op's own result, and the pre-activation counts as
    stored.
    """
    linear, x = nn.Linear(24, 40).double(), torch.randn(6, 24).double()
    model = lambda x: torch.lgamma(F.gelu(linear(x)))  # noqa: E731
    with torch._functorch.config.patch(activation_memory_budget=budget):
        fused = fuse(model)
        found = torch.autograd.grad(fused(x).sum(), linear.weight)
    torch.testing.assert_close(found, torch.autograd.grad(model(x).sum(), linear.weight))
    (slope,) = [n for n in fused.graphs[0].nodes if n.name == "digamma"]
    read = {torch.ops.aten.mul.Tensor if budget < 1 else operator.getitem}
    assert {n.target for n in slope.all_input_nodes} == read
    assert ("detach" in fused.after[0]) == (budget == 1)


def test_recompute_tags_stay() -> None:
    linear = nn.Linear(24, 40)

    def model(x: torch.Tensor) -> torch.Tensor:
        inner = lambda x: F.gelu(linear(x)) * 2  # noqa: E731
        return torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)

    x = torch.randn(6, 24, requires_grad=True)
    fused = fuse(model)
    fused(x).sum().backward()
    found = x.grad.clone()
    x.grad = None
    model(x).sum().backward()
    torch.testing.assert_close(found, x.grad)
    (node,) = [n for n in fused.graphs[0].nodes if "linear_with_preact" in n.name]
    assert node.meta["recompute"].name in ("MUST_RECOMPUTE", "PREFER_RECOMPUTE")
    assert fused.epilogues == ["gelu mul(2.0)"]


@pytest.mark.parametrize(("name", "trains"), [("tangents_1", True), ("tangents_scale", False)])
def test_an_input_that_is_merely_called_like_a_gradient(name: str, trains: bool) -> None:
    """Exported programs keep the names of their own inputs."""
    graph = torch.fx.Graph()
    given = graph.placeholder(name)
    result = graph.call_function(torch.ops.aten.relu.default, (given,))
    graph.output((result,))
    facts = Graph(graph)
    assert facts.has_backward == trains and (result in facts.forward) != trains
