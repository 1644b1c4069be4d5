"""``fusepass::linears`` by itself: numbers on the CPU, errors, gradients, what torch asks."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from epilogues import CHANCE, error
from gemm_cases import LAYOUTS
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fusepass.op import lowering  # defines torch.ops.fusepass

F = torch.nn.functional
op = torch.ops.fusepass.linears
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = (19, 8, 24)

Given = tuple[Tensor, list[Tensor], list["Tensor | None"]]


def given(
    *leading: int, dtype: torch.dtype = torch.float32, widths: Sequence[int] = WIDTHS, k: int = 21
) -> Given:
    """A bias for all but the second."""
    x = torch.randn(*leading, k).to(dtype)
    ws = [(torch.randn(n, k) * k**-0.5).to(dtype) for n in widths]
    return x, ws, [None if i == 1 else torch.randn(n).to(dtype) for i, n in enumerate(widths)]


def separate(x: Tensor, ws: Sequence[Tensor], bs: Sequence[Tensor | None]) -> list[Tensor]:
    return [F.linear(x, w, b) for w, b in zip(ws, bs, strict=True)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_is_eagers_linear(dtype: torch.dtype, layout: str) -> None:
    x, ws, bs = given(3, 11, dtype=dtype)
    laid = (LAYOUTS[layout](x), [LAYOUTS[layout](w) for w in ws], bs)
    outs = op(*laid)
    wide = [None if b is None else b.double() for b in bs]
    exact = separate(x.double(), [w.double() for w in ws], wide)
    for out, right, eager in zip(outs, exact, separate(*laid), strict=True):
        assert out.dtype == dtype and out.is_contiguous() and out.shape == right.shape
        assert error(out, right) <= error(eager, right) + CHANCE[dtype]
    assert len({out.untyped_storage().data_ptr() for out in outs}) == len(ws)


def test_one_row_no_rows_and_what_is_not_finite() -> None:
    x, ws, bs = given()
    assert [o.shape for o in op(x, ws, bs)] == [(n,) for n in WIDTHS]
    assert [o.shape for o in op(torch.empty(0, 21), ws, bs)] == [(0, n) for n in WIDTHS]
    x, ws, bs = given(4)
    x[1, 3], ws[2][5, 0] = float("inf"), float("nan")
    outs = op(x, ws, bs)
    for out, eager in zip(outs, separate(x, ws, bs), strict=True):
        torch.testing.assert_close(out, eager, equal_nan=True)
    assert not outs[0][0].isnan().any() and outs[2][0].isnan().sum() == 1


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    x, ws, bs = given(2, 3)
    leaves = [t.requires_grad_(requires_grad) for t in (x, *ws, *bs) if t is not None]
    assert len(leaves) == 6
    torch.library.opcheck(op.default, (x, ws, bs))
    torch.library.opcheck(op.default, (x[0], [w.detach().t().contiguous().t() for w in ws], bs))


def test_gradients_are_eagers() -> None:
    x, ws, bs = given(2, 3)
    leaves = [t.requires_grad_() for t in (x, *ws, *bs) if t is not None]
    got, wanted = (
        torch.autograd.grad(sum(o.square().sum() for o in outs), leaves)
        for outs in (op(x, ws, bs), separate(x, ws, bs))
    )
    torch.testing.assert_close(got, wanted)


def test_vmap_over_any_of_them() -> None:
    x, ws, bs = given(4, 3)
    many = [torch.stack([w, 2 * w, -w, w + 1], 1) for w in ws]
    found = torch.vmap(lambda x, w: op(x, [w, ws[1]], [bs[0], None]), in_dims=(0, 1))(x, many[0])
    for i in range(4):
        one = op(x[i], [many[0][:, i], ws[1]], [bs[0], None])
        torch.testing.assert_close([f[i] for f in found], one)
    only = torch.vmap(lambda b: op(x, ws[:2], [b, None]))(torch.randn(4, 19))
    torch.testing.assert_close(only[1][2], F.linear(x, ws[1]))


def test_autocast_casts_as_eagers_linear() -> None:
    x, ws, bs = given(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        outs, eager = op(x, ws, bs), separate(x, ws, bs)
    torch.testing.assert_close(outs, eager)
    assert {o.dtype for o in outs} == {torch.bfloat16}


def test_flops_are_two_a_product() -> None:
    with FlopCounterMode(display=False) as counter:
        op(*given(2, 3))
    assert counter.get_total_flops() == 2 * 6 * 21 * sum(WIDTHS)


def test_errors_name_the_argument() -> None:
    x, ws, bs = given(2)
    wrong = {
        "weights must be one to 4, got 5": (x, ws[:1] * 5, bs[:1] * 5),
        "weights must be one to 4, got 0": (x, [], []),
        "biases must be as many as weights, 3, got 2; pass None": (x, ws, bs[:2]),
        "weights[1]": (x, [ws[0], ws[1][:, :20]], bs[:2]),
        "weights[2] is torch.float16": (x, [*ws[:2], ws[2].half()], bs),
        "biases[2]": (x, ws, [*bs[:2], bs[0]]),
        "x must be float32, float16, bfloat16 or float64": (x.int(), ws, bs),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=r"^fusepass::linears: ") as told:
            op(*arguments)
        assert message in str(told.value)
    with FakeTensorMode():
        other = torch.empty(8, 21, device="cuda")
        with pytest.raises(ValueError, match=r"weights\[0\] is on cuda:0 and x on cpu"):
            op(torch.empty(2, 21), [other], [None])


@pytest.mark.usefixtures("one_thread")
def test_where_no_kernel_runs_it_is_inductors_products() -> None:
    dtype = torch.bfloat16
    x, ws, bs = given(2, 3, dtype=dtype)

    def model(x: Tensor) -> list[Tensor]:
        return [torch.tanh(z) for z in op(x, ws, bs)]

    lowering.register()
    with torch.no_grad():
        found, (code,) = run_and_get_code(torch.compile(model), x)
    exact = separate(
        x.double(), [w.double() for w in ws], [b if b is None else b.double() for b in bs]
    )
    for out, right, eager in zip(found, exact, separate(x, ws, bs), strict=True):
        wide = torch.tanh(right)
        assert error(out, wide) <= error(torch.tanh(eager), wide) + CHANCE[dtype]
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("#", "//"))]
    assert not any(re.search(r"fusepass(\.|::)linears", line) for line in lines)
