"""Accuracy of float32: fusepass and eager against float64, on easy and on hostile data.

    python benchmarks/accuracy.py            # on a GPU; prints a table, --json FILE keeps it

Two figures for each: the relative Frobenius error of z = x w^T + b, and the largest elementwise
error relative to |x| |w|^T + |b|. Data whose exact result leaves float32's range is left out of
both; that its non-finite pattern is eager's is a test's business.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Problem = tuple[Tensor, Tensor, Tensor]  # x [m, k], w [n, k], b [n], float32 on the CPU
Case = Callable[[int, int, int], Problem]


def _uniform(m: int, n: int, k: int) -> Problem:
    return torch.rand(m, k), torch.rand(n, k), torch.rand(n)


def _normal(m: int, n: int, k: int) -> Problem:
    return torch.randn(m, k), torch.randn(n, k), torch.randn(n)


def _large_mean(m: int, n: int, k: int) -> Problem:
    return torch.rand(m, k) + 1000, torch.rand(n, k) + 1000, torch.rand(n)


def _log_normal(m: int, n: int, k: int) -> Problem:
    def draw(rows: int) -> Tensor:  # ±3 standard deviations span 40 binades
        signs = torch.randint(0, 2, (rows, k)) * 2.0 - 1
        return signs * torch.exp2(torch.randn(rows, k) * (40 / 6))

    return draw(m), draw(n), torch.randn(n)


def _row_outlier(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    x[torch.arange(m), torch.randint(0, k, (m,))] = 1e6
    return x, w, b


def _aligned(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    x[:, k // 3] *= 1e6
    w[:, k // 3] *= 1e6
    return x, w, b


def _anti_aligned(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    x[:, k // 3] *= 1e6
    w[:, k // 3] *= 1e-6
    w[:, k // 2] *= 1e6
    x[:, k // 2] *= 1e-6
    return x, w, b


def _cancellation(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    half = k // 2
    x[:, half : 2 * half] = -x[:, :half]
    w[:, half : 2 * half] = w[:, :half] * (1 + 2.0**-12 * torch.rand(n, half))
    return x, w, b * 1e-3


def _one_hot(m: int, n: int, k: int) -> Problem:
    _, w, b = _normal(m, n, k)
    return torch.nn.functional.one_hot(torch.arange(m) % k, k).float(), w, b


def _scaled(power: float) -> Case:
    def case(m: int, n: int, k: int) -> Problem:
        x, w, b = _normal(m, n, k)
        return x * power, w, b * power

    return case


def _subnormal(m: int, n: int, k: int) -> Problem:
    x, w, b = _normal(m, n, k)
    return x * 1e-40, w, b * 1e-40


def _integers(m: int, n: int, k: int) -> Problem:
    def draw(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape).float()

    return draw(m, k), draw(n, k), draw(n)


CASES: dict[str, Case] = {
    "uniform(0, 1)": _uniform,
    "normal": _normal,
    "uniform, mean 1000": _large_mean,
    "log-normal, 40 binades": _log_normal,
    "one 1e6 in each row": _row_outlier,
    "outlier columns, aligned": _aligned,
    "outlier columns, anti-aligned": _anti_aligned,
    "cancellation": _cancellation,
    "one-hot rows": _one_hot,
    "near 1e-30": _scaled(1e-30),
    "subnormal": _subnormal,
    "near 1e30": _scaled(1e30),
    "small integers": _integers,
}


def errors(z: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[float, float]:
    """(relative Frobenius, largest relative to |x| |w|^T + |b|) of float32 ``z``."""
    x, w, b = x.double(), w.double(), b.double()
    exact = x @ w.T + b
    wrong = (z.double() - exact).abs()
    size = x.abs() @ w.abs().T + b.abs()
    # Below the normal range the last place is absolute: no float32 result can do better.
    wrong = (wrong - 2.0**-149).clamp(min=0)
    # Scaled to 1 before squaring: 1e-40 squared is no double's business, but 1e30 to the 4th is.
    top = exact.abs().max()
    frobenius = (wrong / top).norm() / (exact / top).norm()
    return frobenius.item(), (wrong / size.clamp(min=2.0**-149)).max().item()


def _measure(m: int, n: int, k: int, case: Case) -> dict[str, tuple[float, float]]:
    import fusepass.op  # noqa: F401  (defines torch.ops.fusepass)

    torch.manual_seed(k)
    x, w, b = (t.cuda() for t in case(m, n, k))
    fused = torch.ops.fusepass.linear_with_preact(x, w, b, "mul(0.5) clamp(-2.0, 2.0) gelu", [])[1]
    eager = torch.nn.functional.linear(x, w, b)
    return {"fusepass": errors(fused, x, w, b), "eager": errors(eager, x, w, b)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[64, 256, 1024, 4096, 32768])
    parser.add_argument("--rows", type=int, default=1024, help="M and N")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args(argv)
    results = []
    print(f"{'data':32}{'K':>6}  {'fusepass':>18}  {'eager':>18}  (Frobenius, largest)")
    for name, case in CASES.items():
        for k in arguments.k:
            row = _measure(arguments.rows, arguments.rows, k, case)
            results.append({"data": name, "k": k, **row})
            cells = "  ".join(f"{row[p][0]:9.1e}{row[p][1]:9.1e}" for p in ("fusepass", "eager"))
            print(f"{name:32}{k:6}  {cells}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
