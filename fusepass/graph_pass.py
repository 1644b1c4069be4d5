"""FusePass: find, validate, replace, report."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from . import constant, lowering, presplit
from .anchor import Anchor, find_gemms, read_anchor
from .facts import Graph, dtype_of, is_cast, is_pointwise, is_view, packet, shape_of
from .followers import NoMatch, others
from .gemms import flops, is_matmul, shape_text
from .kernels import fuses, has_fused_gemm
from .match import Match, match
from .packing import is_packed
from .recompute import refuse
from .report import Miss, Report, Site, log, module_of, publish, source_of
from .rewrite import replace
from .settings import NUMERICS
from .transaction import Transaction

aten = torch.ops.aten

_SOURCES = (".py", ".cu", ".cuh", ".h", ".cpp")


class FusePass(CustomGraphPass):
    """Replaces every Linear with a fusible epilogue in Inductor's joint or inference graph.

    Use as ``torch._inductor.config.joint_custom_pre_pass``; picklable, and the same for the same
    arguments.

    Args:
        numerics: ``accurate`` or ``bitwise``.

    Raises:
        ValueError: for any other numerics.
    """

    def __init__(self, numerics: str = "accurate") -> None:
        if numerics not in NUMERICS:
            raise ValueError(f"FusePass: numerics is {numerics!r}; use one of {NUMERICS}")
        self.numerics = numerics

    def __call__(self, graph: torch.fx.Graph) -> None:
        lowering.register()
        try:
            report = run(graph, self.numerics)
        except Exception as error:  # whatever it is, it is not the model's fault
            log.warning("the graph is left to Inductor, because fusepass failed", exc_info=True)
            reason = f"fusepass failed: {type(error).__name__}: {error}"
            report = Report(misses=(Miss(reason, "graph", None),))
        publish(report)
        if torch._inductor.config.max_autotune:
            _tune(graph)

    def uuid(self) -> Any:
        """A hash of all that can change the result: fusepass's sources and the options.

        Raises:
            OSError: if a source cannot be read; a result that cannot be told from an older one
                must not be cached.
        """
        return f"fusepass-{self.numerics}-{_fingerprint(Path(__file__).parent)}"


def _tune(graph: torch.fx.Graph) -> None:
    """Finds the fastest kernel for every fused call on a GPU; no model fails for want of it."""
    from .calls import calls_in
    from .kernels import autotune, toolchain

    for call in calls_in(graph):
        if call.guessed:
            continue
        try:
            with _disable_current_modes():
                autotune.tune(call)
        except (toolchain.BuildError, OSError, torch.cuda.OutOfMemoryError) as error:
            log.warning("max_autotune of %s was left out: %s", call.node, error)
        except Exception:
            log.warning("max_autotune of %s was left out", call.node, exc_info=True)


def _fingerprint(folder: Path) -> str:
    paths = sorted(p for p in folder.rglob("*") if p.suffix in _SOURCES)
    if not any(p.name == Path(__file__).name for p in paths):
        raise FileNotFoundError(f"fusepass: its sources are not in {folder}, so nothing is cached")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def run(graph: torch.fx.Graph, numerics: str) -> Report:
    """Rewrites ``graph`` in place and says what was done.

    Args:
        graph: functional ATen, with fake tensors in ``meta["val"]``.

    Raises:
        Exception: any; ``graph`` is then exactly what it was.
    """
    edit = Transaction(graph)
    try:
        report = _rewrite(graph, numerics, edit)
        edit.commit()
    except BaseException:
        edit.roll_back()
        raise
    return report


def _rewrite(graph: torch.fx.Graph, numerics: str, edit: Transaction) -> Report:
    """One site after the other: each sees the graph as those before it left it."""
    facts = Graph(graph)
    sites, misses = [], [_miss(other, other.node) for other in others(facts)]
    for gemm in find_gemms(facts):
        result = _match(facts, read_anchor(facts, gemm, numerics), numerics)
        if isinstance(result, Match):
            sites.append(_site(result, numerics))
            replace(facts, result, numerics, edit)
        else:
            misses.append(_miss(result, gemm))
    if sites:
        presplit.use_in(graph)
        constant.use_in(graph)
    return Report(tuple(sites), tuple(misses))


def _match(facts: Graph, anchor: Anchor, numerics: str) -> Match | NoMatch:
    """The site that ``anchor`` makes, if it may and should be one."""
    found = match(facts, anchor, numerics)
    if not isinstance(found, Match):
        return found
    objection = refuse(found) or _objection(facts, found, numerics)
    return found if objection is None else NoMatch(objection, found.exit)


def _miss(found: NoMatch, layer: Node) -> Miss:
    return Miss(
        reason=found.reason,
        node=found.node.name,
        source=source_of(found.node, layer),
        module=module_of(layer),
        gemm=layer.name,
        shape=shape_text(layer),
        flops=flops(layer),
    )


# --- is it worth it -----------------------------------------------------------------------------

_REDUCTIONS = (aten.sum, aten.mean, aten.amax, aten.amin, aten.var_mean, aten.var, aten.prod)


def worthwhile(*, cuda: bool, one_kernel: bool, tail_is_free: bool) -> str | None:
    """Why a valid site is better left to Inductor, or None.

    Args:
        cuda: whether it runs on a GPU; on the CPU the op is lowered to Inductor's own code.
        one_kernel: whether GEMM and epilogue can be one kernel there.
        tail_is_free: whether Inductor would compute the epilogue inside the next kernel anyway.
    """
    if cuda and not one_kernel and tail_is_free:
        return "Inductor fuses these stages with what follows, for free"
    return None


def _one_kernel(found: Match, numerics: str) -> bool:
    """Whether one kernel will run the site; where sizes are dynamic, whether one can."""
    z, kn = (node.meta["val"] for node in (found.anchor.z, found.anchor.kn))
    sizes = (*shape_of(found.anchor.gemm), shape_of(found.anchor.x)[1])
    if numerics == "bitwise" or not has_fused_gemm(z.device, z.dtype):
        return False
    if not all(isinstance(size, int) for size in sizes):
        return True
    m, n, k = map(int, sizes)
    return fuses(z.device, z.dtype, m, n, k, kn.stride(1) == 1 and kn.stride(0) != 1)


def _objection(facts: Graph, found: Match, numerics: str) -> str | None:
    cuda = found.anchor.z.meta["val"].device.type == "cuda"
    if numerics == "accurate" and is_packed(found.anchor.kn):
        return "freezing packs its weight, for which oneDNN and MKL have a faster GEMM"
    return worthwhile(
        cuda=cuda,
        one_kernel=cuda and _one_kernel(found, numerics),
        tail_is_free=_feeds_fusible(facts, found.exit),
    )


def _feeds_fusible(facts: Graph, node: Node) -> bool:
    for user in facts.forward_users(node):
        if is_view(user):
            if _feeds_fusible(facts, user):
                return True
        elif is_pointwise(user) or is_cast(user) or packet(user) in _REDUCTIONS:
            return True
    return False


def _site(found: Match, numerics: str) -> Site:
    anchor = found.anchor
    z = anchor.z.meta["val"]
    (m, n), k = shape_of(anchor.gemm), shape_of(anchor.x)[1]
    kernel = "torch's GEMM, generated code" if z.device.type == "cpu" else "GEMM, then one kernel"
    if z.device.type == "cuda" and _one_kernel(found, numerics):
        kernel = "one kernel"
    return Site(
        epilogue=str(found.epilogue),
        dtype=str(dtype_of(anchor.z)).removeprefix("torch."),
        m=str(m),
        n=str(n),
        k=str(k),
        kernel=kernel,
        source=source_of(anchor.gemm, found.exit),
        module=module_of(anchor.gemm),
        node=anchor.gemm.name,
        nodes=tuple(n.name for n in (anchor.gemm, *anchor.views, *found.inside)),
        follows=found.stopped.reason if found.stopped else None,
        kind="matmul" if is_matmul(anchor.gemm) else "linear",
        flops=flops(anchor.gemm),
    )
