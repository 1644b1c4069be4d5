"""Scalars known only at run time: learnable scales, 0-d tensors, a module's float when dynamic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import Fused, fuse
from torch import nn

Tail = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Scaled(nn.Module):
    """A Linear, then ``tail(z, scale)`` with a learnable scale."""

    def __init__(self, tail: Tail, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32):
        super().__init__()
        self.linear = nn.Linear(24, 40, dtype=dtype)
        self.scale = nn.Parameter(torch.full(shape, 0.75, dtype=dtype))
        self.tail = tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.linear(x), self.scale)


def run(model: nn.Module, numerics: str = "accurate", dtype: torch.dtype = torch.float32) -> Fused:
    """Compiles and compares, with the operand changed in between."""
    x = torch.randn(6, 24, dtype=dtype)
    fused = fuse(model, numerics)
    with torch.no_grad():
        for value in (0.75, -3.0):
            model.scale.fill_(value)
            found, expected = fused(x), model(x)
            if numerics == "bitwise":
                assert torch.equal(found, expected)
            torch.testing.assert_close(found, expected)
    assert len(fused.reports) == 1
    return fused


@pytest.mark.parametrize(
    ("tail", "epilogue"),
    [
        (lambda z, s: F.gelu(z * s), "mul($0) gelu"),
        (lambda z, s: F.gelu(s * z), "mul($0) gelu"),
        (lambda z, s: z / s, "div($0)"),
        (lambda z, s: F.relu(z / s.abs()), "div($0) clamp(0.0, inf)"),
        (lambda z, s: z * s * s, "mul($0) mul($0)"),
        (lambda z, s: torch.clamp(z, -s.abs(), s.abs()), "clamp($0, $1)"),
        (lambda z, s: torch.clamp(z, max=s), "clamp(-inf, $0)"),
        (lambda z, s: torch.minimum(torch.maximum(z, s - 1), s), "clamp($0, $1)"),
        (lambda z, s: torch.maximum(torch.minimum(z, s), s - 1),
         "clamp(-inf, $0) clamp($1, inf)"),
        (lambda z, s: F.gelu(z * 2.0) * torch.exp(s), "mul(2.0) gelu mul($0)"),
        (lambda z, s: (z * torch.sin(s)).clamp(-1, 1) / s, "mul($0) clamp(-1.0, 1.0) div($1)"),
    ],
)  # fmt: skip
def test_operands(tail: Tail, epilogue: str) -> None:
    fused = run(Scaled(tail))
    assert fused.epilogues == [epilogue] and fused.reasons == []


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
def test_one_element_of_any_rank(shape: tuple[int, ...], dtype: torch.dtype, numerics: str) -> None:
    fused = run(Scaled(lambda z, s: F.relu(z * s), shape, dtype), numerics, dtype)
    assert fused.epilogues == ["mul($0) clamp(0.0, inf)"]


def test_a_scalar_rounded_on_the_way_stays_rounded() -> None:
    model = Scaled(lambda z, s: F.relu(z * (s + 0.0001).half()))
    assert run(model).epilogues == ["mul($0) clamp(0.0, inf)"]


@pytest.mark.parametrize(
    ("shape", "epilogues"),
    [
        ((40,), ["mul(col0) clamp(0.0, inf)"]),
        ((6, 1), ["mul(row0) clamp(0.0, inf)"]),
        ((1, 1, 1), []),  # of one element, but it gives the result a dimension
    ],
)
def test_what_is_not_one_element_is_no_scalar(shape: tuple[int, ...], epilogues: list[str]) -> None:
    fused = run(Scaled(lambda z, s: F.relu(z * s), shape))
    assert fused.epilogues == epilogues and len(fused.reasons) == 1 - len(epilogues)


def test_a_scalar_computed_from_z_is_no_operand() -> None:
    fused = run(Scaled(lambda z, s: F.relu(z * (s + z.mean()))))
    assert fused.epilogues == []
    assert fused.reasons == [
        "`mul` takes a scalar that is no float or comes from the Linear itself"
    ]


def test_an_integer_scalar_is_no_operand() -> None:
    linear, x, scale = nn.Linear(24, 40), torch.randn(6, 24), torch.tensor(3)
    with torch.no_grad():
        fused = fuse(lambda x: linear(x) * scale)
        torch.testing.assert_close(fused(x), linear(x) * 3)
    assert fused.epilogues == [] and "no float" in fused.reasons[0]


def test_a_scalar_computed_behind_the_linear_is_moved_before_it() -> None:
    def tail(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return F.relu(z) * torch.exp(s + 1) + z.sum()

    fused = run(Scaled(tail))
    assert fused.epilogues == ["clamp(0.0, inf) mul($0)"]


class Attribute(nn.Module):
    """Scale and bound as plain floats of the module."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40, dtype=dtype)
        self.scale, self.bound = 0.7, 1.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu((self.linear(x) * self.scale).clamp(-2, 2)) / self.scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
def test_a_dynamic_float_is_the_hosts_own_number(dtype: torch.dtype, numerics: str) -> None:
    model = Attribute(dtype)
    fused = fuse(model, numerics, dynamic=True)
    with torch.no_grad():
        for rows, scale in ((6, 0.7), (5, 1 / 3), (4, -2.1)):
            model.scale = scale
            x = torch.randn(rows, 24, dtype=dtype)
            found, expected = fused(x), model(x)
            assert numerics == "accurate" or torch.equal(found, expected)
            torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    assert fused.epilogues[-1] == "mul($0) clamp(-2.0, 2.0) gelu div($0)"
    (node,) = [n for n in fused.graphs[-1].nodes if "linear" in str(n.target)]
    (operand,) = node.args[4]
    assert operand.op == "placeholder" and operand.meta["val"].dtype is torch.float64
    assert operand.meta["val"].device.type == "cpu"


def test_a_scale_in_another_dtype_is_rounded_by_bitwise_only_on_the_host() -> None:
    """A 0-d CPU scale keeps its own precision in eager; so it does here."""
    scale = torch.tensor(0.7)
    linear, x = nn.Linear(24, 40).bfloat16(), torch.randn(6, 24).bfloat16()
    with torch.no_grad():
        fused = fuse(lambda x: linear(x) * scale, "bitwise")
        assert torch.equal(fused(x), linear(x) * scale)
    assert fused.epilogues == ["mul($0)"]
