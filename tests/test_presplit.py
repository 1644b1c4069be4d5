"""A weight's split is an operator of its own: freezing folds it into a constant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config as inductor
from small_models import QUICK, UNCACHED
from torch import Tensor, nn
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._subclasses import FakeTensorMode
from torch.fx import Graph

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import few as plan_few
from fusepass.kernels.plan import problem
from fusepass.op import presplit

LINEAR, SPLIT = torch.ops.fusepass.linear, torch.ops.fusepass.split.default


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
            assert node.args[5] is None
            self.splits.append(node.args[6].op)

    def uuid(self) -> None:
        return None


@pytest.fixture
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the plan took the split kernel for every call."""
    monkeypatch.setattr(presplit, "fuses", lambda *args: True)
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)


@pytest.fixture
def frozen() -> Iterator[Frozen]:
    seen = Frozen()
    config = {"freezing": True, "post_grad_custom_post_pass": seen, **UNCACHED, **QUICK}
    with inductor.patch({**config, "cpp.weight_prepack": False}):  # a GPU packs no weight
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
    for splits in ((None, SPLIT(w)), (SPLIT(x), None), (SPLIT(x), SPLIT(w)), (None, None)):
        torch.library.opcheck(LINEAR.split, (x, w, torch.randn(8), "gelu", [], *splits))
    torch.library.opcheck(SPLIT, (x.transpose(1, 2),))


@pytest.mark.parametrize("is_km", [False, True])
@pytest.mark.parametrize(("rows", "k"), [(128, 64), (130, 63), (1, 1), (3, 1000), (1000, 3)])
def test_split_is_as_large_as_its_parts(rows: int, k: int, is_km: bool) -> None:
    # Two pieces of 16 bits, lines up to 8 elements, and 16 + 4 bytes a row; of one that is far to
    # read a list of 16 elements, too.
    lines, length = (k, rows) if is_km else (rows, k)
    needed = 4 * lines * -(-length // 8) * 8 + (20 + 64 * is_km) * rows
    stored, each = plan_f32.split_shape(rows, k, is_km)
    assert stored == lines and needed <= stored * each < needed + 40 * lines


def test_no_two_matrices_have_splits_of_one_size() -> None:
    sizes = [(n, k) for n in (*range(1, 20), 64, 127, 128, 129, 256) for k in range(1, 140)]
    shapes = {plan_f32.split_shape(n, k, is_km) for n, k in sizes for is_km in (False, True)}
    assert len(shapes) == 2 * len(sizes)


@pytest.mark.parametrize("which", ["x", "weight"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("other", ["rows", "k", "order"])
def test_a_split_of_another_matrix_is_refused(device: str, other: str, which: str) -> None:
    x, w = torch.randn(200, 256, device=device), torch.randn(128, 256, device=device)
    assert LINEAR.split(x, w, None, "gelu", [], SPLIT(x), SPLIT(w)).shape == (200, 128)
    mine = {"x": x, "weight": w}[which]
    rows, k = mine.shape
    another = {"rows": torch.randn(rows - 2, k), "k": torch.randn(rows, k - 1), "order": mine.mT}
    matrix = another[other].to(device)
    split = SPLIT(matrix.contiguous().mT if other == "order" else matrix)
    splits = (split, None) if which == "x" else (None, split)
    with pytest.raises(ValueError, match="made of " + which):
        LINEAR.split(x, w, None, "gelu", [], *splits)
    with FakeTensorMode() as mode, pytest.raises(ValueError, match="made of " + which):
        x, w, split = (mode.from_tensor(t) for t in (x, w, split))
        LINEAR.split(x, w, None, "gelu", [], *((split, None) if which == "x" else (None, split)))


@pytest.mark.parametrize(
    ("matrix", "shape"),
    [
        (torch.empty(6, 8), (6, 8, False)),
        (torch.empty(8, 6).t(), (6, 8, True)),
        (torch.empty(2, 3, 8), (6, 8, False)),
        (torch.empty(2, 3, 10)[..., :8], (6, 8, False)),
        (torch.empty(8, 2, 3).permute(1, 2, 0), (6, 8, True)),
        (torch.empty(8, 7)[:, :6].t(), (6, 8, True)),
        (torch.empty(2, 4, 8)[:, :3], (6, 8, False)),  # neither: copied by whoever multiplies
        (torch.empty(1, 16)[:, ::2], (1, 8, True)),
    ],
)
def test_a_split_has_the_order_of_its_matrix(matrix: Tensor, shape: tuple[int, int, bool]) -> None:
    assert SPLIT(matrix).shape == plan_f32.split_shape(*shape)


def test_only_a_float32_matrix_is_split() -> None:
    for w in (torch.randn(8), torch.randn(8, 8).half()):
        with pytest.raises(ValueError, match="float32"):
            SPLIT(w)
