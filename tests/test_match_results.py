"""Several results of one product: which of a region's values its op computes, and their numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from epilogues import CHANCE, error
from graphs import Fused, fuse
from torch import Tensor, nn

ROWS, K, N = (4, 5), 24, 40
Tail = Callable[..., object]


class Reads(nn.Module):
    """A Linear of [4, 5, 24], a tail that may read tensors beside it, and a further Linear."""

    def __init__(self, tail: Tail, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear, self.next, self.tail = nn.Linear(K, N), nn.Linear(N, 16), tail
        for name in ("mat", "other"):
            self.register_buffer(name, torch.randn(*ROWS, N))
        self.register_buffer("col", torch.randn(N))
        self.to(dtype)

    def forward(self, x: Tensor) -> object:
        return self.tail(self.linear(x), self)


def compare(model: nn.Module, x: Tensor, **kwargs: object) -> Fused:
    """Every result has eager's type and at most its error against float64, but for chance."""
    with torch.no_grad():
        fused = fuse(model, **kwargs)
        found, eager = fused(x), model(x)
        exact = copy.deepcopy(model).double()(x.double())
    for ours, theirs, right in zip(found, eager, exact, strict=True):
        assert (ours.dtype, ours.shape, ours.stride()) == (
            theirs.dtype, theirs.shape, theirs.stride()
        )  # fmt: skip
        assert error(ours, right) <= error(theirs, right) + CHANCE[ours.dtype]
    return fused


def written(fused: Fused) -> list[str]:
    """The programs of the ops in the graphs, z among their outputs where it is written."""
    ops = [n for g in fused.graphs for n in g.nodes if str(n.target).startswith("fusepass.")]
    return [str(n.args[3]) + ("; z" if "preact" in str(n.target) else "") for n in ops]


# tail -> what the op computes and writes
STORED: dict[str, tuple[Tail, str]] = {
    "two activations": (lambda z, m: (F.gelu(z), torch.tanh(z)), "gelu, tanh"),
    "and z": (lambda z, m: (F.gelu(z), torch.tanh(z), z), "gelu, tanh, z"),
    "a value on the way": (
        lambda z, m: (lambda y: (F.gelu(y), y))(z * 2), "v0 = mul(2.0); v0 gelu, v0"
    ),
    "of one matrix": (
        lambda z, m: (z + m.mat, F.silu(z) * m.mat), "silu mul(mat0), add(mat0)"
    ),
    "a pair's gradients": (
        lambda z, m: (z * (m.mat * torch.sigmoid(m.mat)), z * m.other * m.mat.sigmoid()),
        "v0 = mat1 sigmoid; mul(mat0) mul(v0), mat1 silu mul(z)",
    ),
    "into products": (
        lambda z, m: (m.next(F.relu(z)), m.next(z * m.col)), "clamp(0.0, inf), mul(col0)"
    ),
    "in another shape": (
        lambda z, m: (F.gelu(z.flatten(0, 1)), (z * 3).transpose(1, 2)), "gelu, mul(3.0)"
    ),
    "four": (
        lambda z, m: (F.gelu(z), torch.tanh(z), z * m.col, z + m.mat),
        "gelu, tanh, mul(col0), add(mat0)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", STORED)
def test_results_that_are_written_anyway(name: str, dtype: torch.dtype) -> None:
    """z is not, unless it is one of them."""
    tail, text = STORED[name]
    fused = compare(Reads(tail, dtype), torch.randn(*ROWS, K, dtype=dtype))
    (program, *_) = written(fused)
    assert program == text or {*program.split(", ")} == {*text.split(", ")}
    assert fused.reasons == [] or name == "into products"


# tail -> what the op computes
ALONE: dict[str, tuple[Tail, str]] = {
    "computed where it is read": (lambda z, m: (F.gelu(z), torch.atan(z * 2)), "gelu; z"),
    "of a part of the rows": (lambda z, m: (F.gelu(z), (z * 2)[0]), "gelu; z"),
    "of what the op may not do": (lambda z, m: (F.gelu(z), torch.lgamma(z)), "gelu; z"),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_inductor_computes_where_it_is_read(name: str) -> None:
    tail, text = ALONE[name]
    assert written(compare(Reads(tail), torch.randn(*ROWS, K))) == [text]


def test_a_result_of_an_operators_own_reduction_is_none() -> None:
    """Its operand hangs on the other result."""
    tail = lambda z, m: (y := F.gelu(z), z * y.amax(0))  # noqa: E731
    assert written(compare(Reads(tail), torch.randn(*ROWS, K))) == ["gelu; z"]


def test_results_of_two_shapes_are_not_joined() -> None:
    """A matrix lies beside z seen as [4, 5, 40], the other result is of z's own shape."""
    linear, x, mat = nn.Linear(K, N), torch.randn(20, K), torch.randn(*ROWS, N)

    def model(x: Tensor, mat: Tensor) -> tuple[Tensor, Tensor]:
        z = linear(x)
        return torch.tanh(z), F.gelu(z).reshape(*ROWS, N) + mat

    with torch.no_grad():
        fused = fuse(model)
        for ours, theirs in zip(fused(x, mat), model(x, mat), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert written(fused) == ["gelu add(mat0), z"]


def test_a_write_between_is_seen() -> None:
    def tail(z: Tensor, m: Reads) -> tuple[Tensor, ...]:
        y = z * m.mat
        kept = y.clone()
        y.mul_(2)
        return kept, y + m.mat

    (program,) = written(compare(Reads(tail), torch.randn(*ROWS, K)))
    assert program == "v0 = mul(mat0); v0 mul(2.0) add(mat0), v0"


def test_a_site_of_several_results_counts_once_and_names_them() -> None:
    fused = compare(Reads(STORED["two activations"][0]), torch.randn(*ROWS, K))
    (site,) = fused.report.sites
    assert sorted(site.epilogue.split(", ")) == ["gelu", "tanh"] and not fused.report.misses
    assert {"erf", "tanh"} <= {*site.nodes}


def test_bitwise_has_one_result() -> None:
    linear, x = nn.Linear(K, N), torch.randn(6, K)

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        z = linear(x)
        return F.gelu(z), F.relu(z)

    with torch.no_grad():
        fused = fuse(model, "bitwise")
        assert all(map(torch.equal, fused(x), model(x)))
    assert len(fused.epilogues) == 1 and "," not in fused.epilogues[0].replace("(0.0, inf)", "")


# --- sums over rows -------------------------------------------------------------------------------

# tail -> what the op computes and writes
SUMMED: dict[str, tuple[Tail, str]] = {
    "of a result": (lambda z, m: (y := z * m.mat, y.sum((0, 1))), "v0 = mul(mat0); v0, v0 col_sum"),
    "of a result, seen as a matrix": (
        lambda z, m: (y := F.relu(z), y.flatten(0, 1).sum(0, keepdim=True)),
        "v0 = clamp(0.0, inf); v0, v0 col_sum",
    ),
    "dimensions kept": (
        lambda z, m: (y := z * m.col, y.sum((0, 1), keepdim=True)),
        "v0 = mul(col0); v0, v0 col_sum",
    ),
    "from the last dimension on": (
        lambda z, m: (y := z * m.col, y.sum((-2, 0))), "v0 = mul(col0); v0, v0 col_sum"
    ),
    "of what is not written": (
        lambda z, m: (F.relu(z), (z * m.mat).sum((0, 1))), "clamp(0.0, inf), mul(mat0) col_sum"
    ),
    "two": (
        lambda z, m: (y := z + m.mat, y.sum((0, 1)), (y * m.other).sum((0, 1))),
        "v0 = add(mat0); v0, v0 col_sum, v0 mul(mat1) col_sum",
    ),
    "and z": (lambda z, m: (F.relu(z), z, F.relu(z).sum((0, 1))),
              "v0 = clamp(0.0, inf); v0, v0 col_sum, z"),
}  # fmt: skip


@pytest.mark.usefixtures("sums_on_the_cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", SUMMED)
def test_sums_over_rows(name: str, dtype: torch.dtype) -> None:
    """Each is at least as near to the exact one as eager's, which in 16 bits sums what is rounded;
    the order in which numbers are added is another."""
    tail, text = SUMMED[name]
    fused = compare(Reads(tail, dtype), torch.randn(*ROWS, K, dtype=dtype))
    (program,) = written(fused)
    assert program == text
    left = [n for g in fused.graphs for n in g.nodes if n.target is torch.ops.aten.sum.dim_IntList]
    assert left == []


@pytest.mark.usefixtures("sums_on_the_cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sum_in_float32_is_not_rounded(dtype: torch.dtype) -> None:
    tails = (
        lambda z, m: (y := z * m.col, y.float().sum((0, 1))),
        lambda z, m: (y := z * m.col, y.sum((0, 1), dtype=torch.float32)),
    )
    for tail in tails:
        torch._dynamo.reset()
        fused = compare(Reads(tail, dtype), torch.randn(*ROWS, K, dtype=dtype))
        assert written(fused) == ["v0 = mul(col0); v0, v0 col_sum:f32"]


@pytest.mark.usefixtures("sums_on_the_cpu")
def test_what_is_not_finite_stays_so_in_sums() -> None:
    model, x = Reads(lambda z, m: (y := z * m.mat, y.sum((0, 1)))), torch.randn(*ROWS, K)
    with torch.no_grad():
        fused = fuse(model)
        for column, value in enumerate((float("nan"), float("inf"), -float("inf"))):
            model.mat[1, 2, column] = value
        for ours, theirs in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert len(fused.epilogues) == 1 and "col_sum" in fused.epilogues[0]


# Sums of which the op has none.
NOT_SUMMED: dict[str, Tail] = {
    "over the last dimension": lambda z, m: (y := F.relu(z), y.sum(-1)),
    "over all": lambda z, m: (y := F.relu(z), y.sum()),
    "over some rows": lambda z, m: (y := F.relu(z), y.sum(0)),
    "over rows and columns": lambda z, m: (y := F.relu(z), y.sum((0, 2))),
    "of another order": lambda z, m: (y := F.relu(z), y.transpose(1, 2).sum((0, 1))),
    "of another width": lambda z, m: (y := F.relu(z), y.reshape(-1, 2 * N).sum(0)),
    "of whether it is positive": lambda z, m: (F.relu(z), (z > 0).sum((0, 1)).float()),
    "in a wider type": lambda z, m: (y := F.relu(z), y.sum((0, 1), dtype=torch.float64)),
    "a mean": lambda z, m: (y := F.relu(z), y.mean((0, 1))),
}


@pytest.mark.usefixtures("sums_on_the_cpu")
@pytest.mark.parametrize("name", NOT_SUMMED)
def test_other_reductions_are_inductors(name: str) -> None:
    fused = compare(Reads(NOT_SUMMED[name]), torch.randn(*ROWS, K))
    assert fused.epilogues == ["clamp(0.0, inf)"]


def test_on_the_cpu_a_sum_is_inductors() -> None:
    tail, _ = SUMMED["of a result"]
    assert written(compare(Reads(tail), torch.randn(*ROWS, K))) == ["mul(mat0)"]


@pytest.mark.usefixtures("sums_on_the_cpu")
def test_a_sum_that_the_backward_reads() -> None:
    """Given to it as it is to the forward."""
    model = Reads(lambda z, m: (y := F.gelu(z), y.sum((0, 1)).square())).double()
    x = torch.randn(*ROWS, K, dtype=torch.float64)
    fused = fuse(model)
    for run in (fused, model):
        (out, sums) = run(x)
        (out.sin().sum() + sums.sum()).backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        if run is fused:
            ours = [g.clone() for g in found]
            model.zero_grad()
    torch.testing.assert_close(ours, found, rtol=1e-12, atol=1e-12)
    assert written(fused)[0] == "v0 = gelu; v0, v0 col_sum, z"


def test_beside_a_checkpoint_only_what_is_inside_is_a_result() -> None:
    """What is behind its end is computed once; the op would be run again by the backward."""
    linear, x = nn.Linear(K, N), torch.randn(6, K, requires_grad=True)

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        def inner(x: Tensor) -> tuple[Tensor, Tensor]:
            z = linear(x)
            return F.gelu(z), z

        y, z = torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)
        return y, torch.tanh(z)

    fused = fuse(model)
    found = torch.autograd.grad(sum(o.square().sum() for o in fused(x)), x)
    torch.testing.assert_close(
        found, torch.autograd.grad(sum(o.square().sum() for o in model(x)), x)
    )
    assert written(fused)[0] == "gelu; z"
