"""Graphs before and after the pass, as text; what the new nodes say of themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from graphs import fuse
from small_models import block
from torch import nn


def test_golden_inference() -> None:
    with torch.no_grad():
        fused = fuse(block(24, 40))
        fused(torch.randn(6, 24))
    assert_expected_inline(
        fused.before[0],
        """\
arg0_1: f32[40, 24]
arg1_1: f32[40]
arg2_1: f32[6, 24]
permute: f32[24, 40] = aten.permute(arg0_1, [1, 0])
addmm: f32[6, 40] = aten.addmm(arg1_1, arg2_1, permute)
mul: f32[6, 40] = aten.mul(addmm, 0.5)
clamp_min: f32[6, 40] = aten.clamp_min(mul, -2)
clamp_max: f32[6, 40] = aten.clamp_max(clamp_min, 2)
mul_1: f32[6, 40] = aten.mul(clamp_max, 0.5)
mul_2: f32[6, 40] = aten.mul(clamp_max, 0.7071067811865476)
erf: f32[6, 40] = aten.erf(mul_2)
add: f32[6, 40] = aten.add(erf, 1)
mul_3: f32[6, 40] = aten.mul(mul_1, add)
return [mul_3]""",
    )
    assert_expected_inline(
        fused.after[0],
        """\
arg0_1: f32[40, 24]
arg1_1: f32[40]
arg2_1: f32[6, 24]
linear_default: f32[6, 40] = fusepass.linear(arg2_1, arg0_1, arg1_1, 'mul(0.5) clamp(-2.0, 2.0) gelu', [])
return [linear_default]""",  # noqa: E501
    )


def test_golden_three_dimensions_and_a_used_intermediate() -> None:
    linear = nn.Linear(24, 40, bias=False)

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = linear(x) * 2
        return F.relu(y), y

    with torch.no_grad():
        fused = fuse(model)
        found, expected = fused(x := torch.randn(2, 3, 24)), model(x)
    torch.testing.assert_close(found, expected)
    assert_expected_inline(
        fused.after[0],
        """\
arg0_1: f32[40, 24]
arg1_1: f32[2, 3, 24]
view: f32[6, 24] = aten.view(arg1_1, [6, 24])
gemm_default = fusepass.gemm(view, [arg0_1], [None], 'v0 = mul(2.0); v0 clamp(0.0, inf), v0', [])
getitem: f32[6, 40] = getitem(gemm_default, 0)
getitem_1: f32[6, 40] = getitem(gemm_default, 1)
view_default_1: f32[2, 3, 40] = aten.view(getitem_1, [2, 3, 40])
view_default: f32[2, 3, 40] = aten.view(getitem, [2, 3, 40])
return [view_default, view_default_1]""",
    )


def test_golden_bias_added_and_weight_stored_kn() -> None:
    weight, bias = torch.randn(24, 40), torch.randn(40)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(x @ weight + bias))
        torch.testing.assert_close(fused(x := torch.randn(6, 24)), F.relu(x @ weight + bias))
    assert_expected_inline(
        fused.after[0],
        """\
arg0_1: f32[6, 24]
arg1_1: f32[24, 40]
arg2_1: f32[40]
permute_default: f32[40, 24] = aten.permute(arg1_1, [1, 0])
linear_default: f32[6, 40] = fusepass.linear(arg0_1, permute_default, arg2_1, 'clamp(0.0, inf)', [])
return [linear_default]""",
    )


def test_golden_transposed_result() -> None:
    linear = nn.Linear(24, 40)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(linear(x).t()).t().reshape(-1))
        torch.testing.assert_close(fused(x := torch.randn(6, 24)), F.relu(linear(x)).view(-1))
    assert_expected_inline(
        fused.after[0],
        """\
arg0_1: f32[40, 24]
arg1_1: f32[40]
arg2_1: f32[6, 24]
linear_default: f32[6, 40] = fusepass.linear(arg2_1, arg0_1, arg1_1, 'clamp(0.0, inf)', [])
permute_default: f32[40, 6] = aten.permute(linear_default, [1, 0])
permute_2: f32[6, 40] = aten.permute(permute_default, [1, 0])
view: f32[240] = aten.view(permute_2, [-1])
return [view]""",
    )


def test_a_graph_with_nothing_to_fuse_is_untouched() -> None:
    linear = nn.Linear(24, 40)
    with torch.no_grad():
        fused = fuse(lambda x: torch.atan(linear(x)))
        fused(torch.randn(6, 24))
    assert fused.before == fused.after and len(fused.reasons) == 1


def test_every_new_node_says_where_it_comes_from() -> None:
    with torch.no_grad():
        fused = fuse(block(24, 40))
        fused(torch.randn(2, 3, 24))
    new = [n for n in fused.graphs[0].nodes if n.op == "call_function"][1:]
    assert len(new) == 2
    for node in new:
        assert node.meta["val"].is_contiguous() and node.meta["stack_trace"]
        assert node.meta["nn_module_stack"]


def test_a_linear_read_by_a_site_that_was_replaced() -> None:
    """The exit of one site is the input of the next: five in a row."""
    model = nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(24, 24), nn.ReLU())))
    x = torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == ["clamp(0.0, inf)"] * 5
    assert "aten" not in fused.after[0]


def test_a_linear_that_reads_another_ones_pre_activation() -> None:
    first, second = nn.Linear(24, 24), nn.Linear(24, 24)

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = first(x)
        return F.gelu(z), F.relu(second(z) * z.mean())

    x = torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == ["gelu", "mul($0) clamp(0.0, inf)"]
