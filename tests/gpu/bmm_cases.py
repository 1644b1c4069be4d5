"""Batches of float32 matrices through the kernel, as a program: ``python bmm_cases.py``.

Prints a line for each case that is wrong, and fails if there is one.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import fusepass.op  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.kernels import plan_bmm

NAN, INF = float("nan"), float("inf")
Case = tuple[str, Tensor, Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda")


def lognormal(*shape: int) -> Tensor:
    return normal(*shape).sign() * torch.exp(4 * normal(*shape))


def outliers(*shape: int) -> Tensor:
    values = normal(*shape)
    values[..., 0] *= 1e6
    return values


def causal(*shape: int) -> Tensor:
    ahead = torch.ones(shape[-2:], device="cuda").triu(1).bool()
    return normal(*shape).masked_fill(ahead, -INF).softmax(-1)


def one_hot(*shape: int) -> Tensor:
    places = torch.randint(shape[-1], shape[:-1], device="cuda")
    return torch.nn.functional.one_hot(places, shape[-1]) * normal(*shape)


def zero_rows(*shape: int) -> Tensor:
    return normal(*shape) * (torch.rand(*shape[:-1], 1, device="cuda") < 0.5)


DATA: dict[str, Callable[..., Tensor]] = {
    "normal": normal,
    "uniform": lambda *s: torch.rand(*s, device="cuda"),
    "softmax": lambda *s: (6 * normal(*s)).softmax(-1),
    "sharp softmax": lambda *s: (40 * normal(*s)).softmax(-1),
    "causal": causal,
    "lognormal": lognormal,
    "outliers": outliers,
    "one-hot": one_hot,
    "zero rows": zero_rows,
    "integers": lambda *s: torch.randint(-8, 9, s, device="cuda").float(),
    "1e-27": lambda *s: normal(*s) * 2.0**-90,
    "1e18": lambda *s: normal(*s) * 2.0**60,
    "1e29": lambda *s: normal(*s) * 1e29,
    "subnormal": lambda *s: normal(*s) * 2.0**-130,
}


def stored(rows: Tensor, is_km: bool, beyond: int = 0) -> Tensor:
    """[B, rows, K] stored by rows or by K, within a matrix of NaN."""
    lines = rows.transpose(1, 2) if is_km else rows
    whole = torch.full((*lines.shape[:2], lines.shape[2] + beyond), NAN, device="cuda")
    part = whole[..., : lines.shape[2]].copy_(lines)
    return part.transpose(1, 2) if is_km else part


def orders() -> Iterator[Case]:
    sizes = [
        (3, 128, 64, 64), (5, 200, 64, 136), (4, 65, 192, 64), (7, 33, 100, 97), (2, 130, 513, 70),
        (140, 33, 64, 300), (70, 512, 512, 64), (600, 20, 8, 16), (1, 1, 1, 1), (300, 128, 64, 320),
    ]  # fmt: skip
    for b, m, k, n in sizes:
        for x_is_km in (False, True):
            for w_is_kn in (False, True):
                for beyond in (0, 1, 4):
                    x = stored(normal(b, m, k), x_is_km, beyond)
                    w = stored(normal(b, n, k), w_is_kn, beyond).transpose(1, 2)
                    yield f"{b} {m}x{k}x{n} km {x_is_km} kn {w_is_kn} + {beyond}", x, w
    x, w = normal(1, 90, 64).expand(6, -1, -1), normal(6, 64, 80)
    yield "one x", x, w
    yield "one w", normal(6, 90, 80), normal(1, 80, 64).expand(6, -1, -1)
    heads = normal(2, 100, 4, 64).permute(0, 2, 1, 3)
    yield "heads", heads[:, 1], heads[:, 2].transpose(1, 2)


def data() -> Iterator[Case]:
    for x_data in DATA:
        for w_data in DATA:
            for k in (128, 384):
                x, w = DATA[x_data](3, 192, k), DATA[w_data](3, 100, k)
                yield f"{x_data} x {w_data}, K = {k}", x, stored(w, k > 128).transpose(1, 2)


def special() -> Iterator[Case]:
    for value in (NAN, INF, -INF, 3.4e38):
        for k in (64, 320):
            x, w = normal(3, 150, k), normal(3, k, 90)
            x[1, 77, k // 2] = value
            yield f"{value} in x, K = {k}", x, w
            for x in (normal(3, 150, k), zero_rows(3, 150, k)):
                w = normal(3, k, 90)
                w[2, k - 1, 33] = value
                yield f"{value} in w, K = {k}", x, w


def wrong(x: Tensor, w: Tensor) -> str | None:
    """What is wrong with the product, by the contract of docs/numerics.md."""
    shape = (x.shape[0], x.shape[1], w.shape[2])
    poisoned = [torch.full(shape, NAN, device="cuda") for _ in range(3)]
    del poisoned
    got, again = torch.ops.fusepass.bmm(x, w), torch.ops.fusepass.bmm(x, w)
    eager, exact = torch.bmm(x, w), x.double() @ w.double()
    if not torch.equal(got.view(torch.int32), again.view(torch.int32)):
        return "two calls differ"
    size = x.double().abs() @ w.double().abs()
    # Beyond, sums may overflow on their way, as their order will have it.
    told = ~((size > 1e38) & size.isfinite())
    for kind in (torch.isnan, torch.isinf):
        if not torch.equal(kind(got)[told], kind(eager)[told]):
            return "NaN or infinities elsewhere than eager's"
    finite = told & eager.isfinite() & size.isfinite() & (size > 0)

    def errors(out: Tensor) -> tuple[float, float]:
        error, of = (out.double() - exact)[finite], size[finite]
        if not error.numel():
            return 0.0, 0.0
        # What float32 has only as a subnormal is rounded by more than a share of it.
        largest = ((error.abs() - 2.0**-149).clamp_min(0) / of).max()
        return float(largest), float(error.norm() / of.norm())

    for ours, theirs, what in zip(errors(got), errors(eager), ("largest", "norm"), strict=True):
        if ours > max(theirs, 2.0**-24):
            return f"{what} error {ours:.3e}, eager's {theirs:.3e}"
    return None


def main() -> int:
    assert torch.get_float32_matmul_precision() == "highest"
    plan_bmm.chosen = lambda *args: True  # type: ignore[assignment]  # whatever the plan thinks of it
    torch.manual_seed(0)
    failures = 0
    for name, x, w in itertools.chain(orders(), special(), data()):
        reason = wrong(x, w)
        if reason is not None:
            failures += 1
            print(f"{name}: {reason}", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
