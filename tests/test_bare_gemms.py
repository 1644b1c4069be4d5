"""Products alone: every one of a graph, forward and backward, where a kernel of ours is faster.

The pass is told that it compiles for an H200; the graphs run on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import graphs
import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from graphs import as_on_hopper, fuse
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from fusepass.graph_pass import run
from fusepass.kernels import library

Problem = tuple[Any, ...]


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """Whatever the plan is asked, ours is faster; what it was asked."""
    asked: list[Problem] = []
    monkeypatch.setattr(library, "chosen", lambda *problem: asked.append(problem) or True)
    return asked


def stored(rows: int, columns: int, transposed: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """[rows, columns], stored as its transpose or as it is."""
    value = torch.randn(columns, rows) if transposed else torch.randn(rows, columns)
    return (value.t() if transposed else value).to(dtype)


def error(found: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> float:
    exact = a.double() @ b.double() + bias.double()
    return float((found.double() - exact).abs().max())


ORDERS = list(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize(("x_is_km", "w_is_kn"), ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_of_every_order(
    x_is_km: bool, w_is_kn: bool, dtype: torch.dtype, bias: bool, faster: list[Problem]
) -> None:
    """Strides say the order, and nothing is copied."""
    x, kn = stored(64, 32, x_is_km, dtype), stored(32, 48, not w_is_kn, dtype)
    b = torch.randn(48, dtype=dtype)
    with torch.no_grad():
        fused = fuse(lambda x, kn, b: torch.addmm(b, x, kn) if bias else x @ kn, hopper=True)
        found = fused(x, kn, b)
    added = b if bias else torch.zeros((), dtype=dtype)
    eager = error(x @ kn + added, x, kn, added)
    assert error(found, x, kn, added) <= 1.5 * eager
    assert [(s.epilogue, s.kernel) for s in fused.report.sites] == [("", "one kernel")]
    assert (dtype, 64, 48, 32, w_is_kn, 132, x_is_km, True) in faster
    (op,) = fused.graphs[0].find_nodes(
        op="call_function", target=torch.ops.fusepass.linear.constant
    )
    ours, weight, _, epilogue = op.args
    assert epilogue == ""
    assert ours.meta["val"].stride() == ((1, 64) if x_is_km else (32, 1))
    assert weight.meta["val"].stride() == ((1, 48) if w_is_kn else (32, 1))
    views = {torch.ops.aten.permute.default, torch.ops.fusepass.linear.constant}
    assert {n.target for n in fused.graphs[0].nodes if n.op == "call_function"} <= views


def test_golden_training_step(faster: list[Problem]) -> None:
    """Forward, both gradients: three ops, their operands views of what is there."""
    linear = nn.Linear(32, 48)
    fused = fuse(lambda x: linear(x).sin(), hopper=True)
    fused(torch.randn(64, 32, requires_grad=True)).sum().backward()
    assert_expected_inline(
        fused.after[0],
        """\
primals_1: f32[48, 32]
primals_2: f32[48]
primals_3: f32[64, 32]
tangents_1: f32[64, 48]
permute: f32[32, 48] = aten.permute(primals_1, [1, 0])
linear_default: f32[64, 48] = fusepass.linear(primals_3, primals_1, primals_2, '')
sin: f32[64, 48] = aten.sin(linear_default)
cos: f32[64, 48] = aten.cos(linear_default)
mul: f32[64, 48] = aten.mul(tangents_1, cos)
linear_default_1: f32[64, 32] = fusepass.linear(mul, permute, None, '')
permute_2: f32[48, 64] = aten.permute(mul, [1, 0])
permute_default: f32[32, 64] = aten.permute(primals_3, [1, 0])
linear_default_2: f32[48, 32] = fusepass.linear(permute_2, permute_default, None, '')
permute_3: f32[32, 48] = aten.permute(linear_default_2, [1, 0])
sum_1: f32[1, 48] = aten.sum(mul, [0], True)
view: f32[48] = aten.view(sum_1, [48])
permute_4: f32[48, 32] = aten.permute(permute_3, [1, 0])
return [sin, permute_4, view, linear_default_1]""",
    )


def train(run: Callable[..., Any], model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    run(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("shape", [(64, 32), (2, 3, 32)])
def test_gradients(shape: tuple[int, ...], faster: list[Problem]) -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32)).double()
    x = torch.randn(shape, dtype=torch.float64)
    single = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
    single.load_state_dict(model.state_dict())
    fused = fuse(single, hopper=True)
    found, expected = train(fused, single, x.float()), train(model, model, x)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)
    sites = [(s.epilogue, s.backward) for s in fused.report.sites]
    assert sites == [("gelu", False), ("", False), *[("", True)] * 4]
    assert fused.report.misses == ()
    assert "aten.mm" not in fused.after[0] and "aten.addmm" not in fused.after[0]


def test_where_an_epilogue_is_left_the_product_may_be_taken(monkeypatch: Any) -> None:
    """Two kernels for GEMM and epilogue are no gain, the GEMM alone is one."""
    monkeypatch.setattr(library, "chosen", lambda *problem: problem[-1])
    linear = nn.Linear(32, 48)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(linear(x)) + 1, hopper=True)
        x = torch.randn(64, 32)
        torch.testing.assert_close(fused(x), F.relu(linear(x)) + 1)
    (site,) = fused.report.sites
    assert site.epilogue == "" and site.follows == (
        "Inductor fuses these stages with what follows, for free"
    )


TAILS: dict[str, tuple[Callable[..., Any], str]] = {
    "a gate": (lambda h, g, v: h * g, ""),
    "a sum over rows": (lambda h, g, v: h.view(2, 32, 48).float().sum(-1), ""),
    "a product": (lambda h, g, v: h @ v, "gelu"),
    "a gate and a product": (lambda h, g, v: (h * g, h @ v), "gelu"),
    "a gate and the caller": (lambda h, g, v: (h * g, h), "gelu"),
}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_epilogue_must_save_a_kernel_or_traffic(
    name: str, dtype: torch.dtype, faster: list[Problem]
) -> None:
    """On tensor cores: what each next kernel computes in passing is not computed in the GEMM."""
    tail, narrow = TAILS[name]
    x, kn, g, v = (torch.randn(s).to(dtype) for s in ((64, 32), (32, 48), (64, 48), (48, 32)))
    with torch.no_grad():
        fused = fuse(lambda *args: tail(F.gelu(args[0] @ args[1]), *args[2:]), hopper=True)
        fused(x, kn, g, v)
    first = fused.report.sites[0]
    assert first.epilogue == (narrow if dtype == torch.bfloat16 else "gelu")


def test_what_the_backward_reads_is_no_epilogue_for_free(faster: list[Problem]) -> None:
    linear = nn.Linear(32, 48, dtype=torch.bfloat16)
    fused = fuse(lambda x: F.relu(linear(x)) * x[:, :1], hopper=True)
    fused(torch.randn(64, 32, dtype=torch.bfloat16)).sum().backward()
    assert fused.report.sites[0].epilogue == "clamp(0.0, inf)"


# --- where it stays torch's ----------------------------------------------------------------------


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
    assert asked == [(torch.float32, 64, 48, 32, True, 132, False, True)]


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


# --- counters ------------------------------------------------------------------------------------


def test_flops_of_forward_and_backward_are_counted(faster: list[Problem]) -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
    x = torch.randn(64, 32)
    counts = []
    for function in (model, fuse(model, hopper=True)):
        train(function, model, x)
        with FlopCounterMode(display=False) as counter:
            train(function, model, x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 6 * 2 * 64 * 32 * 48


def test_the_report_has_every_product_and_its_flops(faster: list[Problem]) -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
    fused = fuse(model, hopper=True)
    train(fused, model, torch.randn(64, 32))
    assert [s.flops for s in fused.report.sites] == [2 * 64 * 32 * 48] * 6
    assert (len(fused.report.fused), len(fused.report.gemms)) == (1, 5)
