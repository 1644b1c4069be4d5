"""The overloads without operands: the op itself, and where graphs call them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fusepass.op.linear
from fusepass.op import constant

OPS = torch.ops.fusepass
CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
def test_the_op_itself(numerics: str) -> None:
    x, w, b = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4)
    with torch.no_grad():
        out, z = OPS.linear_with_preact(x, w, b, CHAIN, [], numerics=numerics)
        assert torch.equal(OPS.linear.constant(x, w, b, CHAIN, numerics=numerics), out)
        both = OPS.linear_with_preact.constant(x, w, b, CHAIN, numerics=numerics)
        assert torch.equal(both[0], out) and torch.equal(both[1], z)
    with pytest.raises(ValueError, match=r"takes 1 operand\(s\), got 0"):
        OPS.linear.constant(x, w, b, "mul($0)")


@pytest.mark.parametrize("op", [OPS.linear, OPS.linear_with_preact], ids=str)
def test_opcheck(op: torch._ops.OpOverloadPacket) -> None:
    x, w, b = torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4)
    torch.library.opcheck(op.constant, (x, w, b, "gelu"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_calls_without_operands_pass_no_list_on_a_gpu(device: str) -> None:
    graph = torch.fx.Graph()

    def input_of(*shape: int) -> torch.fx.Node:
        node = graph.placeholder(f"input{len(graph.nodes)}")
        with FakeTensorMode():
            node.meta["val"] = torch.empty(shape, device=device)
        return node

    x, w, c = input_of(6, 5), input_of(4, 5), input_of()
    plain = graph.call_function(OPS.linear.default, (x, w, None, CHAIN, []))
    both = graph.call_function(
        OPS.linear_with_preact.default, (x, w, None, CHAIN, []), {"numerics": "bitwise"}
    )
    scaled = graph.call_function(OPS.linear.default, (x, w, None, "mul($0)", [c]))
    constant.use_in(graph)
    assert scaled.target == OPS.linear.default and scaled.args[4] == [c]
    if device == "cpu":
        assert plain.target == OPS.linear.default and both.args[4] == []
        return
    assert plain.target == OPS.linear.constant and plain.args == (x, w, None, CHAIN)
    assert both.target == OPS.linear_with_preact.constant and len(both.args) == 4
    assert both.kwargs == {"numerics": "bitwise"}


def test_dynamic_sizes() -> None:
    @torch.compile(dynamic=True, fullgraph=True)
    def f(x: Tensor, w: Tensor) -> Tensor:
        return OPS.linear.constant(x, w, None, "gelu") + 1

    for rows in (3, 7):
        x, w = torch.randn(rows, 5), torch.randn(4, 5)
        with torch.no_grad():
            torch.testing.assert_close(f(x, w), torch.nn.functional.gelu(x @ w.t()) + 1)
