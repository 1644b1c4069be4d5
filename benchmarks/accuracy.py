"""Accuracy of float32: fusepass and eager against float64, on easy and on hostile data.

    python benchmarks/accuracy.py --json FILE     # on a GPU; prints a line a problem
    python benchmarks/accuracy.py --table FILE    # the table of such a file, in Markdown

Two figures for each: the relative Frobenius error of z = x w^T + b, and the largest elementwise
error relative to |x| |w|^T + |b|; and whether docs/numerics.md is kept. Of data that is not finite
the pattern is compared with eager's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Problem = tuple[Tensor, Tensor, Tensor]  # float32 x [m, k], w [n, k], b [n]
Case = Callable[[int, int, int], Problem]

HEAD = "float32, fusepass / eager"  # of the table's first column


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


def _pairs(m: int, n: int, k: int) -> Problem:
    """Neighbours that cancel to 1e-6: what is left of |x| |w|^T is less than its rounding."""
    x, w, b = _normal(m, n, k)
    half = k // 2 * 2
    x[:, 1:half:2] = -x[:, :half:2] * (1 + 1e-6)
    w[:, 1:half:2] = w[:, :half:2]
    return x, w, b * 1e-6


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
    "cancellation in pairs": _pairs,
    "one-hot rows": _one_hot,
    "near 1e-30": _scaled(1e-30),
    "subnormal": _subnormal,
    "near 1e30": _scaled(1e30),
    "small integers": _integers,
}


def _not_finite(*where: int) -> Case:
    def case(m: int, n: int, k: int) -> Problem:
        tensors = _normal(m, n, k)
        tensors[1][5] = 0  # inf * 0 is NaN
        for i in where:
            flat = tensors[i].flatten()
            at = torch.randint(0, flat.numel(), (6,))
            flat[at] = torch.tensor([float("nan"), float("inf"), -float("inf")] * 2)
        return tensors

    return case


NOT_FINITE: dict[str, Case] = {
    "NaN and inf in x": _not_finite(0),
    "NaN and inf in W": _not_finite(1),
    "NaN and inf in b": _not_finite(2),
    "NaN and inf in all": _not_finite(0, 1, 2),
}


def same_pattern(a: Tensor, b: Tensor) -> bool:
    """Whether NaN and both infinities stand at the same places."""
    signs = [torch.where(t.isinf(), t.sign(), 0.0) for t in (a, b)]
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(*signs)


def errors(z: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[float, float]:
    """(relative Frobenius, largest relative to |x| |w|^T + |b|) of float32 ``z``."""
    wrong, exact, size = _wrong(z, x, w, b)
    return _frobenius(wrong, exact), _largest(wrong, size)


def within_contract(z: Tensor, eager: Tensor, x: Tensor, w: Tensor, b: Tensor) -> bool:
    """Whether ``z`` keeps what docs/numerics.md says of float32 "highest".

    Relative to |x| |w|^T + |b|, the largest error and the Frobenius norm of all errors are at most
    eager's, or 2^-24 where eager's are less.
    """
    figures = []
    for each in (z, eager):
        wrong, _, size = _wrong(each, x, w, b)
        figures.append((_frobenius(wrong, size), _largest(wrong, size)))
    return all(ours <= max(theirs, 2.0**-24) for ours, theirs in zip(*figures, strict=True))


def _wrong(z: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By element: the error of ``z``, the exact value, and |x| |w|^T + |b|; float64."""
    x, w, b = x.double(), w.double(), b.double()
    exact = x @ w.T + b
    # Below the normal range the last place is absolute: no float32 result can do better.
    wrong = ((z.double() - exact).abs() - 2.0**-149).clamp(min=0)
    return wrong, exact, x.abs() @ w.abs().T + b.abs()


def _frobenius(wrong: Tensor, size: Tensor) -> float:
    # Scaled to 1 before squaring: 1e-40 squared is no double's business, but 1e30 to the 4th is.
    top = size.abs().max()
    return ((wrong / top).norm() / (size / top).norm()).item()


def _largest(wrong: Tensor, size: Tensor) -> float:
    return (wrong / size.clamp(min=2.0**-149)).max().item()


# How x and w lie in memory, as [K, M] and [K, N] or not; gradients have no bias and no epilogue.
PRODUCTS = {"forward": (False, False), "x gradient": (False, True), "w gradient": (True, True)}


def measure(shape: tuple[int, int, int], name: str, product: str = "forward") -> dict[str, Any]:
    """One line of the table, from data drawn on the GPU."""
    import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
    from fusepass.kernels import fuses

    m, n, k = shape
    torch.manual_seed(k)
    with torch.device("cuda"):
        x, w, b = {**CASES, **NOT_FINITE}[name](m, n, k)
    x_is_km, w_is_kn = PRODUCTS[product]
    bare = product != "forward"
    x = x.t().contiguous().t() if x_is_km else x
    w = w.t().contiguous().t() if w_is_kn else w
    if bare:
        b = torch.zeros_like(b)
        fused, eager = torch.ops.fusepass.linear(x, w, None, "", []), x @ w.t()
    else:
        chain = "mul(0.5) clamp(-2.0, 2.0) gelu"
        fused = torch.ops.fusepass.linear_with_preact(x, w, b, chain, [])[1]
        eager = torch.nn.functional.linear(x, w, b)
    split = fuses(x.device, x.dtype, m, n, k, w_is_kn, x_is_km, bare)
    row: dict[str, Any] = {"data": name, "k": k, "gemm": "split" if split else "cuBLAS"}
    row["product"] = product
    if name in NOT_FINITE:
        return row | {"same_pattern": same_pattern(fused, eager)}
    row |= {"fusepass": errors(fused, x, w, b), "eager": errors(eager, x, w, b)}
    return row | {"kept": within_contract(fused, eager, x, w, b)}


def is_kept(row: dict[str, Any]) -> bool:
    """Whether docs/numerics.md is kept, of data that is not finite: whether the patterns agree."""
    return bool(row["same_pattern" if "same_pattern" in row else "kept"])


def line(row: dict[str, Any]) -> str:
    """A line for the terminal."""
    head = f"{row['data']:32}{row['k']:6} {row['gemm']:7}"
    if "same_pattern" in row:
        return f"{head} same pattern: {row['same_pattern']}"
    ours, eager = row["fusepass"], row["eager"]
    figures = "  ".join(f"{fro:9.1e}{largest:9.1e}" for fro, largest in (ours, eager))
    ratios = ", ".join(f"{a / b:.4f}" for a, b in zip(ours, eager, strict=True) if a > b > 0)
    return f"{head} {figures}" + ("" if is_kept(row) else f"  NOT KEPT; over eager's: {ratios}")


def table(report: Mapping[str, Any], ks: Sequence[int]) -> str:
    """A Markdown table: Frobenius error and largest, each of fusepass and eager, by data and K."""
    found = {(r["data"], r["k"]): r for r in report["rows"]}
    lines = [f"| {HEAD} | {' | '.join(f'K = {k}' for k in ks)} |", "|---" * (len(ks) + 1) + "|"]
    for name in (n for n in CASES if all((n, k) in found for k in ks)):
        cells = (_cell(found[name, k]) for k in ks)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    def short(v: float) -> str:
        return f"{v:.1e}".replace("e-0", "e-") if v else "0"

    pairs = zip(row["fusepass"], row["eager"], strict=True)
    return "; ".join(f"{short(ours)} / {short(eager)}" for ours, eager in pairs)


def run(options: argparse.Namespace) -> None:
    """Measures; prints and writes as it goes."""
    from linear import commit, driver

    print(f"{'data':32}{'K':>6} {'GEMM':7} {'fusepass':>18}  {'eager':>18}  (Frobenius, largest)")
    rows: list[dict[str, Any]] = []
    report = {
        **{"machine": torch.cuda.get_device_name(), "driver": driver()},
        **{"torch": torch.__version__, "commit": options.commit or commit()},
        **{"m": options.rows, "n": options.rows},
        "protocol": "z = x w^T + b against float64; (relative Frobenius error, largest elementwise "
        "error over |x| |w|^T + |b|); kept: whether docs/numerics.md is; seed K, drawn on the GPU",
        "rows": rows,
    }
    for name in (*CASES, *NOT_FINITE):
        for k in options.k:
            rows.append(measure((options.rows, options.rows, k), name, options.product))
            print(line(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(rows)} problems, docs/numerics.md not kept in {sum(not is_kept(r) for r in rows)}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[64, 256, 1024, 4096, 32768])
    parser.add_argument("--product", choices=list(PRODUCTS), default="forward")
    parser.add_argument("--rows", type=int, default=2048, help="M and N")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--commit", help="for that file, where git does not know")
    parser.add_argument("--table", type=Path, help="measure nothing: print this file's table")
    options = parser.parse_args(argv)
    if not options.table:
        return run(options)
    print(table(json.loads(options.table.read_text()), options.k), end="")


if __name__ == "__main__":
    main()
