"""The op inside Inductor on the CPU: torch's GEMM and generated code, no call of the op."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import compiled, fused
from torch import Tensor, nn
from torch._inductor.lowering import lowerings
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F

from fusepass import lowering
from fusepass.epilogue import Epilogue
from fusepass.stages import STAGES

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
        return F.gelu(F.hardtanh(self.linear(x) * 0.5, -2, 2))


class _Leaky(_Demo):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.linear(x) * 2.0, 0.1)


class _Sum(_Demo):
    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) * 0.5).sum(1, keepdim=True) * 1.5


class _Both(_Demo):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z = self.linear(x)
        return F.relu(z), z


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


# --- the numbers --------------------------------------------------------------------------------


def _op(text: str, numerics: str = "accurate") -> Callable[..., Tensor]:
    def call(x: Tensor, w: Tensor, b: Tensor | None, operands: list[Tensor]) -> Tensor:
        return OPS.linear(x, w, b, text, operands, numerics=numerics) * 1  # type: ignore[no-any-return]

    return call


def _lowered(text: str, z: Tensor, operands: Sequence[Tensor] = ()) -> Tensor:
    """The compiled op on these pre-activations: they are the bias of a product that is zero."""
    x, w = z.new_zeros(3, 4), z.new_zeros(z.numel(), 4)
    out, code = _code(_op(text), x, w, z, list(operands))
    assert _calls(code) == 0
    assert all(torch.equal(row.isnan(), out[0].isnan()) for row in out)
    return out[0]  # type: ignore[no-any-return]


def _values(dtype: torch.dtype) -> Tensor:
    """Of 16-bit types every value but subnormal ones, of others many and the special ones."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, info.max, info.min, info.tiny, -info.tiny, info.eps, 1.0, -1.0]
    if info.bits == 16:
        every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
        return every[(every.abs() >= info.tiny) | (every == 0) | every.isnan()]
    spread = torch.randn(1 << 12, dtype=dtype) * 4
    beyond = torch.tensor([*special, torch.nan, torch.inf, -torch.inf], dtype=dtype)
    return torch.cat([spread, torch.randn(999, dtype=dtype) * 1e-3, beyond])


_TEXTS = (SITE, "gelu", "gelu_tanh", "mul(0.3) div(7.0)", "clamp(0.0, inf)", "div(3.0) gelu_tanh")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("text", _TEXTS)
def test_sixteen_bits_are_rounded_once(text: str, dtype: torch.dtype) -> None:
    """Every value's result lies within half a unit in the last place and a float32 epilogue's
    error of the exact one; NaN and infinities stand where they do in float64."""
    z = _values(dtype)
    out, exact = _lowered(text, z), Epilogue.parse(text).reference(z.double())
    assert torch.equal(out.isnan(), exact.isnan())
    overflow = exact.abs() > torch.finfo(dtype).max
    infinite, finite = exact.isinf(), exact.isfinite() & ~overflow
    assert torch.equal(out[infinite].double(), exact[infinite])
    half = torch.finfo(dtype).eps / 2 * exact.abs() + torch.finfo(dtype).smallest_normal
    error = (out.double() - exact).abs()[finite]
    print(((error - torch.finfo(dtype).smallest_normal) / exact.abs()[finite]).nan_to_num(0).max())
    assert (error <= half[finite] + 1e-5 * exact.abs()[finite]).all()
