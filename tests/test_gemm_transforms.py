"""What torch asks of the general op: opcheck, gradients, vmap, autocast, fakes, FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gemm_cases import CASES, Case, case_id, eagerly, operands, problem
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue
from fusepass.ir import DType
from fusepass.op import arguments

F = torch.nn.functional
gemm = torch.ops.fusepass.gemm
each_case = pytest.mark.parametrize("case", CASES, ids=case_id)

# --- what torch asks of an op -------------------------------------------------------------------


def _opchecked() -> Iterator[tuple[Case, bool]]:
    """Each case without gradients, and with them where opcheck, which adds up the outputs, can."""
    for case in CASES:
        yield case, False
        if all(o.dtype is not DType.BOOL for o in case.epilogue.outputs):
            yield case, True


@pytest.mark.parametrize(("case", "requires_grad"), [*_opchecked()], ids=case_id)
def test_opcheck(case: Case, requires_grad: bool) -> None:
    x, ws, bs = problem(case.weights, torch.float32, (2, 3), 5, 4)
    given = operands(case.epilogue, (2, 3), 4, torch.float32)
    floats = [t for t in (x, *ws, *bs, *given) if t is not None and t.is_floating_point()]
    for t in floats:
        t.requires_grad_(requires_grad)
    numerics = arguments.NUMERICS[requires_grad]
    torch.library.opcheck(gemm.default, (x, ws, bs, case.text, given), {"numerics": numerics})


@each_case
def test_gradients_are_the_models(case: Case) -> None:
    x, ws, bs = problem(case.weights, torch.float64, (2, 3), 5, 4)
    given = operands(case.epilogue, (2, 3), 4, torch.float64)
    leaves = [t for t in (x, *ws, *bs, *given) if t is not None and t.dtype == torch.float64]
    for t in leaves:
        t.requires_grad_()
    got = gemm(x, ws, bs, case.text, given)
    expected = eagerly(case, x, ws, bs, given)
    directions = [torch.randn_like(e) for e in expected if e.is_floating_point()]

    def total(outputs: list[Tensor]) -> Tensor:
        floats = [t for t in outputs if t.is_floating_point()]
        pairs = zip(floats, directions, strict=True)
        return sum((t.double() * d).sum() for t, d in pairs)  # type: ignore[return-value]

    ours, theirs = (
        torch.autograd.grad(total(o), leaves, allow_unused=True) for o in (got, expected)
    )
    for g, e in zip(ours, theirs, strict=True):
        assert (g is None) == (e is None)
        if g is not None:
            torch.testing.assert_close(g, e, rtol=1e-6, atol=1e-6)


def test_forward_mode() -> None:
    x, ws, bs = problem(2, torch.float64)
    (m,) = operands(Epilogue.parse("add(mat0)"), (3, 11), 19, torch.float64)
    tangent = torch.randn_like(m)
    found = torch.func.jvp(
        lambda m: gemm(x, ws, bs, "silu mul(z1) mul(mat0)", [m]), (m,), (tangent,)
    )
    zs = [F.linear(x, w, b) for w, b in zip(ws, bs, strict=True)]
    torch.testing.assert_close(found[1][0], F.silu(zs[0]) * zs[1] * tangent)


@each_case
@pytest.mark.parametrize("leading", [(5,), (2, 3), ()], ids=str)
def test_vmap(case: Case, leading: tuple[int, ...]) -> None:
    count = 3

    def one() -> tuple[Any, ...]:
        x, ws, bs = problem(case.weights, torch.float64, leading, 5, 4)
        layout = "contiguous" if len(leading) < 2 else "expanded"  # has cols of groups of rows
        return x, ws, bs, operands(case.epilogue, leading, 4, torch.float64, layout)

    def call(x: Tensor, ws: Any, bs: Any, given: Any) -> Any:
        return gemm(x, ws, bs, case.text, given)

    examples = [one() for _ in range(count)]
    both = zip(*(torch.utils._pytree.tree_leaves(e) for e in examples), strict=True)
    stacked = [None if t[0] is None else torch.stack(t) for t in both]
    spec = torch.utils._pytree.tree_structure(examples[0])
    batched = torch.utils._pytree.tree_unflatten(stacked, spec)
    for which in range(5):  # all of them, or all but one kind
        dims: list[Any] = []
        for i, part in enumerate(batched):
            fixed = i + 1 == which or (not isinstance(part, Tensor) and not len(part))
            dims.append(None if fixed else 0 if isinstance(part, Tensor) else _dims(part))
        if all(d is None for d in dims):
            continue
        parts = [e if d is None else p for p, e, d in zip(batched, examples[0], dims, strict=True)]
        got = torch.vmap(call, tuple(dims))(*parts)
        expected = [
            call(*(p if d is None else _at(p, i) for p, d in zip(parts, dims, strict=True)))
            for i in range(count)
        ]
        for output, rows in zip(got, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(output, torch.stack(rows))


def _dims(part: Any) -> list[int | None]:
    return [None if t is None else 0 for t in part]


def _at(part: Any, i: int) -> Any:
    return part[i] if isinstance(part, Tensor) else [None if t is None else t[i] for t in part]


def test_autocast_casts_what_has_the_dtype_of_x() -> None:
    x, ws, bs = problem(1, torch.float32)
    text = "mul(col0) add(mat0) mul(mat1:f32) add($0)"
    given = operands(Epilogue.parse(text), (3, 11), 19, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = gemm(x, ws, bs, text, given)
    narrow = [given[0], given[1].bfloat16(), given[2].bfloat16(), given[3]]
    lower = [None if b is None else b.bfloat16() for b in bs]
    (expected,) = gemm(x.bfloat16(), [w.bfloat16() for w in ws], lower, text, narrow)
    assert got.dtype == torch.bfloat16 and torch.equal(got, expected)


def test_symbolic_and_unbacked_shapes() -> None:
    text = "silu mul(z1) mul(row0) add(mat0), col_sum"

    def call(x: Tensor, w: Tensor, r: Tensor, m: Tensor) -> Any:
        return gemm(x, [w, w], [None, None], text, [r, m])

    tensors = (torch.randn(2, 3, 5), torch.randn(7, 5), torch.randn(2, 3, 1), torch.randn(2, 3, 7))
    traced = torch.fx.experimental.proxy_tensor.make_fx(call, tracing_mode="symbolic")(*tensors)
    (node,) = (n for n in traced.graph.nodes if n.target == gemm.default)
    out, sums = node.meta["val"]
    assert isinstance(out.shape[0], torch.SymInt) and out.dim() == 3 and sums.dim() == 1

    class Selected(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor, keep: Tensor) -> Any:
            some = x[keep]  # so many rows as the data says
            return gemm(some, [w], [None], "add(mat0)", [some @ w.t()])

    x, w, keep = torch.randn(6, 5), torch.randn(7, 5), torch.tensor([True, False] * 3)
    exported = torch.export.export(Selected(), (x, w, keep))
    torch.testing.assert_close(exported.module()(x, w, keep)[0], 2 * x[keep] @ w.t())


def test_flops() -> None:
    x, ws, bs = problem(2, torch.float32, (2, 3), 5, 4)
    with FlopCounterMode(display=False) as counter:
        gemm(x, ws, bs, "silu mul(z1)", [])
    assert counter.get_total_flops() == 2 * (2 * 6 * 5 * 4)
