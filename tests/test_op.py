"""The op on the CPU, and what holds on every device: schema, errors, fakes, vmap, FLOPs."""

from __future__ import annotations

import itertools

import pytest
import torch
from epilogues import CHANCE, GELUS, eager, error, random_epilogue, random_operands
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fusepass.op.linear
from fusepass import Epilogue

F = torch.nn.functional
linear = torch.ops.fusepass.linear
linear_with_preact = torch.ops.fusepass.linear_with_preact
DTYPES = fusepass.op.arguments.DTYPES
SEED_CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"


def problem(dtype: torch.dtype, m: int = 33, k: int = 65, n: int = 47) -> list[Tensor]:
    return [torch.randn(*s).to(dtype) for s in ((m, k), (n, k), (n,))]


LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "transposed": lambda x: x.t().contiguous().t(),
    "strided": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "row-strided": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "offset": lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view_as(x),
    "expanded": lambda x: x[:1].expand_as(x),
    "3-d": lambda x: x.view(3, -1, x.shape[1]),
    "3-d strided": lambda x: x.view(-1, 3, x.shape[1]).transpose(0, 1),
    "1-d": lambda x: x[0],
}


# --- numerics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_layouts(dtype: torch.dtype, layout: str, with_bias: bool) -> None:
    x, w, b = problem(dtype)
    x, b = LAYOUTS[layout](x), b if with_bias else None
    expected = eager(F.linear(x, w, b), Epilogue.parse(SEED_CHAIN), [])
    assert torch.equal(linear(x, w, b, SEED_CHAIN, [], numerics="bitwise"), expected)
    out, z = linear_with_preact(x, w, b, SEED_CHAIN, [])
    assert out.is_contiguous() and z.is_contiguous() and out.dtype == z.dtype == dtype
    assert out.shape == z.shape == expected.shape
    assert torch.equal(z, F.linear(x, w, b))
    assert torch.equal(out, linear(x, w, b, SEED_CHAIN, []))
    exact = Epilogue.parse(SEED_CHAIN).reference(z.double())
    assert error(out, exact) <= error(expected, exact) + CHANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gelu", GELUS)
def test_bitwise_is_eager(dtype: torch.dtype, gelu: str) -> None:
    x, w, b = problem(dtype, 37, 41, 531)
    x[3, 5], x[4, 6], b[7], w[5, 2] = float("nan"), float("inf"), float("-inf"), float("inf")
    for seed in range(50):
        epilogue = random_epilogue(seed, gelu, operands=seed % 2 == 1)
        operands = random_operands(epilogue, seed, dtype=dtype)
        got = linear(x, w, b, str(epilogue), operands, numerics="bitwise")
        expected = eager(F.linear(x, w, b), epilogue, operands)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=str(epilogue))


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype: torch.dtype, numerics: str) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    inf, nan = float("inf"), float("nan")
    z = torch.tensor([nan, inf, -inf, 0.0, -0.0, tiny, -tiny, tiny / 4, 1.0, -3.0], dtype=dtype)
    identity = torch.eye(1, dtype=dtype)
    for text in ("mul(0.5)", "clamp(-2.0, 2.0)", "clamp(-inf, inf)", "clamp(0.0, inf)",
                 "clamp(3.0, 1.0)", "gelu", "gelu_tanh", "mul(0.3) gelu", SEED_CHAIN):  # fmt: skip
        got = linear(z[:, None], identity, None, text, [], numerics=numerics)[:, 0]
        preact = F.linear(z[:, None], identity)[:, 0]
        # accurate: as float64's operators, for float32's GELU of +inf is NaN on some CPUs
        wide = preact.double() if numerics == "accurate" else preact
        expected = eager(wide, Epilogue.parse(text), []).to(dtype)
        torch.testing.assert_close(got, expected, equal_nan=True, msg=text)
        same = got.signbit() == expected.signbit()
        assert bool((same | got.isnan()).all()), f"{text}: sign of zero"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", [SEED_CHAIN, "mul(0.3) gelu_tanh"])
def test_blocks_cover_everything(
    dtype: torch.dtype, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, b = problem(dtype)
    x[3, 3] = float("inf")
    whole = linear_with_preact(x, w, b, text, [])
    monkeypatch.setattr(fusepass.op.linear.cpu, "_BLOCK", 500)
    torch.testing.assert_close(linear_with_preact(x, w, b, text, []), whole, equal_nan=True)
    torch.testing.assert_close(linear(x, w, b, text, []), whole[0], equal_nan=True)


@pytest.mark.parametrize("m, k, n", list(itertools.product((0, 3), (0, 5), (0, 4))))
@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
def test_empty(m: int, k: int, n: int, numerics: str) -> None:
    x, w, b = problem(torch.float32, m, k, n)
    out, z = linear_with_preact(x, w, b, "mul(2.0) gelu", [], numerics=numerics)
    assert torch.equal(z, F.linear(x, w, b))
    torch.testing.assert_close(out, F.gelu(z * 2))


def test_transposed_weight_and_strided_bias() -> None:
    x, w, b = problem(torch.float32)
    stored_kn, wide = w.t().contiguous(), b.repeat_interleave(3)[::3]
    torch.testing.assert_close(
        linear(x, stored_kn.t(), wide, "gelu", []), F.gelu(F.linear(x, w, b))
    )


@pytest.mark.parametrize("operand", [torch.tensor(0.3), torch.tensor([0.3]),
                                     torch.tensor(0.3, dtype=torch.float64)])  # fmt: skip
def test_operand_does_not_promote(operand: Tensor) -> None:
    x, w, b = problem(torch.bfloat16)
    out = linear(x, w, b, "mul($0)", [operand])
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (F.linear(x, w, b).float() * operand.float()).bfloat16())


# --- errors -------------------------------------------------------------------------------------

_X, _W = torch.zeros(2, 3), torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "numerics", "message"),
    [
        ((_X, _W.t(), None, "gelu", []), "accurate", r"weight must be \[N, 3\].*weight.t\(\)"),
        ((_X, _W[0], None, "gelu", []), "accurate", r"weight must be \[N, K\]"),
        ((_X, _W, _X, "gelu", []), "accurate", r"bias must be \[4\]"),
        ((_X, _W.double(), None, "gelu", []), "accurate", r"cast weight with .to\(torch.float32\)"),
        ((_X, _W, torch.zeros(4).half(), "gelu", []), "accurate", "cast bias"),
        ((_X.int(), _W.int(), None, "gelu", []), "accurate", "x must be float32"),
        ((_X[0, 0], _W, None, "gelu", []), "accurate", "scalar tensor"),
        ((_X, _W, None, "gelo", []), "accurate", "unknown operation 'gelo'"),
        ((_X, _W, None, "mul($0)", []), "accurate", r"takes 1 operand\(s\), got 0"),
        ((_X, _W, None, "mul($0)", [_X]), "accurate", r"\$0 must have one element"),
        ((_X, _W, None, "mul($0)", [torch.tensor(1)]), "accurate", r"\$0 must be floating point"),
        ((_X, _W, None, "gelu", []), "exact", "numerics must be 'accurate' or 'bitwise'"),
        ((_X, _W.to("meta"), None, "gelu", []), "accurate", "weight is on meta and x on cpu"),
    ],
)
@pytest.mark.parametrize("op", [linear, linear_with_preact])
def test_errors_name_the_argument(
    op: torch._ops.OpOverloadPacket, arguments: tuple[object, ...], numerics: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        op(*arguments, numerics=numerics)


# --- what torch asks of an op -------------------------------------------------------------------


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(numerics: str, requires_grad: bool) -> None:
    x, w, b = (t.requires_grad_(requires_grad) for t in problem(torch.float32, 6, 5, 4))
    operand = torch.tensor(0.7, requires_grad=requires_grad)
    for op in (linear.default, linear_with_preact.default):
        for args in (
            (x, w, b, "mul($0) gelu", [operand]),
            (x.view(2, 3, 5), w, None, "gelu", []),
            (x, w, b, "", []),
        ):
            torch.library.opcheck(op, args, {"numerics": numerics})


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_an_epilogue_it_is_linear(numerics: str, dtype: torch.dtype) -> None:
    x, w, b = (t.requires_grad_() for t in problem(dtype))
    found, expected = linear(x, w, b, "", [], numerics=numerics), F.linear(x, w, b)
    assert torch.equal(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), (x, w, b)),
        torch.autograd.grad(expected.sum(), (x, w, b)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    batched = torch.vmap(lambda w: linear(x, w, None, "", [], numerics=numerics))(w[None])
    torch.testing.assert_close(batched[0], F.linear(x, w))


def test_without_an_epilogue_both_outputs_have_memory_of_their_own() -> None:
    x, w, b = problem(torch.float32)
    both = torch.compile(lambda x: linear_with_preact(x, w, b, "", []), backend="fusepass")
    for out, z in (both(x), linear_with_preact(x, w, b, "", [], numerics="bitwise")):
        out.zero_()
        torch.testing.assert_close(z, F.linear(x, w, b))


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
def test_autocast_casts_as_linear_is_cast(numerics: str) -> None:
    x, w, b = (t.requires_grad_() for t in problem(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        got = linear(x, w, b, SEED_CHAIN, [], numerics=numerics)
        expected = eager(F.linear(x, w, b), Epilogue.parse(SEED_CHAIN), [])
        assert linear(x.double(), w.double(), None, "gelu", []).dtype == torch.float64
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for g, e in zip(
        torch.autograd.grad(got.sum(), (x, w, b)),
        torch.autograd.grad(expected.sum(), (x, w, b)),
        strict=True,
    ):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, e, rtol=2e-2, atol=2e-2)


def test_meta_and_symbolic_shapes() -> None:
    x, w, _ = (t.to("meta") for t in problem(torch.bfloat16))
    assert linear(x.t().reshape(-1, 65), w, None, "gelu", []).shape == (33, 47)
    traced = torch.fx.experimental.proxy_tensor.make_fx(
        lambda x, w: linear(x, w, None, "gelu", []), tracing_mode="symbolic"
    )(torch.randn(2, 3, 5), torch.randn(7, 5))
    (node,) = (n for n in traced.graph.nodes if n.target == linear.default)
    assert node.meta["val"].shape[-1] == 7 and isinstance(node.meta["val"].shape[0], torch.SymInt)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_flops(requires_grad: bool) -> None:
    x, w, b = problem(torch.float32, 6, 5, 4)
    w.requires_grad_(requires_grad)
    with FlopCounterMode(display=False) as counter:
        linear(x.view(2, 3, 5), w, b, "gelu", [])
    assert counter.get_total_flops() == 2 * 6 * 5 * 4


def test_compiles_as_part_of_a_model() -> None:
    x, w, b = problem(torch.float32)
    model = torch.compile(lambda x: linear(x + 1, w, b, SEED_CHAIN, []) * 2, fullgraph=True)
    torch.testing.assert_close(model(x), linear(x + 1, w, b, SEED_CHAIN, []) * 2)


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
def test_vmap(numerics: str) -> None:
    x, w, b = torch.randn(3, 6, 5), torch.randn(3, 4, 5), torch.randn(3, 4)
    c = torch.randn(3)

    def f(x: Tensor, w: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return linear(x, w, b, "mul($0) clamp(-1.0, 1.0) gelu", [c], numerics=numerics)

    for dims in itertools.product((0, None), repeat=4):
        if dims == (None,) * 4:
            continue
        args = [t if d == 0 else t[0] for t, d in zip((x, w, b, c), dims, strict=True)]
        one = [[t[i] if d == 0 else t for t, d in zip(args, dims, strict=True)] for i in range(3)]
        torch.testing.assert_close(torch.vmap(f, dims)(*args), torch.stack([f(*a) for a in one]))
