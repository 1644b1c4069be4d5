"""Bitwise numerics: torch.equal to eager, and a miss wherever eager rounds in another way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import fuse
from torch import nn

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
Tail = Callable[[torch.Tensor], torch.Tensor]


class Model(nn.Module):
    def __init__(self, tail: Tail, dtype: torch.dtype, k: int = 24, n: int = 40) -> None:
        super().__init__()
        self.linear = nn.Linear(k, n, dtype=dtype)
        nn.init.normal_(self.linear.weight)
        self.tail = tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.linear(x))


def equal(model: nn.Module, x: torch.Tensor) -> tuple[list[str], list[str]]:
    """Asserts equality bit for bit, NaN payloads aside, of what fused; sites and reasons."""
    with torch.no_grad():
        fused = fuse(model, "bitwise")
        found, eager = fused(x), model(x)
    torch.testing.assert_close(found, eager, equal_nan=True)
    if not fused.epilogues:  # what runs is torch's own taking apart, which need not be bitwise
        return [], fused.reasons
    assert torch.equal(found.isnan(), eager.isnan())
    assert torch.equal(found.nan_to_num(0.0), eager.nan_to_num(0.0))
    assert torch.equal(found.signbit()[~found.isnan()], eager.signbit()[~eager.isnan()])
    return fused.epilogues, fused.reasons


def random_tail(rng: random.Random) -> tuple[str, Tail]:
    """An ordered list of stages in torch's own operators, and its exact text."""
    text: list[str] = []
    steps: list[Tail] = []
    for _ in range(rng.randint(1, 5)):
        c = rng.choice([0.5, 3.0, -1.7, 0.1])
        lo, hi = sorted((rng.uniform(-3, 3), rng.uniform(-3, 3)))
        name, step = rng.choice(
            [
                (f"mul({c})", lambda z, c=c: z * c),
                (f"mul({c})", lambda z, c=c: c * z),
                ("div(3.0)", lambda z: z / 3),
                ("mul(-1.0)", lambda z: -z),
                (f"clamp({lo}, {hi})", lambda z, a=lo, b=hi: F.hardtanh(z, a, b)),
                (f"clamp({lo}, {hi})", lambda z, a=lo, b=hi: z.clamp(a, b)),
                ("gelu", F.gelu),
                ("gelu_tanh", lambda z: F.gelu(z, approximate="tanh")),
            ]
        )
        text.append(name)
        steps.append(step)

    def tail(z: torch.Tensor) -> torch.Tensor:
        for step in steps:
            z = step(z)
        return z

    return " ".join(text), tail


@pytest.mark.parametrize("seed", range(50))
def test_random_epilogues_and_odd_shapes(seed: int) -> None:
    rng = random.Random(seed)
    text, tail = random_tail(rng)
    m, k, n = (rng.choice([1, 3, 17, 33, 65]) for _ in range(3))
    dtype = DTYPES[seed % 4]
    x = torch.randn(m, k, dtype=dtype)
    model = Model(tail, dtype, k, n)
    with torch.no_grad():
        fused = fuse(model, "bitwise")
        found, eager = fused(x), model(x)
    if min(m, k, n) > 1:
        assert fused.epilogues == [text]
    # torch's own CPU decompositions take some one-row and one-column products apart.
    assert fused.epilogues in ([], [text])
    assert bool(fused.epilogues) != any("element by element" in r for r in fused.reasons)
    torch.testing.assert_close(found, eager)
    if fused.epilogues:
        assert torch.equal(found, eager)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_nan_and_infinity(dtype: torch.dtype, approximate: str) -> None:
    x = torch.randn(6, 24, dtype=dtype)
    x[0, 0], x[1, 0], x[2, 0], x[3] = math.nan, math.inf, -math.inf, 0.0
    model = Model(lambda z: F.gelu(F.hardtanh(z * 0.3, -2, 2), approximate=approximate), dtype)
    sites, reasons = equal(model, x)
    assert len(sites) == 1 and reasons == []


@pytest.mark.parametrize(
    ("tail", "epilogue"),
    [
        (lambda z: z / 2, "mul(0.5)"),
        (lambda z: z / 3, "div(3.0)"),
        (lambda z: z * 3 * 5, "mul(3.0) mul(5.0)"),
        (lambda z: F.gelu(z * -1.0) * -1, "mul(-1.0) gelu mul(-1.0)"),
        (lambda z: z.clamp(min=-1).clamp(max=1), "clamp(-1.0, 1.0)"),
        (lambda z: (z.float() * 0.3).to(z.dtype), "mul(0.3)"),
        (lambda z: F.relu6(F.relu(z)), "clamp(0.0, inf) clamp(0.0, 6.0)"),
        (lambda z: torch.minimum(z, torch.tensor(0.1)), "clamp(-inf, 0.10000000149011612)"),
        (lambda z: torch.minimum(z, torch.full((), 0.1)), "clamp(-inf, 0.10000000149011612)"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_folded(tail: Tail, epilogue: str, dtype: torch.dtype) -> None:
    assert equal(Model(tail, dtype), torch.randn(6, 24, dtype=dtype)) == ([epilogue], [])


@pytest.mark.parametrize(
    ("tail", "sites", "reason"),
    [
        (lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))), [], "this gelu with `mul`"),
        (lambda z: z * torch.special.ndtr(z), [], "this gelu with"),
        (lambda z: (z.float() * 0.3 * 0.7).to(z.dtype), [], "does not round between"),
        (lambda z: F.gelu(z.float() * 0.3).to(z.dtype), [], "computes this gelu in float32"),
        (lambda z: F.gelu(z.float()).to(z.dtype), [], "computes this gelu in float32"),
        (lambda z: F.gelu(z.double(), approximate="tanh").to(z.dtype), [], "goes on in float64"),
        (lambda z: (z.double() * 0.3).to(z.dtype), [], "goes on in float64"),
    ],
)
def test_what_rounds_differently_is_a_miss(tail: Tail, sites: list[str], reason: str) -> None:
    model = Model(tail, torch.bfloat16)
    found, reasons = equal(model, torch.randn(6, 24, dtype=torch.bfloat16))
    assert found == sites and len(reasons) == 1 and reason in reasons[0]


def test_a_rounded_prefix_still_fuses() -> None:
    model = Model(lambda z: (lambda y: y * 0.5 * (1 + torch.erf(y)))(F.relu(z)), torch.bfloat16)
    sites, reasons = equal(model, torch.randn(6, 24, dtype=torch.bfloat16))
    assert sites == ["clamp(0.0, inf)"] and reasons == []


def test_a_scalar_on_the_left_that_eager_rounds_first_is_a_miss() -> None:
    """On the CPU, torch.mul(0.1, z) is not z * 0.1 in 16 bits: the scalar is rounded first."""
    x = torch.randn(6, 24, dtype=torch.bfloat16)
    scale = torch.tensor(0.1)
    for tail in (lambda z: torch.mul(0.1, z), lambda z: scale * z):
        sites, reasons = equal(Model(tail, torch.bfloat16), x)
        assert sites == [] and "rounds the factor" in reasons[0]
    assert equal(Model(lambda z: torch.mul(0.5, z), torch.bfloat16), x) == (["mul(0.5)"], [])
    x = torch.randn(6, 24)
    assert equal(Model(lambda z: torch.mul(0.1, z), torch.float32), x) == (["mul(0.1)"], [])


@pytest.mark.parametrize(
    "tail",
    [
        lambda z: F.gelu(z.transpose(-1, -2)),
        lambda z: F.gelu(z.t().contiguous(), approximate="tanh"),
        lambda z: F.gelu(z.view(2, 3, 40).permute(2, 0, 1)),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gelu_of_a_transposed_tensor_is_a_miss(tail: Tail, dtype: torch.dtype) -> None:
    """torch's kernels for CPUs round a GELU by where an element lies."""
    sites, reasons = equal(Model(tail, dtype), torch.randn(6, 24, dtype=dtype))
    assert sites == [] and "on a transposed tensor" in reasons[0]


@pytest.mark.parametrize(
    ("tail", "epilogue"),
    [
        (lambda z: F.gelu(z).t() * 0.3, "gelu mul(0.3)"),
        (lambda z: F.hardtanh(z.t() * 0.3) / 3, "mul(0.3) clamp(-1.0, 1.0) div(3.0)"),
        (lambda z: F.gelu((z * 0.3).view(2, 3, 5, 8).unsqueeze(1)), "mul(0.3) gelu"),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounds_the_same_everywhere_fuses(
    tail: Tail, epilogue: str, dtype: torch.dtype
) -> None:
    assert equal(Model(tail, dtype), torch.randn(6, 24, dtype=dtype)) == ([epilogue], [])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "tail", [lambda z, c: z * c, lambda z, c: z / c, lambda z, c: z.clamp(max=-c)]
)
def test_an_integer_that_float64_does_not_have(
    tail: Callable[[torch.Tensor, int], torch.Tensor], dtype: torch.dtype
) -> None:
    """Eager rounds it once; by way of float64 it would be rounded twice. Where eager has no such
    bound, float16's, the compiled model has none either."""
    lost, kept = 2**60 + 2**36 + 1, 2**60 + 2**36
    x = torch.randn(6, 24, dtype=dtype)
    try:
        tail(torch.ones(1, dtype=dtype), lost)
    except RuntimeError:
        with pytest.raises(Exception, match="without overflow"):
            equal(Model(lambda z: tail(z, lost), dtype), x)
        return
    sites, reasons = equal(Model(lambda z: tail(z, lost), dtype), x)
    if dtype is torch.float64:
        assert len(sites) == 1
    else:
        assert sites == [] and "by way of float64" in reasons[0]
    assert len(equal(Model(lambda z: tail(z, kept), dtype), x)[0]) == 1


def test_a_bias_added_to_a_rounded_product_is_a_miss() -> None:
    weight, bias = torch.randn(24, 40).bfloat16(), torch.randn(40).bfloat16()
    x = torch.randn(6, 24).bfloat16()
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(x @ weight + bias), "bitwise")
        assert torch.equal(fused(x), F.relu(x @ weight + bias))
    assert fused.epilogues == []
    assert fused.reasons == [
        "bitwise: eager rounds the product before it adds the bias; one GEMM does not"
    ]
