"""The op inside Inductor on the CPU: torch's GEMM and generated code, no call of the op."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import compiled, fused
from torch import Tensor, nn
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.lowering import lowerings
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F

from fusepass import Epilogue
from fusepass.ir import Builder, Input, Z
from fusepass.ir.table import ROWS
from fusepass.op import lowering, lowering_program

pytestmark = pytest.mark.usefixtures("one_thread")

OPS = torch.ops.fusepass
SITE = "mul(0.5) clamp(-2.0, 2.0) gelu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _code(function: Callable[..., Any], *inputs: Any, **options: Any) -> tuple[Any, str]:
    with torch.no_grad():
        result, (code,) = run_and_get_code(compiled(function, **options), *inputs)
    return result, code


def _calls(code: str) -> int:
    """How often the op itself is called; comments name it wherever it came from."""
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("#", "//"))]
    return len(re.findall(r"fusepass(?:\.|::)linear[\w.]*\(", "\n".join(lines)))


def _kernels(code: str) -> int:
    return len(re.findall(r"^cpp_fused\w* = ", code, re.MULTILINE))


def _gemms(code: str) -> int:
    return len(re.findall(r"extern_kernels\.(?:add)?mm\(", code))


# --- what is generated --------------------------------------------------------------------------


class _Demo(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 48, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.hardtanh(self.linear(x) * 0.5, -2, 3))


class _Leaky(_Demo):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.linear(x) * 2.0, 0.1)


class _Sum(_Demo):
    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) * 0.5).sum(1, keepdim=True) * 1.5


class _Both(_Demo):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z = self.linear(x)
        return F.hardtanh(z), z


class _Norm(_Demo):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(F.gelu(self.linear(x), approximate="tanh"), (48,))


class _Twice(_Demo):
    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.linear(x))
        return h + torch.tanh(h) * F.silu(h)


def _runs(code: str) -> tuple[list[str], list[str]]:
    """What runs, in order, and the source of each generated kernel; both without their names."""
    source = code[: code.index("async_compile.wait(")]
    order = re.findall(r"^ +(extern_kernels\.\w+|cpp_fused)\w*\(", code, re.MULTILINE)
    return order, re.findall(r"r'''(.*?)'''", source, re.DOTALL)


@pytest.fixture
def only_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated kernels are not compiled, and do nothing: for who reads the code alone."""
    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("only_written")
@pytest.mark.parametrize("shape", [(6, 32), (2, 3, 32)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [_Demo, _Leaky, _Sum, _Both, _Norm, _Twice])
def test_the_code_is_inductors(kind: type[_Demo], bias: bool, shape: tuple[int, ...]) -> None:
    """So no model is slower. In float32, where no rounding is left out, all of it is the same."""
    model, x = kind(bias).eval(), torch.randn(shape)
    _, code = _code(model, x)
    assert fused() == 1
    torch._dynamo.reset()
    with torch.no_grad():
        _, (inductors,) = run_and_get_code(torch.compile(model), x)
    assert _gemms(code) == 1 and _kernels(code) >= 1
    assert _runs(code) == _runs(inductors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_kernel_behind_the_gemm(dtype: torch.dtype) -> None:
    """With what comes behind it, and with the pre-activation, which is the GEMM's own result."""
    model, x = nn.Linear(32, 48).to(dtype), torch.randn(6, 32, dtype=dtype)

    def block(x: Tensor) -> tuple[Tensor, Tensor]:
        z = model(x)
        return torch.tanh(F.gelu(z.clamp(-2, 2))).sum(-1), z

    (_, z), code = _code(block, x)
    assert fused() == 1
    assert (_gemms(code), _kernels(code), _calls(code)) == (1, 1, 0)
    assert torch.equal(z, model(x))


def test_bitwise_calls_the_op() -> None:
    """What Inductor generates does not round as eager does: its erf is another."""
    model, x = _Demo().eval(), torch.randn(6, 32)
    out, code = _code(model, x, options={"fusepass.numerics": "bitwise"})
    assert fused() == 1
    assert (_gemms(code), _kernels(code), _calls(code)) == (0, 0, 1)
    assert torch.equal(out, model(x))


def test_a_dynamic_batch_is_compiled_once() -> None:
    model = _Demo().eval()
    fast = compiled(model, dynamic=True)
    with torch.no_grad():
        for rows in (3, 7, 300):
            x = torch.randn(rows, 32)
            torch.testing.assert_close(fast(x), model(x))
    assert fused() == 1


def test_training() -> None:
    """The backward reads the pre-activation that the forward's GEMM wrote."""
    model, x = _Demo(), torch.randn(6, 32, requires_grad=True)
    fast, inputs = compiled(model), (x, *model.parameters())
    with torch.enable_grad():
        found, codes = run_and_get_code(lambda: torch.autograd.grad(fast(x).sum(), inputs))
    assert fused() == 1 and _calls("".join(codes)) == 0
    for gradient, expected in zip(found, torch.autograd.grad(model(x).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("option", ["max_autotune", "cpp_wrapper"])
def test_options_of_inductor(option: str) -> None:
    model, x = _Demo().eval(), torch.randn(6, 32)
    out, code = _code(model, x, options={option: True})
    torch.testing.assert_close(out, model(x))
    assert fused() == 1 and _calls(code) == 0


# --- who runs it --------------------------------------------------------------------------------


def _tensor(device: str, dtype: torch.dtype = torch.float32) -> Any:
    return SimpleNamespace(get_device=lambda: torch.device(device), get_dtype=lambda: dtype)


@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize(
    ("device", "dtype", "text", "operand", "inductors"),
    [
        ("cuda", torch.bfloat16, SITE, None, True),
        ("cuda", torch.bfloat16, "div(3.0)", None, True),
        ("cuda", torch.float32, SITE, None, True),
        ("cuda", torch.float32, "gelu div(3.0)", None, False),
        ("cuda", torch.float16, "mul($0)", "cuda", True),
        ("cuda", torch.float16, "mul($0)", "cpu", False),
        ("cpu", torch.float32, "div($0)", "cpu", True),
    ],
)
def test_a_gpu_with_kernels_calls_the_op(
    monkeypatch: pytest.MonkeyPatch,
    hopper: bool,
    device: str,
    dtype: torch.dtype,
    text: str,
    operand: str | None,
    inductors: bool,
) -> None:
    monkeypatch.setattr(lowering, "has_fused_gemm", lambda d, _: hopper and d.type == "cuda")
    operands = [] if operand is None else [_tensor(operand)]
    expected = inductors and not (hopper and device == "cuda")
    assert lowering._is_inductors(_tensor(device, dtype), text, operands) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.lowered])
def test_every_operation_has_a_lowering(name: str, dtype: torch.dtype) -> None:
    """Of values that depend on z, of numbers and of scalars at run time."""
    builder, row = Builder(), ROWS[name]
    values = {"v": builder.apply("mul", Z, 3.0), "b": builder.apply("gt", Z, 0.0)}
    for scalar in (0.5, Input("$", 0), Z):
        rest = [values["b"] if p == "b" else scalar for p in row.parameters[1:]]
        text = str(builder.finish(builder.apply(name, values[row.parameters[0]], *rest)))
        operands = (torch.float64,) if "$" in text else ()
        graph = lowering_program.trace(text, dtype, operands)
        assert lowering._can_lower(graph), graph.code
        z = torch.tensor([-2.5, -0.5, 0.0, 0.5, 2.5, float("inf"), float("nan")], dtype=dtype)
        scalars = [torch.tensor(0.75, dtype=torch.float64)] * len(operands)
        exact = Epilogue.parse(text).reference(z.double(), *scalars).to(dtype)
        close = {"rtol": max(4 * torch.finfo(dtype).eps, 1e-6), "atol": 1e-6}
        torch.testing.assert_close(graph(z, *scalars)[0], exact, equal_nan=True, **close)


def test_a_missing_lowering_leaves_the_op_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _Demo().eval(), torch.randn(6, 32)
    _code(model, x)
    monkeypatch.delitem(lowerings, torch.ops.aten.clamp_max.default)
    torch._dynamo.reset()
    out, code = _code(model, x)
    assert _calls(code) == 1
    torch.testing.assert_close(out, model(x))


def test_another_inductor_costs_the_lowering_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for packet in (OPS.linear, OPS.linear_with_preact, OPS.gemm):
        for op in (packet.default, packet.constant):
            monkeypatch.delitem(lowerings, op, raising=False)
    monkeypatch.delattr("torch._inductor.lowering.fallback_handler")
    lowering.register.cache_clear()
    with caplog.at_level(logging.WARNING, "fusepass"):
        lowering.register()
        lowering.register()
    monkeypatch.undo()
    assert caplog.text.count("the op has no lowering") == 1


def test_what_the_lowering_stands_on() -> None:
    """Inductor's own: where one of these has moved, lowering.py must follow."""
    from torch._inductor import lowering as inductors

    names = {
        inductors.register_lowering: {"aten_fn", "type_promotion_kind"},
        inductors.fallback_handler: {"kernel", "add_to_fallback_set"},
        inductors.add_needs_realized_inputs: {"fn"},
    }
    for function, parameters in names.items():
        assert parameters <= set(inspect.signature(function).parameters), function
    for op in ("addmm", "mm", "permute", "view", "full", "expand", "clone"):
        assert getattr(torch.ops.aten, op).default in inductors.lowerings
    assert callable(torch._inductor.ir.TensorBox.mark_reuse)
