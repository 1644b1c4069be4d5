"""Why float32 on 16-bit tensor cores is float32: the arithmetic of the split kernel, modelled.

The device's own figures are measured by benchmarks/accuracy.py and tests/gpu/test_float32.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from split_model import (
    MOST_LINES,
    bf16x6,
    dominates,
    exact,
    fp16x3,
    fused,
    sequential,
    split,
    unsafe,
)  # fmt: skip

from fusepass.kernels.build.build import SOURCES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from accuracy import CASES, errors, within_contract

M, N = 16, 16


def case(name: str, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(k)
    x, w, _ = CASES[name](M, N, k)
    return x, w


def error(z: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple[float, float]:
    return errors(z, x, w, torch.zeros(w.shape[0]))


@pytest.mark.parametrize("k", [256, 1024])
@pytest.mark.parametrize("name", CASES)
def test_the_contract_is_kept(name: str, k: int) -> None:
    x, w = case(name, k)
    assert within_contract(fused(x, w), sequential(x, w), x, w, torch.zeros(w.shape[0]))


def test_what_breaks_the_contract_is_seen() -> None:
    x, w = case("normal", 1024)
    eager, zero = sequential(x, w), torch.zeros(N)
    off = eager + 2.0**-20 * (x.abs() @ w.abs().T)
    assert not within_contract(off, eager, x, w, zero)
    one = eager.clone()
    one[3, 5] = off[3, 5]
    assert not within_contract(one, eager, x, w, zero)


HOSTILE = ("outlier columns, aligned", "outlier columns, anti-aligned", "log-normal, 40 binades")
ORDINARY = [n for n in CASES if n not in (*HOSTILE, "one-hot rows")]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_data_takes_the_fast_path(name: str) -> None:
    assert not unsafe(*case(name, 1024)).any()


def test_what_breaks_the_split_is_found() -> None:
    x, w = case("outlier columns, anti-aligned", 1024)
    split_only, safe = error(fp16x3(x, w), x, w), error(fused(x, w), x, w)
    assert split_only[0] > 10 * safe[0]
    assert unsafe(x, w).float().mean() > 0.9


def test_a_dominating_product_is_left_to_float64() -> None:
    x, w = case("outlier columns, aligned", 1024)
    assert dominates(split(x)).all() and unsafe(x, w).all()
    x, w = case("normal", 1024)
    assert not dominates(split(x)).any()


def test_rows_of_few_elements_are_left_to_float64() -> None:
    x, w = case("one-hot rows", 1024)
    assert not torch.equal(fp16x3(x, w), x @ w.T)
    assert torch.equal(fused(x, w), x @ w.T)


def test_of_a_group_only_rows_of_few_elements_are_left_to_float64() -> None:
    """Hidden units of ReLU that few tokens use: the rest is not slowed down."""
    x, w = case("normal", 1024)
    x[3, 5:] = 0
    w[7, 7:] = 0
    result, exactly, fast = fused(x, w), exact(x, w), fp16x3(x, w)
    assert torch.equal(result[3], exactly[3]) and torch.equal(result[:, 7], exactly[:, 7])
    rest = [i for i in range(M) if i != 3]
    assert torch.equal(result[rest, :7], fast[rest, :7]) and not torch.equal(fast, exactly)


def test_the_model_has_the_kernels_number_of_lines() -> None:
    text = (SOURCES / "sm90_f32/gemm_sm90_f32_few.cuh").read_text()
    assert f"constexpr int kMostLines = {MOST_LINES};" in text


def test_integers_are_exact() -> None:
    torch.manual_seed(0)
    x, w = (torch.randint(-2048, 2049, (16, 512)).float() for _ in range(2))
    x[:, 256:] = 0  # sums below 2^24 * 2^8, multiples of 1: exact only if the result fits 24 bits
    x, w = x % 64, w % 64
    assert torch.equal(fp16x3(x, w).double(), x.double() @ w.double().T)


def test_a_row_of_one_size_is_no_worse_when_it_is_short() -> None:
    for k in (16, 64, 128):
        x, w = case("uniform(0, 1)", k)
        assert error(fp16x3(x, w), x, w)[0] <= max(error(sequential(x, w), x, w)[0], 2.0**-23)


def test_long_chains_drift() -> None:
    """Adding to float32 every 32 of K is what keeps positive data accurate."""
    x, w = case("uniform(0, 1)", 1024)
    every = {depth: error(fp16x3(x, w, depth), x, w)[0] for depth in (32, 64, 128, 1024)}
    assert every[32] < every[64] < every[128] < every[1024]
    assert every[64] < error(sequential(x, w), x, w)[0] < every[1024]


SPAN = 512  # gemm_sm90_f32_consumer.cuh: kSpan steps of 64


def test_the_model_has_the_kernels_span() -> None:
    text = (SOURCES / "sm90_f32/gemm_sm90_f32_consumer.cuh").read_text()
    assert f"constexpr int kSpan = {SPAN // 64};" in text


@pytest.mark.parametrize("k", [1024, 4096])
@pytest.mark.parametrize("name", ["uniform(0, 1)", "normal"])
def test_sums_of_sums_are_no_worse_than_short_chains(name: str, k: int) -> None:
    """The narrow tile takes few tiles with a long K, where eager's chains are short, too."""
    x, w = case(name, k)
    ours = error(fp16x3(x, w, span=SPAN), x, w)
    assert ours[0] <= error(sequential(x, w, 64), x, w)[0]
    assert ours[0] < error(fp16x3(x, w), x, w)[0]


def test_six_bfloat16_products_would_do_at_twice_the_cost() -> None:
    x, w = case("normal", 1024)
    assert error(bf16x6(x, w), x, w)[0] <= error(sequential(x, w), x, w)[0]


def test_pieces_hold_22_bits_down_to_2_to_the_minus_28() -> None:
    row = torch.ldexp(torch.rand(1, 4096) + 1, -torch.arange(4096).remainder(29))
    row[0, 0] = 1.999
    pieces = split(row)
    back = torch.ldexp(pieces.hi + torch.ldexp(pieces.lo, torch.tensor(-11)), torch.tensor(-14))
    assert ((back - row.double()).abs() <= row.double() * 2.0**-22).all()
    assert pieces.loss == 0
    row[0, 1] = 2.0**-40 * 1.1
    assert split(row).loss > 0


@pytest.mark.parametrize("scale", [2.0**-113, 1.0, 2.0**100, 2.0**127])
def test_every_exponent_but_the_least_can_be_a_rows_largest(scale: float) -> None:
    pieces = split(torch.tensor([[scale, scale, 0.0]]))
    assert pieces.hi[0].tolist() == [2.0**14, 2.0**14, 0.0]
    assert pieces.lo.count_nonzero() == 0


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-140, 2.0**-126, 2.0**-120])
def test_a_tiny_row_loses_nothing(scale: float) -> None:
    """2^127 is the largest scale: the least subnormal is then 2^-22."""
    row = torch.arange(1, 100)[None] * torch.tensor(scale)
    pieces = split(row)
    assert pieces.exponent == -113 and pieces.loss == 0
    back = pieces.hi + torch.ldexp(pieces.lo, torch.tensor(-11))
    assert torch.equal(back, torch.ldexp(row.double(), torch.tensor(127)))
