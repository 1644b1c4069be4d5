"""Products that stay torch's: no kernel reads them, or a pass of torch's own wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import graphs
import pytest
import torch
import torch.nn.functional as F
from graphs import as_on_hopper, fuse
from test_bare_gemms import ORDERS, Problem, stored
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fusepass.kernels import library
from fusepass.rewrite.graph_pass import run


def left(model: Callable[..., Any], *args: Tensor, **kwargs: Any) -> list[str]:
    """The reasons of a model whose products all stay what they are."""
    fused = fuse(model, **{"hopper": True, **kwargs})
    with torch.no_grad():
        torch.testing.assert_close(fused(*args), model(*args))
    assert fused.report.sites == () and fused.before == fused.after
    return [m.reason for m in fused.report.misses]


def product(x: Tensor, kn: Tensor) -> Tensor:
    return x @ kn


def test_on_the_cpu_and_on_other_gpus(faster: list[Problem], monkeypatch: Any) -> None:
    assert len(left(product, torch.randn(64, 32), torch.randn(32, 48), hopper=False)) == 1
    assert faster == []


def test_other_gpus(faster: list[Problem], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "SMS", None)
    assert len(left(product, torch.randn(64, 32), torch.randn(32, 48))) == 1
    assert faster == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_dtypes_without_a_kernel(dtype: torch.dtype, faster: list[Problem]) -> None:
    a, b = torch.randn(64, 32), torch.randn(32, 48)
    assert len(left(product, a.to(dtype), b.to(dtype))) == 1 and faster == []


def test_bitwise(faster: list[Problem]) -> None:
    args = (torch.randn(64, 32), torch.randn(32, 48))
    assert len(left(product, *args, numerics="bitwise")) == 1 and faster == []


@pytest.mark.parametrize(
    ("x", "kn"),
    [
        (torch.randn(64, 64)[:, ::2], torch.randn(32, 48)),
        (torch.randn(64, 1).expand(64, 32), torch.randn(32, 48)),
        (torch.randn(32).expand(64, 32), torch.randn(32, 48)),
    ],
)
def test_layouts_that_no_kernel_reads(x: Tensor, kn: Tensor, faster: list[Problem]) -> None:
    (reason,) = left(product, x, kn)
    assert faster == [] and "multiples of 16 bytes" in reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["row of x", "x", "row of w"])
def test_only_float32_has_rows_at_any_address(
    which: str, dtype: torch.dtype, faster: list[Problem]
) -> None:
    """Its operands are split first; in 16 bits they are read as they lie."""
    x, kn = torch.randn(64, 32, dtype=dtype), torch.randn(32, 48, dtype=dtype)
    if which == "row of x":
        x = torch.randn(64, 33, dtype=dtype)[:, :32]
    if which == "x":
        x = torch.randn(64 * 32 + 1, dtype=dtype)[1:].view(64, 32)
    if which == "row of w":
        kn = torch.randn(32, 49, dtype=dtype)[:, :48]
    if dtype == torch.bfloat16:
        (reason,) = left(product, x, kn)
        assert faster == [] and "multiples of 16 bytes" in reason
        return
    with torch.no_grad():
        fused = fuse(product, hopper=True)
        torch.testing.assert_close(fused(x, kn), x @ kn)
    assert [s.epilogue for s in fused.report.sites] == [""]


def test_where_the_plan_prefers_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Problem] = []
    monkeypatch.setattr(library, "chosen", lambda *problem: bool(asked.append(problem)))
    left(product, torch.randn(64, 32), torch.randn(32, 48))
    left(F.linear, torch.randn(64, 32), torch.randn(48, 32), torch.randn(48))
    both = (True, 132, False, True, False), (False, 132, False, True, True)  # the last one: a bias
    assert asked == [(torch.float32, 64, 48, 32, *flags) for flags in both]


@pytest.mark.parametrize("m", [64, 512])
def test_a_plan_is_made_for_the_traced_size(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that changes is taken where ours is faster at the first; others are planned later."""
    monkeypatch.setattr(library, "chosen", lambda *problem: problem[1] >= 512)
    with torch.no_grad():
        fused = fuse(product, hopper=True, dynamic=True)
        for rows in (m, 70):
            x, kn = torch.randn(rows, 32), torch.randn(32, 48)
            torch.testing.assert_close(fused(x, kn), x @ kn)
    assert len(fused.reports) == 1 and len(fused.report.sites) == (m >= 512)


def test_a_size_that_depends_on_data(faster: list[Problem]) -> None:
    patch: Any = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
    with patch:
        left(lambda x, kn: x[x[:, 0] > 0] @ kn, torch.randn(64, 32), torch.randn(32, 48))
    assert faster == []


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("x_is_km", "w_is_kn"), ORDERS[1:])
def test_tf32_takes_operands_contiguous_along_k(x_is_km: bool, w_is_kn: bool) -> None:
    x, kn = stored(2048, 2048, x_is_km), stored(2048, 2048, not w_is_kn)
    left(product, x, kn)


def test_unaligned_sizes_of_16_bits_are_torchs_to_pad() -> None:
    for m, n, k in ((4096, 1001, 512), (4096, 1024, 501)):
        x, kn = torch.randn(m, k), torch.randn(k, n)
        assert len(left(product, x.bfloat16(), kn.bfloat16())) == 1


@pytest.mark.parametrize(
    ("gemm", "reason"),
    [
        (lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=3), "addmm weighs its terms"),
        (lambda c, a, b: torch.addmm(c.expand(64, 48), a, b), "addmm adds a matrix"),
    ],
)
def test_an_addmm_that_is_no_linear(gemm: Callable, reason: str, faster: list[Problem]) -> None:
    (found,) = left(gemm, torch.randn(48), torch.randn(64, 32), torch.randn(32, 48))
    assert reason in found and faster == []


@pytest.mark.parametrize("x", [torch.randn(3, 64, 32), torch.randn(1, 64, 32)])
def test_batches_and_vectors_are_misses(x: Tensor, faster: list[Problem]) -> None:
    assert len(left(torch.bmm, x, torch.randn(len(x), 32, 48))) == 1
    assert len(left(torch.mv, x[0], torch.randn(32))) == 1
    assert faster == []


# --- what passes of torch's own would do ---------------------------------------------------------


def test_freezing_joins_products_of_one_input(faster: list[Problem]) -> None:
    """In 16 bits, where one product is as fast as three; float32 gains more by ours."""
    for dtype, sites in ((torch.bfloat16, 0), (torch.float32, 3)):
        weights = [torch.randn(32, 48, dtype=dtype) for _ in range(3)]
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            fused = fuse(lambda x, *w: [x @ v for v in w], hopper=True)
            fused(torch.randn(64, 32, dtype=dtype), *weights)
        assert len(fused.report.sites) == sites
        assert ("freezing makes one product" in str(fused.report)) == (sites == 0)


def test_a_matrix_that_torch_adds_inside_its_gemm(faster: list[Problem]) -> None:
    def model(x: Tensor, kn: Tensor, v: Tensor) -> Tensor:
        return ((x @ kn) + x) @ v

    x, kn, v = (torch.randn(48, 48, dtype=torch.bfloat16) for _ in range(3))
    with torch.no_grad():
        fused = fuse(model, hopper=True)
        torch.testing.assert_close(fused(x, kn, v), model(x, kn, v))
    assert [s.node for s in fused.report.sites] == ["mm_1"]


def _gathered(x: Tensor) -> Tensor:
    full = torch.ops._c10d_functional.all_gather_into_tensor(x, 2, "0")
    return torch.ops._c10d_functional.wait_tensor(full)


def _scattered(z: Tensor) -> Tensor:
    part = torch.ops._c10d_functional.reduce_scatter_tensor(z, "sum", 2, "0")
    return torch.ops._c10d_functional.wait_tensor(part)


def test_what_is_sent_while_a_product_is_computed_is_not_waited_for_before_it() -> None:
    def model(x: Tensor, w: Tensor, mat: Tensor) -> tuple[Tensor, Tensor]:
        sent = torch.ops._c10d_functional.all_reduce(mat, "sum", "0")
        y = F.gelu(x @ w) + torch.ops._c10d_functional.wait_tensor(sent)
        return y, F.gelu(x @ w) + mat

    with torch._subclasses.FakeTensorMode():
        args = torch.empty(64, 32), torch.empty(32, 48), torch.empty(64, 48)
        graph = make_fx(model)(*args).graph
    report = run(graph, "accurate")
    assert [s.epilogue for s in report.sites] == ["gelu", "gelu add(mat0)"]
    assert "takes what other processes send" in (report.sites[0].follows or "")


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        (lambda x, w: F.gelu(_gathered(x) @ w), 0),
        (lambda x, w: F.gelu(_gathered(x).view(2, 64, 32).reshape(128, 32) @ w), 0),
        (lambda x, w: F.gelu(torch.cat(_gathered(x).chunk(2), 1) @ torch.cat([w, w])), 0),
        (lambda x, w: _scattered(x @ w), 0),
        (lambda x, w: F.gelu(x @ w), 1),
        (lambda x, w: F.gelu(_gathered(torch.sin(x)).sum(0, True).expand(64, 32) * x @ w), 1),
    ],
)
@pytest.mark.parametrize("on", [False, True])
def test_asynchronous_tensor_parallelism(
    model: Callable, taken: int, on: bool, faster: list[Problem]
) -> None:
    """Where it is on, a product next to its collective stays what its pass looks for."""
    with torch._subclasses.FakeTensorMode():
        args = torch.empty(64, 32), torch.empty(32, 48)
        graph = make_fx(model)(*args).graph
    with torch._inductor.config.patch(_micro_pipeline_tp=on), as_on_hopper(graph):
        report = run(graph, "accurate")
    assert len(report.sites) == (taken if on else 1)
    if on and not taken:
        assert "asynchronous tensor parallelism" in report.misses[0].reason
