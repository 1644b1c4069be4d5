"""Accuracy of float32: fusepass and eager against float64, on easy and on hostile data.

    python benchmarks/accuracy.py --json FILE                # the forward, a line a problem
    python benchmarks/accuracy.py --gradients --json FILE    # gradients of x and of w

Two figures for each: the relative Frobenius error of z = x w^T + b, and the largest elementwise
error relative to |x| |w|^T + |b|; and whether docs/numerics.md is kept. Of data that is not finite
the pattern is compared with eager's. A gradient is autograd's of a compiled Linear: of x over the
Linear's outputs, of w over the tokens.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accuracy_data import CASES, NOT_FINITE
from torch import Tensor

# How the tables' first columns begin.
HEAD = "float32, fusepass / eager"
GRADIENTS_HEAD = "float32 gradients, fusepass / eager"


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


FORWARD, OF_X, OF_W = "forward", "gradient of x", "gradient of w"
# How the operands x [m, k] and w [n, k] of a product lie in memory, as [k, m] and [k, n] or not,
# and m and n: 768 is the width of models whose weight gradients have few tiles and a long K.
PRODUCTS = {FORWARD: (False, False), OF_X: (False, True), OF_W: (True, True)}
ROWS = {FORWARD: 2048, OF_X: 2048, OF_W: 768}
KS = {FORWARD: (64, 256, 1024, 4096, 32768), OF_X: (1024, 8192, 65536), OF_W: (1024, 8192, 65536)}
GRADIENTS = (OF_X, OF_W)
_CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"

Linear = Callable[[Tensor, Tensor], Tensor]


def measure(
    shape: tuple[int, int, int], name: str, product: str = FORWARD, device: str = "cuda"
) -> dict[str, Any]:
    """One line of a table, from data drawn on the GPU.

    Args:
        shape: m, n and k, the length of the sums: features of a forward, the Linear's outputs of a
            gradient of x, tokens of a gradient of w.
        name: of the data.
        product: one of ``PRODUCTS``.
        device: "cpu" where nothing but this function is to be tried.
    """
    from fusepass.kernels import fuses

    m, n, k = shape
    torch.manual_seed(k)
    with torch.device(device):
        x, w, b = {**CASES, **NOT_FINITE}[name](m, n, k)
    x_is_km, w_is_kn = PRODUCTS[product]
    bare = product != FORWARD
    if bare:
        b = torch.zeros_like(b)
        fused = gradient(_compiled(), x, w, product)
        eager = gradient(torch.nn.functional.linear, x, w, product)
    else:
        fused = torch.ops.fusepass.linear_with_preact(x, w, b, _CHAIN, [])[1]
        eager = torch.nn.functional.linear(x, w, b)
    split = fuses(x.device, x.dtype, m, n, k, w_is_kn, x_is_km, bare)
    row: dict[str, Any] = {"data": name, "k": k, "gemm": "split" if split else "cuBLAS"}
    row |= {"product": product, "m": m, "n": n}
    if name in NOT_FINITE:
        return row | {"same_pattern": same_pattern(fused, eager)}
    row |= {"fusepass": errors(fused, x, w, b), "eager": errors(eager, x, w, b)}
    return row | {"kept": within_contract(fused, eager, x, w, b)}


@functools.cache
def _compiled() -> Linear:
    """F.linear as a compiled model's joint graph has it: its backward's products are sites."""
    return torch.compile(_linear, backend="fusepass", dynamic=False)


def _linear(x: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, w)


def gradient(linear: Linear, x: Tensor, w: Tensor, product: str) -> Tensor:
    """x w^T as autograd's gradient of a Linear, of the input or of the weight, [m, n].

    Of the input, x is the output's gradient [tokens, outputs] and w^T the weight; of the weight,
    x^T is the output's gradient [tokens, outputs] and w^T the input.
    """
    leaf = torch.zeros(x.shape[0], w.shape[0], device=x.device, requires_grad=True)
    other = w.t().contiguous()
    if product == OF_X:
        out, grad = linear(leaf, other), x
    else:
        out, grad = linear(other, leaf), x.t().contiguous()
    return torch.autograd.grad(out, leaf, grad)[0]


def is_kept(row: dict[str, Any]) -> bool:
    """Whether docs/numerics.md is kept, of data that is not finite: whether the patterns agree."""
    return bool(row["same_pattern" if "same_pattern" in row else "kept"])


def line(row: dict[str, Any]) -> str:
    """A line for the terminal."""
    head = f"{row['data']:32}{row['k']:6} {row['gemm']:7}"
    head += f" {row['product']}" if row["product"] != FORWARD else ""
    if "same_pattern" in row:
        return f"{head} same pattern: {row['same_pattern']}"
    ours, eager = row["fusepass"], row["eager"]
    figures = "  ".join(f"{fro:9.1e}{largest:9.1e}" for fro, largest in (ours, eager))
    ratios = ", ".join(f"{a / b:.4f}" for a, b in zip(ours, eager, strict=True) if a > b > 0)
    return f"{head} {figures}" + ("" if is_kept(row) else f"  NOT KEPT; over eager's: {ratios}")


def table(report: Mapping[str, Any], ks: Sequence[int], products: Sequence[str] = ()) -> str:
    """A Markdown table: Frobenius error and largest, each of fusepass and eager, by data and K.

    Args:
        report: what ``run`` wrote.
        ks: of the columns.
        products: gradients, each with all of ``ks``; by default the forward.
    """
    found = {(r["data"], r.get("product", FORWARD), r["k"]): r for r in report["rows"]}
    columns = list(itertools.product(products or (FORWARD,), ks))
    heads = [f"{product}, K = {k}" if products else f"K = {k}" for product, k in columns]
    lines = [f"| {GRADIENTS_HEAD if products else HEAD} | {' | '.join(heads)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in (n for n in CASES if all((n, *c) in found for c in columns)):
        cells = (_cell(found[(name, *column)]) for column in columns)
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

    import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

    cuda = options.device == "cuda"
    if cuda:
        _build(options)
    print(f"{'data':32}{'K':>6} {'GEMM':7} {'fusepass':>18}  {'eager':>18}  (Frobenius, largest)")
    rows: list[dict[str, Any]] = []
    report = {
        "machine": torch.cuda.get_device_name() if cuda else options.device,
        "driver": driver(),
        "torch": torch.__version__,
        "commit": options.commit or commit(),
        "protocol": "z = x w^T + b, or a compiled Linear's gradient, against float64; (relative "
        "Frobenius error, largest elementwise error over |x| |w|^T + |b|); kept: whether "
        "docs/numerics.md is; seed K, drawn on the device",
        "rows": rows,
    }
    for product, name in itertools.product(options.products, (*CASES, *NOT_FINITE)):
        for k in options.k or KS[product]:
            m = options.rows or ROWS[product]
            rows.append(measure((m, m, k), name, product, options.device))
            print(line(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(rows)} problems, docs/numerics.md not kept in {sum(not is_kept(r) for r in rows)}")


def _build(options: argparse.Namespace) -> None:
    """All kernels at once, so that they are there when they are asked for."""
    from fusepass.kernels import plan_kernel

    with ThreadPoolExecutor() as pool:
        for product in options.products:
            (x_is_km, w_is_kn), chain = PRODUCTS[product], _CHAIN if product == FORWARD else ""
            m = options.rows or ROWS[product]
            for k in options.k or KS[product]:
                kept = bool(chain)  # z, beside the result
                pool.submit(plan_kernel, chain, 0, m, m, k, w_is_kn, kept, x_is_km, 0, 0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gradients", action="store_true", help="those of x and of w, instead of the forward")
    add("--k", type=int, nargs="+", help="instead of the usual ones")
    add("--rows", type=int, help="M and N, instead of the usual ones")
    add("--device", default="cuda")
    add("--json", type=Path, help="keep the figures in this file")
    add("--commit", help="for that file, where git does not know")
    add("--table", type=Path, help="measure nothing: print this file's table")
    options = parser.parse_args(argv)
    options.products = GRADIENTS if options.gradients else (FORWARD,)
    if not options.table:
        return run(options)
    products, ks = GRADIENTS if options.gradients else (), options.k or KS[options.products[0]]
    print(table(json.loads(options.table.read_text()), ks, products), end="")


if __name__ == "__main__":
    main()
