"""Edges of a region: wider types, other layouts, dimensions of one, sizes known at run time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from epilogues import CHANCE, error
from graphs import fuse
from torch import Tensor, nn

from fusepass.match import epilogues as matching

N = 40
Tail = Callable[..., Tensor]


# A tensor of another order in memory than the product's: where it comes first, the result has it,
# which matters where anything but Inductor's code sees it.
LAYOUTS: dict[str, tuple[Tail, list[str]]] = {
    "before it": (lambda z, mat: mat + z, []),
    "behind it": (lambda z, mat: z + mat, ["add(mat0)"]),
    "a mask": (lambda z, mat: torch.where(mat > 0, z, 0.0), []),
    "before it, behind gelu": (lambda z, mat: mat * F.gelu(z), ["gelu"]),
    "gone again": (lambda z, mat: z + (mat + z), ["add(mat0) add(z)"]),
    "seen by nobody": (lambda z, mat: (mat + z).sum(1), ["add(mat0)"]),
    "handed on": (lambda z, mat: torch.tanh(mat + z), []),
    "handed on to a sum": (lambda z, mat: torch.tanh(mat + z).sum(1), ["add(mat0) tanh"]),
    "seen behind a view": (lambda z, mat: (mat + z).unsqueeze(0).sum(1), ["add(mat0)"]),
    "read as it lies": (lambda z, mat: (mat + z).t().reshape(-1), []),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_result_lies_in_memory_as_it_did(name: str) -> None:
    tail, epilogues = LAYOUTS[name]
    linear, x, mat = nn.Linear(24, N), torch.randn(6, 24), torch.randn(N, 6).t()
    with torch.no_grad():
        fused = fuse(lambda x, mat: tail(linear(x), mat))
        found, eager = fused(x, mat), tail(linear(x), mat)
    torch.testing.assert_close(found, eager)
    assert found.stride() == eager.stride()
    assert fused.epilogues == epilogues
    reason = "takes a tensor of another order in memory, which the result has, too"
    assert all(reason in miss for miss in fused.reasons) and bool(fused.reasons) != bool(epilogues)


class Stream(nn.Module):
    """A residual stream as patches of images start it: in the order of a convolution's result."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ParameterList(torch.randn(width) for _ in range(depth))

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        x = patches.transpose(1, 2) + positions
        for layer, gate in zip(self.layers, self.gates, strict=True):
            x = x + gate * layer(F.layer_norm(x, x.shape[-1:]))
        return F.layer_norm(x, x.shape[-1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_stream_in_another_order(dtype: torch.dtype) -> None:
    """Which nobody sees: each layer adds its own to it, on Hopper too."""
    model = Stream(1024, 2).to(dtype)
    patches, positions = torch.randn(4, 1024, 256, dtype=dtype), torch.randn(256, 1024, dtype=dtype)
    with torch.no_grad():
        own = fuse(model, hopper=True)
        found, eager = own(patches, positions), model(patches, positions)
        exact = copy.deepcopy(model).double()(patches.double(), positions.double())
    # The last one's sum is a norm's alone, which Inductor adds up in passing.
    count = 2 if dtype == torch.float32 else 1
    assert own.epilogues == ["mul(col0) add(mat0)"] * count
    assert error(found, exact) <= error(eager, exact) + CHANCE[dtype]


def test_a_stream_that_is_returned_lies_as_it_did() -> None:
    model = Stream(40, 1)
    patches, positions = torch.randn(2, 40, 64), torch.randn(64, 40)

    def returned(patches: Tensor, positions: Tensor) -> Tensor:
        x = patches.transpose(1, 2) + positions
        return x + model.gates[0] * model.layers[0](x)

    with torch.no_grad():
        own = fuse(returned)
        found, eager = own(patches, positions), returned(patches, positions)
    torch.testing.assert_close(found, eager)
    assert found.stride() == eager.stride() and found.stride(1) == 1
    assert own.epilogues == ["mul(col0)"]


def test_a_value_on_the_way_that_is_read_later_stands_behind_no_random_mask() -> None:
    """The op would run where the mask is drawn, behind what is computed of its result."""
    linear, x = nn.Linear(24, N), torch.randn(6, 24)

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        gate = linear(x).sigmoid()
        return gate * (torch.rand(6, N) > 0.5), gate.sum(0)

    with torch.no_grad():
        fused = fuse(model)
        torch.manual_seed(3)
        found = fused(x)
        torch.manual_seed(3)
        torch.testing.assert_close(found, model(x))
    assert fused.epilogues == ["sigmoid"]


def test_a_copy_in_another_order_is_none_of_the_epilogue() -> None:
    linear, x, mat = nn.Linear(24, N), torch.randn(2, 3, 4, 24), torch.randn(2, 3, 4, N)

    def model(x: Tensor, mat: Tensor) -> Tensor:
        return F.gelu(linear(x)).clone(memory_format=torch.channels_last) * mat

    with torch.no_grad():
        fused = fuse(model)
        found, eager = fused(x, mat), model(x, mat)
    torch.testing.assert_close(found, eager)
    assert found.stride() == eager.stride()
    assert fused.epilogues == ["gelu"]


@pytest.mark.parametrize("broadcast", [False, True])
def test_dynamic_rows_on_hopper(broadcast: bool) -> None:
    """Sizes that are symbols are no numbers to compare, and no reason to leave the graph."""
    linear, x = nn.Linear(64, 128, dtype=torch.bfloat16), torch.randn(4, 192, 64).bfloat16()
    mat = torch.randn(4, 1 if broadcast else 192, 128).bfloat16()
    with torch.no_grad():
        fused = fuse(lambda x, mat: linear(x) + mat, hopper=True, dynamic=True)
        torch.testing.assert_close(fused(x, mat), linear(x) + mat)
    assert [e for e in fused.epilogues if e] == ([] if broadcast else ["add(mat0)"])


@pytest.mark.parametrize("start", [0, 1, 8])
@pytest.mark.parametrize("tail", [lambda z, mat: z + mat, lambda z, mat: F.gelu(z)])
def test_a_factor_that_copies_cannot_read_is_left_on_hopper(start: int, tail: Tail) -> None:
    """16 bytes are what a kernel's copies start at; at others the op would take two kernels."""
    linear, rows = nn.Linear(64, 128, dtype=torch.bfloat16), torch.randn(256, 80).bfloat16()
    x, mat = rows[:, start : start + 64], torch.randn(256, 128).bfloat16()
    with torch.no_grad():
        fused = fuse(lambda x, mat: tail(linear(x), mat), hopper=True)
        torch.testing.assert_close(fused(x, mat), tail(linear(x), mat))
    kernels = [site.kernel for site in fused.report.sites if site.kernel == "one kernel"]
    assert len(kernels) == (start % 8 == 0)


def test_rows_known_at_run_time_on_hopper() -> None:
    linear, x = nn.Linear(64, 128, dtype=torch.bfloat16), torch.randn(256, 64).bfloat16()
    mat, keep = torch.randn(256, 128).bfloat16(), torch.rand(256) > 0.5

    def model(x: Tensor, mat: Tensor, keep: Tensor) -> Tensor:
        rows = keep.nonzero()[:, 0]
        return linear(x[rows]) + mat[rows]

    capture = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
    with torch.no_grad(), capture:
        fused = fuse(model, hopper=True)
        torch.testing.assert_close(fused(x, mat, keep), model(x, mat, keep))
    assert fused.epilogues == [] and len(fused.reasons) == 1


def test_a_mask_of_wider_tensors_is_computed_in_their_type() -> None:
    """float32 could not tell them apart."""
    linear, x = nn.Linear(24, N), torch.randn(6, 24)
    a = torch.randn(6, N, dtype=torch.float64)
    b = a + 1e-12 * torch.randn(6, N, dtype=torch.float64)

    def model(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a > b, linear(x), 0.0)

    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x, a, b), model(x, a, b))
    assert fused.epilogues == ["where(mat0:bool, _, 0.0)"]


def test_a_bound_wider_than_the_result_is_compared_in_its_type() -> None:
    """float32's 0.1 is more than float64's. A tensor of no dimension is rounded to float32."""
    linear, x = nn.Linear(24, N), torch.randn(6, 24)
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, 0.1)
    bound = torch.tensor(0.1, dtype=torch.float64)

    def model(x: Tensor, bound: Tensor) -> Tensor:
        return torch.where(linear(x) > bound, 1.0, -1.0)

    with torch.no_grad():
        for given in (bound, bound[None]):
            assert torch.equal(fuse(model)(x, given), model(x, given))


@pytest.mark.parametrize(
    ("rows", "tail"),
    [
        ((6,), lambda z, mat: z.unsqueeze(0) * mat),
        ((6,), lambda z, mat: z.unsqueeze(1) * mat[0].unsqueeze(1)),
        ((2, 1, 3), lambda z, mat: z.squeeze(1) + mat.view(2, 3, N)),
    ],
)
def test_dimensions_of_one_come_and_go(rows: tuple[int, ...], tail: Tail) -> None:
    linear, x, mat = nn.Linear(24, N), torch.randn(*rows, 24), torch.randn(1, 6, N)
    with torch.no_grad():
        fused = fuse(lambda x, mat: tail(linear(x), mat))
        torch.testing.assert_close(fused(x, mat), tail(linear(x), mat))
    assert len(fused.epilogues) == 1


def test_what_is_better_left_is_not_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long tail has many ends; to see of each that it is right would take minutes."""
    validated = []
    validate = matching.validate
    monkeypatch.setattr(matching, "validate", lambda *a: validated.append(a) or validate(*a))
    linear, x = nn.Linear(64, 64, dtype=torch.bfloat16), torch.randn(32, 64).bfloat16()

    def model(x: Tensor) -> Tensor:
        y = linear(x)
        for _ in range(16):
            y = torch.sin(y) * 1.1
        return y.sum(-1)

    with torch.no_grad():
        fused = fuse(model, hopper=True)
        fused(x)
    assert fused.reasons == ["Inductor fuses these stages with what follows, for free"]
    assert validated == []
