"""The arithmetic of the float32 split kernel, modelled in float64 on the CPU.

``split`` is what the pre-pass stores, ``Accumulate`` what a tensor core makes of it: products are
exact, addends are aligned to the largest one, cut (not rounded) two bits below a float32's last
place, summed, and the sum is cut to 24 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MMA_K = 16  # depth of one 16-bit wgmma
EXTRA_BITS = 2
LOW_SHIFT = 11  # low pieces are stored multiplied by 2^11
TOP = 14  # a row's largest magnitude is scaled into [2^14, 2^15)
FEW = 8
MOST_LINES = 16  # rows of few elements that are summed alone


@dataclass
class Split:
    """One matrix as the pre-pass leaves it; all in float64, [rows, K] or [rows]."""

    hi: Tensor
    lo: Tensor  # times 2^LOW_SHIFT
    exponent: Tensor  # of the row's largest magnitude, or the least that a scale can have
    norm: Tensor  # of the scaled row
    loss: Tensor  # norm of what tiny elements lost, 0 where every element kept float32's digits


def exponent_of(v: Tensor) -> Tensor:
    """floor(log2(v)) for finite v > 0, and 0 for 0."""
    mantissa, exponent = torch.frexp(v)
    return torch.where(mantissa == 0, torch.zeros_like(exponent), exponent - 1)


def half(v: Tensor) -> Tensor:
    return v.to(torch.float16).double()


def split(rows: Tensor) -> Split:
    """rows * 2^(TOP - exponent) = hi + lo / 2^11, both float16; ``rows`` are finite float32."""
    wide = rows.double()
    exponent = exponent_of(wide.abs().amax(1)).clamp(min=TOP - 127)  # one factor undoes it
    scaled = torch.ldexp(wide, (TOP - exponent)[:, None])
    hi = half(scaled)
    lo = half(torch.ldexp(scaled - hi, torch.tensor(LOW_SHIFT)))
    residue = (scaled - hi - torch.ldexp(lo, torch.tensor(-LOW_SHIFT))).abs()
    lost = torch.where(residue > scaled.abs() * 2.0**-22, residue, torch.zeros_like(residue))
    return Split(hi, lo, exponent, scaled.square().sum(1).sqrt(), lost.square().sum(1).sqrt())


def _truncate(v: Tensor, bits: int) -> Tensor:
    """v cut to ``bits`` significant bits."""
    mantissa, exponent = torch.frexp(v)
    shift = torch.tensor(float(2**bits), dtype=v.dtype)
    return torch.ldexp(torch.trunc(mantissa * shift) / shift, exponent)


def mma(acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """acc + a b^T over one MMA_K; a [..., m, 16], b [..., n, 16], acc [..., m, n]."""
    addends = torch.cat([a[..., :, None, :] * b[..., None, :, :], acc[..., None]], -1)
    _, exponent = torch.frexp(addends.abs().amax(-1))
    place = exponent - 24 - EXTRA_BITS
    cut = torch.trunc(torch.ldexp(addends, -place[..., None]))
    return _truncate(torch.ldexp(cut.sum(-1), place), 24)


def _chunks(v: Tensor, depth: int) -> Tensor:
    """[rows, K] -> [K / depth, rows, depth], zero-filled."""
    pad = -v.shape[1] % depth
    return torch.nn.functional.pad(v, (0, pad)).unflatten(1, (-1, depth)).transpose(0, 1)


def _chain(acc: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    for a, b in pairs:
        for k in range(0, a.shape[-1], MMA_K):
            acc = mma(acc, a[..., k : k + MMA_K], b[..., k : k + MMA_K])
    return acc


def promoted(pairs: list[tuple[Tensor, Tensor]], depth: int, span: int | None = None) -> Tensor:
    """Sum over pairs of a b^T: chains of ``depth``, each added to a float32 with one rounding.

    Every ``span`` of K the float32 is added to a sum of twice its digits, and starts from 0: the
    narrow tile's way.
    """
    cut = [(_chunks(a, depth), _chunks(b, depth)) for a, b in pairs]
    m, n, count = pairs[0][0].shape[0], pairs[0][1].shape[0], cut[0][0].shape[0]
    partial = _chain(torch.zeros(count, m, n, dtype=torch.float64), cut)
    each = count if span is None else span // depth
    total = torch.zeros(m, n, dtype=torch.float64)
    for terms in partial.split(each):
        total = total + ordered_sum(terms)
    return total


def ordered_sum(terms: Tensor) -> Tensor:
    """Float32 sum over dim 0, in order."""
    total = torch.zeros_like(terms[0], dtype=torch.float32)
    for term in terms.float():
        total = total + term
    return total.double()


def exact(x: Tensor, w: Tensor) -> Tensor:
    """x w^T rounded once: what the kernel does where splitting is not good enough."""
    return (x.double() @ w.double().T).float()


def fp16x3(x: Tensor, w: Tensor, depth: int = 32, span: int | None = None) -> Tensor:
    """x w^T in float32, from float32 x [m, K] and w [n, K], as the kernel computes it."""
    a, b = split(x), split(w)
    correction = torch.zeros(x.shape[0], w.shape[0], dtype=torch.float64)
    for pieces in zip(*(_chunks(p, MMA_K) for p in (a.hi, a.lo, b.hi, b.lo)), strict=True):
        a_hi, a_lo, b_hi, b_lo = pieces
        correction = mma(mma(correction, a_hi, b_lo), a_lo, b_hi)
    main = promoted([(a.hi, b.hi)], depth, span)
    total = (main + torch.ldexp(correction, torch.tensor(-LOW_SHIFT))).float().double()
    shift = a.exponent[:, None] + b.exponent[None, :] - 2 * TOP
    return torch.ldexp(total, shift).float()


def bf16x6(x: Tensor, w: Tensor, depth: int = 128) -> Tensor:
    """The six leading products of three bfloat16 pieces, smallest first in each chain."""

    def pieces(v: Tensor) -> list[Tensor]:
        rest, out = v.double(), []
        for _ in range(3):
            out.append(rest.to(torch.bfloat16).double())
            rest = rest - out[-1]
        return out

    a, b = pieces(x), pieces(w)
    order = [(0, 2), (2, 0), (1, 1), (0, 1), (1, 0), (0, 0)]
    return promoted([(a[i], b[j]) for i, j in order], depth).float()


def sequential(x: Tensor, w: Tensor, chains: int = 1) -> Tensor:
    """x w^T by float32 FMAs along K: what a CUDA-core SGEMM does; ``chains`` is its split of K."""
    totals = []
    for a, b in zip(x.double().chunk(chains, 1), w.double().chunk(chains, 1), strict=True):
        total = torch.zeros(x.shape[0], w.shape[0], dtype=torch.float32)
        for k in range(a.shape[1]):
            total = (total.double() + a[:, k, None] * b[None, :, k]).float()
        totals.append(total)
    return ordered_sum(torch.stack(totals)).float()


def unsafe(x: Tensor, w: Tensor) -> Tensor:
    """Which elements the kernel must sum in float64 instead, [m, n] of bool."""
    a, b = split(x), split(w)
    shift = a.exponent[:, None] + b.exponent[None, :] - 2 * TOP
    total = torch.ldexp(fp16x3(x, w).double(), -shift)
    bound = a.loss[:, None] * b.norm + a.norm[:, None] * b.loss
    lossy = ~(total.abs() >= 2.0**24 * bound)
    dominated = dominates(a)[:, None] & dominates(b) | few(a)[:, None] | few(b)
    size = exponent_of(a.norm)[:, None] + exponent_of(b.norm) + 2
    return lossy | dominated | (size + shift >= 126)


def dominates(rows: Split) -> Tensor:
    """Rows of which one element is a quarter of the square sum or more."""
    top = (rows.hi + torch.ldexp(rows.lo, torch.tensor(-LOW_SHIFT))).abs().amax(1)
    return (4 * top.square() >= rows.norm.square()) & (top > 0)


def few(rows: Split) -> Tensor:
    """Rows with fewer than FEW elements that count."""
    count = (rows.hi.abs() >= 2.0 ** (TOP - 24)).sum(1)
    return (rows.norm > 0) & (count < FEW)


def fused(x: Tensor, w: Tensor) -> Tensor:
    """x w^T as the kernel computes it, for up to 64 rows of x and 128 of w, a consumer's share.

    All is summed in float64 if one element must be, but rows of few elements alone.
    """
    a, b = split(x), split(w)
    alone, found = few(a)[:, None] | few(b), unsafe(x, w)
    if (found & ~alone).any() or few(a).sum() + few(b).sum() > MOST_LINES:
        return exact(x, w)
    return torch.where(alone, exact(x, w), fp16x3(x, w))


# --- K in parts -----------------------------------------------------------------------------------


def _parts(rows: Tensor, depth: int) -> tuple[list[Split], Split, Tensor, Tensor]:
    """The parts of ``depth`` of K, what their facts say of all, and of which few, one dominates."""
    parts = [split(part) for part in rows.split(depth, 1)]
    filled = torch.stack([part.norm > 0 for part in parts])
    exponents = torch.stack([part.exponent for part in parts])
    highest = torch.where(filled, exponents, -1000).amax(0)
    highest = torch.where(filled.any(0), highest, 0)
    below = highest - exponents
    norms, losses = (
        torch.ldexp(torch.stack([getattr(part, name) for part in parts]), -below)
        for name in ("norm", "loss")
    )
    norm, loss = norms.square().sum(0).sqrt(), losses.square().sum(0).sqrt()
    counts = torch.stack([(part.hi.abs() >= 2.0 ** (TOP - 24)).sum(1) for part in parts])
    seen = torch.where(below == 0, counts, (below <= 24).long()) * filled
    few_rows = (norm > 0) & (seen.sum(0) < FEW)
    one = torch.stack([dominates(part) for part in parts]) & (4 * norms.square() >= norm.square())
    nothing = torch.zeros(0)
    return parts, Split(nothing, nothing, highest, norm, loss), few_rows, one.any(0)


def fp16x3_in_parts(x: Tensor, w: Tensor, depth: int) -> Tensor:
    """x w^T of parts of K, each with its scales; added in float64, rounded once."""
    total = torch.zeros(x.shape[0], w.shape[0], dtype=torch.float64)
    for a, b in zip(x.split(depth, 1), w.split(depth, 1), strict=True):
        total += fp16x3(a, b).double()
    return total.float()


def unsafe_in_parts(x: Tensor, w: Tensor, depth: int) -> Tensor:
    """As ``unsafe``, of what is known of the parts."""
    _, a, few_a, one_a = _parts(x, depth)
    _, b, few_b, one_b = _parts(w, depth)
    shift = a.exponent[:, None] + b.exponent[None, :] - 2 * TOP
    total = torch.ldexp(fp16x3_in_parts(x, w, depth).double(), -shift)
    bound = a.loss[:, None] * b.norm + a.norm[:, None] * b.loss
    lossy = ~(total.abs() >= 2.0**24 * bound)
    dominated = one_a[:, None] & one_b | few_a[:, None] | few_b
    size = exponent_of(a.norm)[:, None] + exponent_of(b.norm) + 2
    return lossy | dominated | (size + shift >= 126)


def fused_in_parts(x: Tensor, w: Tensor, depth: int) -> Tensor:
    """As ``fused``, K split and multiplied in parts of ``depth``."""
    few_a, few_b = _parts(x, depth)[2], _parts(w, depth)[2]
    alone, found = few_a[:, None] | few_b, unsafe_in_parts(x, w, depth)
    if (found & ~alone).any() or few_a.sum() + few_b.sum() > MOST_LINES:
        return exact(x, w)
    return torch.where(alone, exact(x, w), fp16x3_in_parts(x, w, depth))
