"""The general op inside Inductor on the CPU, in exported programs and in packages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from epilogues import CHANCE, error
from gemm_cases import CASES, Case, eagerly, exactly, operands, problem
from test_lowering import _code
from torch import Tensor

from fusepass.op import lowering

pytestmark = pytest.mark.usefixtures("one_thread")

F = torch.nn.functional
gemm = torch.ops.fusepass.gemm
N = 19


def _calls(code: str) -> int:
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("#", "//"))]
    return len(re.findall(r"fusepass(?:\.|::)gemm[\w.]*\(", "\n".join(lines)))


def _every_case(
    numerics: str = "accurate", cases: Sequence[Case] = CASES
) -> Callable[[list[Any]], list[list[Tensor]]]:
    def call(inputs: list[Any]) -> list[list[Tensor]]:
        return [
            gemm(x, ws, bs, case.text, given, numerics=numerics)
            for case, (x, ws, bs, given) in zip(cases, inputs, strict=True)
        ]

    lowering.register()
    return call


def _inputs(case: Case, dtype: torch.dtype, leading: tuple[int, ...]) -> tuple[Any, ...]:
    x, ws, bs = problem(case.weights, dtype, leading)
    return x, ws, bs, operands(case.epilogue, leading, N, dtype, "expanded")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("dtype", "leading", "half"),
    [(torch.float32, (3, 11), 0), (torch.bfloat16, (33,), 1)],
    ids=str,
)
def test_every_case_is_inductors_code(
    request: pytest.FixtureRequest, dtype: torch.dtype, leading: tuple[int, ...], half: int
) -> None:
    """Half of the cases in one dtype, half in the other; with --every-case all in both.

    No output shares memory with another, or with what was given.
    """
    cases = CASES if request.config.getoption("--every-case") else CASES[half::2]
    inputs = [_inputs(case, dtype, leading) for case in cases]
    got, code = _code(_every_case(cases=cases), inputs)
    assert _calls(code) == 0
    _share_no_memory(got, inputs)
    for case, (x, ws, bs, given), outputs in zip(cases, inputs, got, strict=True):
        called = gemm(x, ws, bs, case.text, given)
        exact, eager = (f(case, x, ws, bs, given) for f in (exactly, eagerly))
        rows = zip(outputs, called, exact, eager, case.epilogue.outputs, strict=True)
        for g, c, e, model, output in rows:
            assert g.shape == c.shape and g.dtype == c.dtype and g.is_contiguous(), case.text
            if g.dtype == torch.bool:
                assert int((g != c).sum()) <= 1
                continue
            room = 2 * CHANCE[g.dtype] + 2 * torch.finfo(g.dtype).eps / g.numel() ** 0.5
            room += 4 * torch.finfo(g.dtype).eps * output.is_sum  # of an order of its own
            worst = max(error(c, e), error(model.to(g.dtype), e))
            assert error(g, e) <= worst * 1.01 + room, case.text


def _share_no_memory(outputs: list[list[Tensor]], inputs: list[Any]) -> None:
    given = [t for t in torch.utils._pytree.tree_leaves(inputs) if t is not None]
    places = [t.untyped_storage().data_ptr() for some in outputs for t in some]
    assert len(set(places)) == len(places)
    assert not set(places) & {t.untyped_storage().data_ptr() for t in given}


def test_bitwise_calls_the_op() -> None:
    inputs = [_inputs(case, torch.float32, (33,)) for case in CASES]
    got, code = _code(_every_case("bitwise"), inputs)
    assert _calls(code) >= len(CASES)
    for case, (x, ws, bs, given), outputs in zip(CASES, inputs, got, strict=True):
        called = gemm(x, ws, bs, case.text, given, numerics="bitwise")
        for g, c in zip(outputs, called, strict=True):
            assert torch.equal(g, c), case.text


def test_what_inductor_computes_for_the_op_lies_row_after_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the pass has put it, as a GPU's kernels read matrices: those of 16 bits, no others."""
    monkeypatch.setattr(lowering, "_is_inductors", lambda *args: False)
    linear, x, turned = torch.nn.Linear(21, N), torch.randn(33, 21), torch.randn(N, 33)

    def call(x: Tensor, turned: Tensor) -> Any:
        mat = turned.t() * 2.0 + 1.0
        return linear(x) + mat, mat.sum(1)

    found, code = _code(call, x, turned)
    assert _calls(code) == 1
    with torch.no_grad():
        torch.testing.assert_close(found, call(x, turned))
    assert f"empty_strided_cpu((33, {N}), ({N}, 1)" in code
    assert f"empty_strided_cpu((33, {N}), (1, 33)" not in code


def test_sizes_known_at_run_time() -> None:
    _, ws, bs = problem(2, torch.float32, (33,))

    def call(x: Tensor, m: Tensor) -> list[Tensor]:
        return gemm(x, ws, bs, "silu mul(z1) add(mat0), mul(z1) col_sum", [m])  # type: ignore[no-any-return]

    lowering.register()
    compiled = torch.compile(call, backend="inductor", dynamic=True)
    for m in (7, 12):
        x, mat = torch.randn(2, m, 21), torch.randn(2, m, N)
        with torch.no_grad():
            for got, expected in zip(compiled(x, mat), call(x, mat), strict=True):
                torch.testing.assert_close(got, expected)


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = torch.nn.Linear(21, N, bias=False), torch.nn.Linear(21, N)

    def forward(self, x: Tensor, m: Tensor) -> tuple[Tensor, ...]:
        both = [self.gate.weight, self.up.weight], [None, self.up.bias]
        # An empty list of operands is none to a package: constant.py.
        (gated,) = gemm.constant(x, *both, "silu mul(z1)", numerics="bitwise")
        out, sums = gemm(
            x, both[0][:1], [None], "v0 = add(mat0); v0, v0 col_sum", [m], numerics="bitwise"
        )
        return gated, out, sums


def test_export() -> None:
    block, x, m = _Block(), torch.randn(4, 21), torch.randn(4, N)
    with torch.no_grad():
        program = torch.export.export(block, (x, m))
        for got, expected in zip(program.module()(x, m), block(x, m), strict=True):
            assert torch.equal(got, expected)


def test_package(tmp_path: Path) -> None:
    """The op is called by its schema: lists of weights, of perhaps no biases, of results."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    block, x, m = _Block().eval(), torch.randn(4, 21), torch.randn(4, N)
    with torch.no_grad():
        program = torch.export.export(block, (x, m))
        # One package is made: headers compiled ahead for the next would cost more than they save.
        with torch._inductor.config.patch({"aot_inductor.precompile_headers": False}):
            path = aoti_compile_and_package(program, package_path=str(tmp_path / "block.pt2"))
        for got, expected in zip(aoti_load_package(path)(x, m), block(x, m), strict=True):
            assert torch.equal(got, expected)
