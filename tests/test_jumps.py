"""Comparisons and steps that an epilogue computes of what is not rounded, what follows it of what
is: the two never contradict each other."""

from __future__ import annotations

import pytest
import torch
from graphs import Model, compose, fuse
from torch import Tensor, nn

from fusepass.match.jumps import TORN

F = nn.functional


def fused_and_eager(tail, dtype: torch.dtype, hopper: bool) -> tuple[object, object, list[str]]:
    """What a Linear and ``tail`` compute with the pass and without, and the pass's epilogues."""
    model = Model(tail, dtype)
    nn.init.normal_(model.linear.weight, std=0.2)
    fused, x = fuse(model, hopper=hopper), torch.randn(4096, 24).to(dtype)
    with torch.no_grad():
        return fused(x), model(x), fused.epilogues


@pytest.mark.parametrize("hopper", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lerp_by_a_gate_takes_one_side(dtype: torch.dtype, hopper: bool) -> None:
    def tail(z: Tensor) -> Tensor:
        ends = torch.zeros(40, dtype=z.dtype), torch.full((40,), 100.0, dtype=z.dtype)
        return torch.lerp(*ends, torch.sigmoid(z))

    found, wanted, _ = fused_and_eager(tail, dtype, hopper)
    torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_and_what_is_beyond_it_add_up(dtype: torch.dtype) -> None:
    def tail(z: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.sigmoid(z) * 8
        step = s.floor()
        return (s - step) * 2, step.to(torch.int32)

    (beyond, step), (wanted, of), _ = fused_and_eager(tail, dtype, hopper=False)
    torch.testing.assert_close(
        step + beyond.float() / 2, of + wanted.float() / 2, rtol=0, atol=16 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_sides_of_a_bound_are_all_there_is(dtype: torch.dtype) -> None:
    def tail(z: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.tanh(z)
        return torch.where(s > 0.5, s, 0), (s <= 0.5).long()

    (above, below), _, _ = fused_and_eager(tail, dtype, hopper=False)
    assert torch.equal(above > 0, below == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gate_beside_a_linear_takes_one_side(dtype: torch.dtype) -> None:
    """What is computed of an operand alone is not rounded, either."""
    gate, start = (torch.randn(4096, 40) * 0.01).to(dtype), torch.randn(4096, 40).to(dtype)

    def tail(z: Tensor) -> Tensor:
        return torch.lerp(start + 100, torch.tanh(z), torch.sigmoid(gate))

    found, wanted, _ = fused_and_eager(tail, dtype, hopper=False)
    torch.testing.assert_close(found, wanted, rtol=4 * torch.finfo(dtype).eps, atol=0.02)


def test_where_the_epilogue_has_it_all_it_is_fused() -> None:
    for tail in (F.leaky_relu, F.elu, F.hardshrink, lambda z: z - z.floor()):
        assert len(fused_and_eager(tail, torch.bfloat16, hopper=False)[2]) == 1


def test_the_miss_says_why() -> None:
    def tail(z: Tensor) -> tuple[Tensor, Tensor]:
        above = z > 0.3
        return torch.where(above, 1.0, 0.0).to(z.dtype), above.long()

    fused = fuse(Model(compose(tail), torch.bfloat16))
    with torch.no_grad():
        fused(torch.randn(64, 24).to(torch.bfloat16))
    assert fused.epilogues == [] and fused.reasons == [TORN]
