"""A launch of one kernel, told to the op as its plan's answer, held against float64.

Shapes have edges in every direction; operands and results lie among NaN.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from epilogues import error
from forced_gemm import bias_of, guarded, poison, stored
from operand_cases import operands_for
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue, kernels
from fusepass.ir import DType
from fusepass.ir.emit import emit
from fusepass.kernels.build.build import build_cubin
from fusepass.kernels.plan import f32, few, several
from fusepass.op.arguments import num_weights

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
NAMES = {BF16: "bf16", F16: "f16", F32: "f32"}
SPLIT = "sm90_f32/gemm_sm90_f32.cu"
_MOST = {BF16: 2e-2, F16: 4e-3, F32: 2e-6}  # relative Frobenius error


@dataclass(frozen=True)
class Gemm:
    """One build of a kernel with an epilogue, and the problem that it is given.

    Attributes:
        family: of kernels.
        config: its text form.
        source: the file that it is a build of.
        defines: the macros of the build.
        text: the epilogue, without z where that is stored besides.
        dtype: of x.
        shape: m, n and k; n is each weight's.
        orders: whether w is stored [k, n], and x [k, m].
        preact: whether z is stored besides.
        kernel: its name.
        hostile: whether some rows of x are such that float32's split cannot hold them.
        tf32: whether float32 may be rounded to TF32.
        table: columns of the matrices that it reads, where they are not n.
    """

    not_under: ClassVar[tuple[str, ...]] = ()
    family: str
    config: str
    source: str
    defines: dict[str, object]
    text: str
    dtype: torch.dtype
    shape: tuple[int, int, int]
    orders: tuple[bool, bool] = (False, False)
    preact: bool = False
    kernel: str = "fusepass_gemm"
    hostile: bool = False
    tf32: bool = False
    table: int = 0

    def __str__(self) -> str:
        m, n, k = self.shape
        what = f"{self.whole or 'bare'}, {NAMES[self.dtype]}, {_order(self.orders)}, {m}x{k}->{n}"
        return f"{self.family}: {self.config}, {what}{', hostile' * self.hostile}"

    @property
    def whole(self) -> str:
        return f"{self.text or 'z'}, z" if self.preact else self.text

    def build(self) -> str:
        """The plan's answer, built; SpillError where the plan would take another."""
        include = emit(Epilogue.parse(self.text), DType(NAMES[self.dtype]))
        if self.source == SPLIT:
            f32.split_cubin("90a")
        return (
            f"{self.config}|{build_cubin(self.source, self.defines, '90a', include)}|{self.kernel}"
        )

    def run(self) -> float:
        """The largest error of an output relative to what is allowed."""
        answer, asked = self.build(), list[Any]()
        with _planned(lambda *problem: asked.append(problem) or answer):
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            worst = self._error()
        assert len(asked) == 1, f"the plan was asked {len(asked)} times"
        return worst

    def _error(self) -> float:
        rng, (m, n, k) = random.Random(str(self)), self.shape
        program = Epilogue.parse(self.whole)
        x = stored(m, k, self.orders[1], self.dtype, rng)
        if self.hostile:
            x[: m // 2] *= torch.exp2(8 * torch.randn(m // 2, k, device=x.device)).to(x.dtype)
            x[m // 2 : m // 2 + 9, 2:] = 0  # rows of a few elements
        ws = [stored(n, k, self.orders[0], self.dtype, rng) for _ in range(num_weights(program))]
        for w in ws:
            w *= k**-0.5
        bs = [bias_of(n, self.dtype) if i == 0 else None for i in range(len(ws))]
        operands = operands_of(program, self.dtype, (m, n), rng, self.table)
        poison(m, n, self.dtype)
        outs = torch.ops.fusepass.gemm(x, ws, bs, self.whole, operands)
        torch.cuda.synchronize()
        zs = [_product(x, w, b) for w, b in zip(ws, bs, strict=True)]
        most = 2e-3 if self.tf32 else _MOST[self.dtype]
        if not (self.hostile and self.preact):
            return _worst(outs, program, zs, operands, most)
        # Where huge terms cancel, a clamp shows all of the rounding of z, eager's as well: so z is
        # held against float64, and the epilogue against what it makes of that z.
        stored_z = outs[-1].cpu().double()
        return max(error(stored_z, zs[0]) / most, _worst(outs, program, [stored_z], operands, most))


def _order(orders: tuple[bool, bool]) -> str:
    return f"{'[K, N]' if orders[0] else '[N, K]'}{', x [K, M]' * orders[1]}"


def operands_of(
    program: Epilogue, dtype: torch.dtype, shape: tuple[int, int], rng: random.Random, table: int
) -> list[Tensor]:
    """As the program reads them; matrices, if there is a ``table``, of so many columns."""
    if not table:
        return operands_for(program, dtype, *shape, rng)
    return [guarded(shape[0], table, dtype, rng) for _ in program.operands]


def _product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """On the CPU, where the sanitizer slows nothing."""
    z = x.cpu().double() @ w.cpu().double().t()
    return z if b is None else z + b.cpu().double()


def _worst(
    outs: list[Tensor], program: Epilogue, zs: list[Tensor], operands: list[Tensor], most: float
) -> float:
    """The largest error of an output, over ``most``; NaN counts as infinite."""
    z1 = zs[1] if len(zs) > 1 else None
    exact = program.reference(zs[0], *(o.cpu().double() for o in operands), z1=z1)
    exact = exact if isinstance(exact, tuple) else (exact,)
    outs = [o.cpu() for o in outs]
    assert all(bool(o.isfinite().all()) for o in outs), "what should be finite is not"
    return max(error(o, e) / most for o, e in zip(outs, exact, strict=True))


class _planned:
    """The op asks ``answer`` for its plans, ``linears`` as every other."""

    def __init__(self, answer: Callable[..., str]) -> None:
        self.answer, self.asked = answer, (kernels.plan_kernel, kernels.plan_linears)

    def __enter__(self) -> None:
        kernels.plan_kernel = kernels.plan_linears = self.answer
        torch.ops.fusepass._forget_plans()

    def __exit__(self, *_: object) -> None:
        kernels.plan_kernel, kernels.plan_linears = self.asked
        torch.ops.fusepass._forget_plans()


@dataclass(frozen=True)
class Several:
    """One build of a 16-bit kernel for several weights, and the problem that it is given.

    Attributes:
        config: of the plan.
        dtype: of x.
        shape: m, n of each weight, and k.
        orders: whether the weights are stored [k, n], and x [k, m].
    """

    not_under: ClassVar[tuple[str, ...]] = ()
    config: several.Config | few.Config
    dtype: torch.dtype
    shape: tuple[int, tuple[int, ...], int]
    orders: tuple[bool, bool]

    def __str__(self) -> str:
        m, widths, k = self.shape
        shape = f"{m}x{k}->{'+'.join(map(str, widths))}"
        what = f"{NAMES[self.dtype]}, {_order(self.orders)}, {shape}"
        return f"several weights: {self.config}, {what}"

    def build(self) -> str:
        """The plan's answer, built."""
        config, bf16 = self.config, self.dtype == BF16
        include = emit(Epilogue(), DType(NAMES[self.dtype]))
        if isinstance(config, few.Config):
            macros = config.defines(bf16, several=True)
            cubin = build_cubin(config.source, macros, "90a", include)
            return f"{config}|{cubin}|fusepass_few_rows"
        macros = several.defines(config, bf16, *self.orders)
        cubin = build_cubin("sm90/gemm_sm90.cu", macros, "90a", include)
        return f"{config}|{cubin}|fusepass_gemm"

    def run(self) -> float:
        """The largest error of a result relative to what is allowed."""
        answer, asked = self.build(), list[Any]()
        with _planned(lambda *problem: asked.append(problem) or answer):
            worst = self._error()
        assert len(asked) == 1, f"the plan was asked {len(asked)} times"
        return worst

    def _error(self) -> float:
        rng, (m, widths, k) = random.Random(str(self)), self.shape
        x = stored(m, k, self.orders[1], self.dtype, rng)
        ws = [stored(n, k, self.orders[0], self.dtype, rng) for n in widths]
        for w in ws:
            w *= k**-0.5
        bs = [bias_of(n, self.dtype) if i != 1 else None for i, n in enumerate(widths)]
        poison(m, max(widths), self.dtype)
        outs = torch.ops.fusepass.linears(x, ws, bs)
        torch.cuda.synchronize()
        zs = [_product(x, w, b) for w, b in zip(ws, bs, strict=True)]
        assert all(bool(o.isfinite().all()) for o in outs), "what should be finite is not"
        return max(error(o.cpu(), z) / _MOST[self.dtype] for o, z in zip(outs, zs, strict=True))


@dataclass(frozen=True)
class Pointwise:
    """What follows torch's own GEMM: one kernel of elements in a row, or one of tiles."""

    not_under: ClassVar[tuple[str, ...]] = ()
    text: str
    dtype: torch.dtype
    numerics: str = "accurate"
    n: int = 147
    table: int = 0

    def __str__(self) -> str:
        return f"pointwise: {self.text}, {self.dtype}, {self.numerics}"

    def build(self) -> None:
        """With the first call."""

    def run(self) -> float:
        # Of an odd K: racecheck failed in products of torch whose rows are whole 16 bytes.
        rng, m, n, k = random.Random(0), 133, self.n, 71
        program = Epilogue.parse(self.text)
        x, w = (torch.randn(rows, k, device="cuda").to(self.dtype) for rows in (m, n))
        ws = [w, w.clone()][: num_weights(program)]
        operands = operands_of(program, self.dtype, (m, n), rng, self.table)
        with _planned(lambda *problem: "hybrid"):
            call = torch.ops.fusepass.gemm
            outs = call(x, ws, [None] * len(ws), self.text, operands, numerics=self.numerics)
        torch.cuda.synchronize()
        zs = [torch.nn.functional.linear(x, w).cpu().double() for w in ws]
        most = {torch.float64: 1e-12, F32: 1e-5}.get(self.dtype, 3e-2)
        return _worst(outs, program, zs, operands, most)


@dataclass(frozen=True)
class InParts:
    """float32 in parts of rows whose pieces lie in the output or, with ``over_x``, in x itself.

    As long as pieces must be for that: their kernels are others' too, and racecheck, which
    knows of shared memory alone, would take minutes.
    """

    not_under: ClassVar[tuple[str, ...]] = ("racecheck",)
    shape: tuple[int, int, int]
    orders: tuple[bool, bool]
    over_x: bool = False

    def __str__(self) -> str:
        m, n, k = self.shape
        where = "over x" if self.over_x else "in the output"
        return f"float32 in parts: {where}, {_order(self.orders)}, {m}x{k}->{n}"

    def build(self) -> str:
        """The plan's answer, built."""
        config = f32.TILES[0].config(self.shape[0])
        f32.split_cubin("90a")
        macros = f32.defines(config, False, *self.orders)
        cubin = build_cubin(SPLIT, macros, "90a", emit(Epilogue.parse(""), DType.F32))
        return f"{config}|{cubin}|fusepass_gemm"

    def run(self) -> float:
        """0 if it is the product in one piece, bit for bit."""
        (m, n, k), answer = self.shape, self.build()
        kn, km = self.orders
        rng, ops = random.Random(str(self)), torch.ops.fusepass
        x, w = stored(m, k, km, F32, rng), stored(n, k, kn, F32, rng)
        if self.over_x:
            x = x.clone(memory_format=torch.preserve_format)
        with _planned(lambda *problem: answer):
            torch.set_float32_matmul_precision("highest")
            whole = ops.linear.split(x, w, None, "", [], ops.split(x), ops.split(w))
            poison(m, n, F32)
            out = (ops.linear.consuming if self.over_x else ops.linear)(x, w, None, "", [])
            torch.cuda.synchronize()
        return 0.0 if bool(whole.isfinite().all()) and torch.equal(out, whole) else float("inf")
