"""What an epilogue reads beside the product: a number a column, a number a row, a matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from epilogues import CHANCE, error
from graphs import fuse, text
from torch import Tensor, nn

from fusepass.rewrite.graph_pass import run

ROWS, N = (2, 3), 40
Tail = Callable[..., object]


class Reads(nn.Module):
    """A Linear of [2, 3, 24] and a tail that reads tensors beside it."""

    def __init__(self, tail: Tail, dtype: torch.dtype = torch.float32, bias: bool = True) -> None:
        super().__init__()
        self.linear, self.tail = nn.Linear(24, N, bias=bias), tail
        shapes = {"mat": (*ROWS, N), "other": (*ROWS, N), "col": (N,), "row": (*ROWS, 1),
                  "gate": (ROWS[0], 1, N), "scale": ()}  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.randn(shape))
        self.register_buffer("mask", torch.rand(*ROWS, N) > 0.3)
        self.to(dtype)

    def forward(self, x: Tensor) -> object:
        return self.tail(self.linear(x), self)


CASES: dict[str, tuple[Tail, str]] = {
    "residual": (lambda z, m: z + m.mat, "add(mat0)"),
    "residual in front": (lambda z, m: m.mat - z, "rsub(mat0)"),
    "alpha": (lambda z, m: torch.add(z, m.mat, alpha=2), "mat0 mul(2.0) add(z)"),
    "layer scale": (lambda z, m: m.mat + z * m.col, "mul(col0) add(mat0)"),
    "a gate a batch": (lambda z, m: m.mat + z * m.gate, "mul(mat0) add(mat1)"),
    "a factor a row": (lambda z, m: z * m.row, "mul(row0)"),
    "three summands": (lambda z, m: m.mat + z + m.other, "add(mat0) add(mat1)"),
    "gelu of a sum": (lambda z, m: F.gelu(z + m.mat), "add(mat0) gelu"),
    "times a mask": (lambda z, m: z * m.mask, "mul(mat0:bool)"),
    "masked": (lambda z, m: torch.where(m.mask, F.gelu(z), 0.0), "gelu where(mat0:bool, _, 0.0)"),
    "filled": (lambda z, m: z.masked_fill(m.mask, -1.0), "where(mat0:bool, -1.0, _)"),
    "a bound": (lambda z, m: torch.minimum(z, m.mat), "minimum(mat0)"),
    "two bounds": (lambda z, m: z.clamp(m.col, m.mat), "clamp(col0, mat0)"),
    "act(z) + z": (lambda z, m: F.silu(z) + z, "silu add(z)"),
    "a condition times a mask": (
        lambda z, m: z * ((z > 0) & m.mask), "gt(0.0) logical_and(mat0:bool) mul(z)"
    ),
    "a condition times numbers": (lambda z, m: (z > 0) * m.mat, "gt(0.0) mul(mat0)"),
    "one slope for all": (lambda z, m: F.prelu(z, m.col[:1]), "prelu($0)"),
    "scalars beside": (lambda z, m: (z * m.scale + m.mat) / 2, "mul($0) add(mat0) mul(0.5)"),
    "batch norm": (
        lambda z, m: F.batch_norm(z.flatten(0, 1), m.col, m.col.abs() + 1, m.col, m.col),
        "sub(col0) mul(col1) mul(col0) add(col0)",
    ),
    "a broadcast row of one": (lambda z, m: z + m.mat[:, :, :1], "add(row0)"),
    "positions": (lambda z, m: z + m.mat[:1], "add(mat0)"),
    "computed for it alone": (
        lambda z, m: z + torch.tanh(m.mat) * m.other, "mat0 tanh mul(mat1) add(z)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_one_site(name: str, dtype: torch.dtype) -> None:
    """Its error against float64 is eager's at most, but for chance."""
    tail, epilogue = CASES[name]
    model, x = Reads(tail, dtype), torch.randn(*ROWS, 24, dtype=dtype)
    with torch.no_grad():
        fused = fuse(model)
        found, eager = fused(x), model(x)
        exact = copy.deepcopy(model).double()(x.double())
    # Variances are float32's roots in 16 bits, too.
    assert [e.replace("col1:f32", "col1") for e in fused.epilogues] == [epilogue]
    assert found.dtype == eager.dtype and found.shape == eager.shape
    assert error(found, exact) <= error(eager, exact) + CHANCE[dtype]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(6,), (2, 3), (1, 2, 3)])
def test_shapes_of_x(rows: tuple[int, ...], bias: bool) -> None:
    linear, x, mat = nn.Linear(24, N, bias=bias), torch.randn(*rows, 24), torch.randn(*rows, N)
    with torch.no_grad():
        fused = fuse(lambda x, mat: (F.gelu(linear(x)) + mat).transpose(-1, 0))
        found = fused(x, mat)
        torch.testing.assert_close(found, (F.gelu(linear(x)) + mat).transpose(-1, 0))
    assert fused.epilogues == ["gelu add(mat0)"]


@pytest.mark.parametrize("strides", [(1, 6), (80, 2), (0, 1), (40, 0)])
def test_any_strides(strides: tuple[int, int]) -> None:
    linear, x = nn.Linear(24, N), torch.randn(6, 24)
    mat = torch.as_strided(torch.randn(480), (6, N), strides)
    with torch.no_grad():
        fused = fuse(lambda x, mat: linear(x) * mat)
        torch.testing.assert_close(fused(x, mat), linear(x) * mat)
    assert fused.epilogues == ["mul(mat0)"]


def test_dynamic_rows() -> None:
    linear = nn.Linear(24, N)
    with torch.no_grad():
        fused = fuse(lambda x, mat, gate: mat + linear(x) * gate, dynamic=True)
        for batch, length in ((2, 3), (4, 5)):
            x, mat = torch.randn(batch, length, 24), torch.randn(batch, length, N)
            gate = torch.randn(batch, 1, N)
            torch.testing.assert_close(fused(x, mat, gate), mat + linear(x) * gate)
    assert set(fused.epilogues) == {"mul(mat0) add(mat1)"}


def test_a_wider_residual_keeps_its_width() -> None:
    """As under autocast: the sum is never rounded to the product's dtype."""
    linear, x = nn.Linear(24, N), torch.randn(2, 3, 24)
    mat = torch.randn(2, 3, N)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fused = fuse(lambda x, mat: linear(x) + mat)
        found, eager = fused(x, mat), linear(x) + mat
    exact = F.linear(x.bfloat16().double(), linear.weight.bfloat16().double(),
                     linear.bias.bfloat16().double()) + mat  # fmt: skip
    assert fused.epilogues == ["add(mat0:f32) store:f32"] and found.dtype == torch.float32
    assert error(found, exact) <= error(eager, exact) + CHANCE[torch.float32]


def test_dropout_reads_its_mask_where_it_is_drawn() -> None:
    """Random numbers are drawn in the program's order: two masks are the unfused graph's."""
    linear, x, mat = nn.Linear(24, N), torch.randn(6, 24), torch.randn(6, N)

    def model(x: Tensor, mat: Tensor) -> Tensor:
        noise = torch.rand(6, N)
        return mat + F.dropout(linear(x), 0.5, True) * noise

    with torch.no_grad():
        fused = fuse(model)
        torch.manual_seed(3)
        found = fused(x, mat)
        torch.manual_seed(3)
        noise = torch.rand(6, N)
        mask = torch.rand(6, N) > 0.5
        torch.testing.assert_close(found, mat + linear(x) * mask * 2 * noise)
    assert fused.epilogues == ["mul(mat0:bool) mul(2.0) mul(mat1) add(mat2)"]


# tail -> the sites, the reason of the only miss
REFUSED: dict[str, tuple[Tail, list[str], str]] = {
    "of the result itself": (
        lambda z, m: z * z.mean(0), [], "takes a tensor that is computed from the result itself"
    ),
    "a sum of the result": (
        lambda z, m: z / z.sum(-1, keepdim=True), [], "computed from the result itself"
    ),
    "another shape": (lambda z, m: z[0, 0] * m.mat, [], "takes a part of the Linear's result"),
    "integers": (lambda z, m: z * m.mat.int(), [], "takes a tensor of int32"),
    "complex": (lambda z, m: z * m.mat.to(torch.complex64), [], "takes a tensor of complex64"),
    "too wide": (lambda z, m: z + m.mat.double(), [], "takes a tensor of float64, wider than"),
    "a broadcast result": (
        lambda z, m: z[None] + m.mat.expand(4, *ROWS, N), [], "takes the result in another order"
    ),
    "columns that are rows of another view": (
        lambda z, m: z.mT.flatten(1) * m.mat.mT.flatten(1), [], "in another order"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_operand(name: str) -> None:
    tail, epilogues, reason = REFUSED[name]
    model, x = Reads(tail), torch.randn(*ROWS, 24)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == epilogues
    (miss,) = fused.reasons
    assert reason in miss


def test_a_later_products_result_is_none() -> None:
    """The later product reads the earlier one's result, not the other way round."""
    a, b, x = nn.Linear(24, N), nn.Linear(24, N), torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(a(x)) + F.gelu(b(x)))
        torch.testing.assert_close(fused(x), F.relu(a(x)) + F.gelu(b(x)))
    first, second = fused.report.sites
    assert (first.epilogue, second.epilogue) == ("clamp(0.0, inf)", "gelu add(mat0)")
    assert first.follows is None  # the sum is the second's


def test_bitwise_reads_scalars_only() -> None:
    linear, x, mat = nn.Linear(24, N), torch.randn(6, 24), torch.randn(6, N)
    with torch.no_grad():
        fused = fuse(lambda x, mat: F.relu(linear(x)) + mat, "bitwise")
        assert torch.equal(fused(x, mat), F.relu(linear(x)) + mat)
    assert fused.epilogues == ["clamp(0.0, inf)"]


def test_an_operand_written_later_is_read_before() -> None:
    linear, x = nn.Linear(24, N), torch.randn(6, 24)

    def model(x: Tensor, kept: Tensor) -> Tensor:
        out = linear(x) + kept
        kept.mul_(2)
        return out + kept

    with torch.no_grad():
        fused, kept = fuse(model), torch.randn(6, N)
        other = kept.clone()
        torch.testing.assert_close(fused(x, kept), model(x, other))
        torch.testing.assert_close(kept, other)


def test_the_program_is_validated_with_its_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusepass.match import importing

    wrong = lambda b, left, right: b.apply("mul", left, right)  # noqa: E731
    monkeypatch.setitem(importing._READERS, "add", wrong)
    linear, x, mat = nn.Linear(24, N), torch.randn(6, 24), torch.randn(6, N)
    with torch.no_grad():
        fused = fuse(lambda x, mat: linear(x) + mat)
        torch.testing.assert_close(fused(x, mat), linear(x) + mat)
    (reason,) = fused.reasons
    assert reason.startswith("looks like mul(mat0) but differs: z=") and "mat0=" in reason


def test_an_error_restores_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusepass.rewrite import edit as rewrite

    linear, x = nn.Linear(24, N), torch.randn(2, 3, 24)
    seen: list[torch.fx.Graph] = []

    def broken(*args: object) -> None:
        seen.append(args[0].graph)  # type: ignore[attr-defined]
        raise RuntimeError("broken")

    monkeypatch.setattr(rewrite, "check_same", broken)
    with torch.no_grad(), pytest.raises(Exception, match="broken"):
        fuse(lambda x, gate: linear(x) * gate)(x, torch.randn(2, 1, N))
    (graph,) = seen
    after = text(graph)
    monkeypatch.undo()
    assert "fusepass" not in after and "addmm" in after
    assert len(run(graph, "accurate").sites) == 1
