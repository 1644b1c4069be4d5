"""A weight's split is an operator of its own: freezing folds it into a constant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._subclasses import FakeTensorMode
from torch.fx import Graph

import fusepass.op  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import presplit
from fusepass.kernels import plan_f32, problem

LINEAR, SPLIT = torch.ops.fusepass.linear, torch.ops.fusepass.split_weight.default


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.up(x) * 0.5)
        out: Tensor = nn.functional.hardtanh(self.down(hidden) * 2.0, -0.5, 0.5)
        return out


class Frozen(CustomGraphPass):
    """Keeps the targets and the attributes of the graph that Inductor lowers."""

    def __init__(self) -> None:
        self.targets: list[object] = []
        self.splits: list[object] = []

    def __call__(self, graph: Graph) -> None:
        self.targets += [node.target for node in graph.nodes if node.op == "call_function"]
        for node in graph.find_nodes(op="call_function", target=LINEAR.split):
            self.splits.append(node.args[5].op)

    def uuid(self) -> None:
        return None


@pytest.fixture
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the plan took the split kernel for every call."""
    monkeypatch.setattr(presplit, "fuses", lambda *args: True)


@pytest.fixture
def frozen() -> Iterator[Frozen]:
    seen = Frozen()
    with inductor.patch(freezing=True, post_grad_custom_post_pass=seen, fx_graph_cache=False):
        yield seen


def test_freezing_splits_each_weight_once(as_on_hopper: None, frozen: Frozen) -> None:
    model, x = Chain().eval(), torch.randn(4, 16)
    expected = model(x)
    with torch.no_grad():
        compiled = torch.compile(model, backend="fusepass")
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(compiled(x + 1), model(x + 1))
    assert frozen.targets.count(LINEAR.split) == 2
    assert frozen.splits == ["get_attr", "get_attr"]  # constants: nothing is split in a call
    assert SPLIT not in frozen.targets and LINEAR.default not in frozen.targets


def test_what_is_no_parameter_is_split_by_the_call(as_on_hopper: None, frozen: Frozen) -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return nn.functional.gelu(x @ (w * 2).t())

    x, w = torch.randn(4, 16), torch.randn(8, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(f, backend="fusepass")(x, w), f(x, w))
    assert LINEAR.default in frozen.targets and LINEAR.split not in frozen.targets


@pytest.mark.parametrize("why", ["not frozen", "TF32", "bitwise", "gradient", "cuBLAS"])
def test_otherwise_nothing_is_split_ahead(
    why: str, as_on_hopper: None, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "TF32":
        monkeypatch.setattr(problem, "plan_code", lambda dtype: problem.TF32)
    if why == "cuBLAS":
        monkeypatch.setattr(presplit, "fuses", lambda *args: False)
    options = {"fusepass.numerics": "bitwise"} if why == "bitwise" else None
    model, x = Chain().eval(), torch.randn(4, 16)
    expected = model(x)
    with torch.set_grad_enabled(why == "gradient"), inductor.patch(freezing=why != "not frozen"):
        out = torch.compile(model, backend="fusepass", options=options)(x)
    torch.testing.assert_close(out, expected)
    assert LINEAR.split not in frozen.targets and SPLIT not in frozen.targets


def test_operators_are_well_formed() -> None:
    x, w = torch.randn(3, 4, 16), torch.randn(8, 16)
    torch.library.opcheck(SPLIT, (w,))
    torch.library.opcheck(LINEAR.split, (x, w, torch.randn(8), "gelu", [], SPLIT(w)))


def test_split_is_as_large_as_its_parts() -> None:
    # Two pieces of 16 bits, rows up to whole tiles of 128, K up to 8; 4 + 16 bytes a row.
    assert plan_f32.split_shape(128, 64) == (128, 2 * 64 * 2 + 4 + 16 + 4)  # up to 8
    rows, pitch = plan_f32.split_shape(130, 63)
    assert (2 * 64 * 2 + 4 + 16) * 256 <= rows * pitch < (2 * 64 * 2 + 4 + 16) * 256 + 15 * 130


def test_no_two_sizes_have_splits_of_one_size() -> None:
    sizes = [(n, k) for n in (1, 64, 127, 128, 129, 256) for k in range(140)]
    assert len({plan_f32.split_shape(n, k) for n, k in sizes}) == len(sizes)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("other", [(64, 256), (128, 255), (128, 264), (256, 128)])
def test_a_split_of_another_size_is_refused(device: str, other: tuple[int, int]) -> None:
    x, w = torch.randn(200, 256, device=device), torch.randn(128, 256, device=device)
    assert LINEAR.split(x, w, None, "gelu", [], SPLIT(w)).shape == (200, 128)
    split = SPLIT(torch.randn(other, device=device))
    with pytest.raises(ValueError, match="made of weight"):
        LINEAR.split(x, w, None, "gelu", [], split)
    with FakeTensorMode() as mode, pytest.raises(ValueError, match="made of weight"):
        x, w, split = (mode.from_tensor(t) for t in (x, w, split))
        LINEAR.split(x, w, None, "gelu", [], split)


def test_only_a_float32_matrix_is_split() -> None:
    for w in (torch.randn(8), torch.randn(8, 8).half()):
        with pytest.raises(ValueError, match="float32"):
            SPLIT(w)
