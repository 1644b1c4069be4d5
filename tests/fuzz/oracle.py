"""Whether the rewritten graph of a program computes what the program computes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table

from fusepass.rewrite import decision
from fusepass.rewrite.graph_pass import run

from .exact import Exact
from .noise import Rounding
from .programs import DIM, Program

_DECOMPOSITIONS = select_decomp_table()
_SAMPLES = 8  # of a program that rounds at random


@dataclass
class Outcome:
    """What became of a program: how many sites, and what is wrong with the result, if anything."""

    sites: int
    problem: str | None = None


def compiled(
    function: Callable[..., Any], numerics: str | None, sites: list[int]
) -> Callable[..., Any]:
    """``function`` as its ATen graphs, with the pass if ``numerics`` says which."""

    def apply(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
        if numerics is not None:
            with mock.patch.object(decision, "_SUMS_ON_THE_CPU", None):  # they have numbers there
                sites.append(len(run(gm.graph, numerics).sites))
            gm.graph.lint()
            gm.recompile()
        return gm

    def partition(gm: torch.fx.GraphModule, inputs: Any, **keywords: Any) -> Any:
        return min_cut_rematerialization_partition(apply(gm), inputs, **keywords)

    return aot_function(  # type: ignore[no-any-return]
        function,
        fw_compiler=lambda gm, _: make_boxed_func(gm.forward),
        bw_compiler=lambda gm, _: make_boxed_func(gm.forward),
        inference_compiler=lambda gm, _: make_boxed_func(apply(gm).forward),
        partition_fn=partition,
        decompositions=_DECOMPOSITIONS,
    )


def inputs(dtype: torch.dtype, seed: int, special: bool, device: str) -> list[Tensor]:
    """x, w, v, b, g, s; ``special``: NaN, infinities and large numbers in x."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, DIM), (DIM, DIM), (DIM, DIM), (DIM,), (DIM,), ())
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    if special:
        large = min(torch.finfo(dtype).max / 64, 1e30)
        for row, value in enumerate((float("nan"), float("inf"), -float("inf"), large)):
            made[0].view(-1, DIM)[row, row] = value
    return [value.to(device) for value in made]


def results(function: Callable[..., Any], args: Sequence[Tensor], grads: bool) -> list[Tensor]:
    """What ``function`` returns, and with ``grads`` the gradients of its ``args`` behind it."""
    leaves = [a.clone().requires_grad_(grads) for a in args]
    with torch.set_grad_enabled(grads):
        outs = list(function(*leaves))
    if not grads:
        return outs
    wanted = [o for o in outs if o.requires_grad and o.is_floating_point()]
    if not wanted:
        return [o.detach() for o in outs]
    generator = torch.Generator().manual_seed(1)
    # Numbers of every dtype: a wider run of the program gets the same.
    draw = functools.partial(torch.randint, -16, 17, generator=generator)
    cotangents = [(draw(o.shape) / 8).to(o) for o in wanted]
    found = torch.autograd.grad(wanted, leaves, cotangents, allow_unused=True)
    return [o.detach() for o in outs] + [g for g in found if g is not None]


def _differs(
    found: Tensor, values: Sequence[Tensor], dtype: torch.dtype, samples: int
) -> str | None:
    """Where ``found`` is none of what the program may give; element by element.

    Args:
        values: eager's result, and those of the same program in wider types, without cancellation,
            or decomposed. A value is right if it is one of them but for a few roundings of what the
            result's size is.
        dtype: the program's, in which values are rounded that are then cast to a wider one.
        samples: how many of the last ``values`` are of a program that rounds at random.
    """
    plain = values[0]
    if (found.dtype, found.shape) != (plain.dtype, plain.shape):
        return f"{found.dtype} {tuple(found.shape)}, not {plain.dtype} {tuple(plain.shape)}"
    if not found.is_floating_point():
        right = torch.stack([found == v.to(found.dtype) for v in values]).any(0)
        return None if bool(right.all()) else f"{int((~right).sum())} elements differ"
    f, *wide = (v.double() for v in (found, *values))
    # Sums cancel: the room is that of their usual terms, not of what NaN and 1e30 are tried with.
    finite = [v[v.isfinite()].abs() for v in wide]
    scales = [max(8 * v.median().item(), min(v.max().item(), 1e3)) for v in finite if v.numel()]
    scale = max(scales, default=0.0)
    eps = max(torch.finfo(found.dtype).eps, torch.finfo(dtype).eps)
    roundings = 4 if eps > 1e-4 else 16
    room = roundings * eps * (f.abs().nan_to_num(0, 0, 0) + scale)
    if samples:  # a value may be twice as far off as these few are from each other
        drawn = torch.stack(wide[-samples:])
        room = room + 2 * (drawn.amax(0) - drawn.amin(0)).nan_to_num(0, 0, 0)
    right = torch.zeros_like(f, dtype=torch.bool)
    for v in wide:
        rounded = v.to(found.dtype).double()  # what is too large for the type is infinite in it
        right |= (f == v) | (f == rounded) | (f.isnan() & v.isnan()) | ((f - v).abs() <= room)
    if bool(right.all()):
        return None
    i = int((~right).flatten().nonzero()[0])
    given = ", ".join(f"{v.flatten()[i].item():.9g}" for v in wide)
    return (
        f"{int((~right).sum())} of {f.numel()} differ: [{i}] is {f.flatten()[i]:.9g}, not {given}"
    )


def check(
    program: Program,
    dtype: torch.dtype,
    numerics: str,
    grads: bool,
    seed: int,
    device: str = "cpu",
) -> Outcome:
    """Runs ``program`` with and without the pass, on random and on special numbers."""
    function = program.function()
    sites: list[int] = []
    fused = compiled(function, numerics, sites)
    for special in (False, True):
        args = inputs(dtype, seed, special, device)
        try:
            results(function, args, grads)
        except Exception:
            return Outcome(0)  # no program of torch's
        try:
            found = results(fused, args, grads)
        except Exception as error:
            if _fails_unfused(function, args, grads):
                return Outcome(0)
            return Outcome(sum(sites), f"{type(error).__name__}: {error}")
        if not sum(sites):
            return Outcome(0)
        problem = compare(function, found, args, grads, numerics)
        if problem is not None:
            kind = "special" if special else "random"
            return Outcome(sum(sites), f"{kind} numbers: {problem}")
    return Outcome(sum(sites))


def _fails_unfused(function: Callable[..., Any], args: list[Tensor], grads: bool) -> bool:
    """Whether the graphs fail without the pass: a view that fits eager's strides, for one, may not
    fit those of a decomposition."""
    try:
        results(compiled(function, None, []), args, grads)
    except Exception:
        return True
    return False


def compare(
    function: Callable[..., Any],
    found: list[Tensor],
    args: list[Tensor],
    grads: bool,
    numerics: str,
) -> str | None:
    """What is wrong with ``found``, the results of ``function`` of ``args`` by its fused graph."""
    eager = results(function, args, grads)
    if numerics == "bitwise" and not grads:
        # What was left alone is as torch's decompositions round it, not as eager does.
        unfused = results(compiled(function, None, []), args, grads)
        for i, (f, e, u) in enumerate(zip(found, eager, unfused, strict=True)):
            if not _same_bits(f, e) and not _same_bits(f, u):
                return f"result {i} is not eager's bit for bit"
        return None
    candidates = [eager]
    for dtype in (torch.float32, torch.float64):
        if torch.finfo(dtype).bits > torch.finfo(args[0].dtype).bits:
            candidates.append(results(function, [a.to(dtype) for a in args], grads))
    with Exact():  # what GELU's far tail is, which may be told from eager's 0
        candidates.append(results(function, [a.double() for a in args], grads))
    wrong = _first_wrong(found, candidates, args[0].dtype)
    if wrong is not None:  # is it ours? torch's decompositions round in other places than eager
        candidates.append(results(compiled(function, None, []), args, grads))
        wrong = _first_wrong(found, candidates, args[0].dtype)
    if wrong is not None:  # do its sums cancel?
        wide = [a.double() for a in args]
        for seed in range(_SAMPLES):
            with Exact(), Rounding(torch.finfo(args[0].dtype).eps, seed):
                candidates.append(results(function, wide, grads))
        wrong = _first_wrong(found, candidates, args[0].dtype, _SAMPLES)
    return wrong


def _first_wrong(
    found: list[Tensor], candidates: list[list[Tensor]], dtype: torch.dtype, samples: int = 0
) -> str | None:
    for i, (f, *values) in enumerate(zip(found, *candidates, strict=True)):
        problem = _differs(f, values, dtype, samples)
        if problem is not None:
            return f"result {i}: {problem}"
    return None


def _same_bits(found: Tensor, eager: Tensor) -> bool:
    if found.dtype != eager.dtype or found.shape != eager.shape:
        return False
    if not found.is_floating_point():
        return torch.equal(found, eager)
    same = torch.equal(found.nan_to_num(7.0), eager.nan_to_num(7.0))
    return same and torch.equal(found.isnan(), eager.isnan())
