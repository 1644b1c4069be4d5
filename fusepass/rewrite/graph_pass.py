"""FusePass: find, validate, replace, report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from ..match.anchor import Anchor, find_gemms, read_anchor
from ..match.epilogues import Match, bare, match
from ..match.facts import Graph, dtype_of, shape_of
from ..match.followers import NoMatch, others
from ..match.gated import match_gated
from ..match.gemms import flops, is_matmul, shape_text
from ..match.widened import Widened
from ..op import constant, lowering, presplit
from ..report import Miss, Report, Site, log, module_of, publish, source_of
from ..settings import NUMERICS
from . import batches, joined
from .claims import claim
from .decision import bare_objection, has_kernel, objection, one_kernel
from .edit import replace
from .parted import named, parted
from .recompute import count_as_products, refuse
from .sisters import Decided, join
from .transaction import Transaction
from .turned import Turned

_SOURCES = (".py", ".cu", ".cuh", ".h", ".cpp")


class FusePass(CustomGraphPass):
    """Makes one op of each matrix product and its epilogue in Inductor's joint or inference graph.

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
        return f"fusepass-{self.numerics}-{_fingerprint(Path(__file__).parents[1])}"


def _tune(graph: torch.fx.Graph) -> None:
    """Finds the fastest kernel for every fused call on a GPU; no model fails for want of it."""
    from ..kernels.build import toolchain
    from ..kernels.calls import calls_in
    from ..kernels.plan import autotune

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
    sites, misses = _batches(facts, numerics, edit)
    decided: list[Decided] = []
    origin: dict[str, str] = {}  # of products that were parts of others
    left = find_gemms(facts)
    while left:
        gemm = left.pop(0)
        result = _decide_gated(facts, gemm, left, numerics)
        if result is None:
            anchor = read_anchor(facts, gemm, numerics)
            if parts := parted(facts, anchor, numerics, edit, _decide):
                origin.update(dict.fromkeys((part.name for part in parts), gemm.name))
                left = [*parts, *left]
                continue
            result = _decide(facts, anchor, numerics, edit)
        if isinstance(result, Match):
            told = [_site(facts, result, anchor, numerics) for anchor in result.gemms]
            left = [g for g in left if all(g is not anchor.gemm for anchor in result.gemms)]
            outs = replace(facts, result, numerics, edit)
            alone = outs[0] if not result.epilogue.nodes and result.is_plain else None
            decided += [Decided(site, alone, result.stopped) for site in told]
        else:
            decided.append(Decided(_miss(facts, result, gemm), gemm, result))
    if numerics == "accurate":
        decided = join(facts, decided, edit, _site)
    sites += [d.entry for d in decided if isinstance(d.entry, Site)]
    misses += [d.entry for d in decided if isinstance(d.entry, Miss)]
    if sites:
        count_as_products()
        presplit.use_in(graph)
        constant.use_in(graph)
    return joined.told(*named(sites, misses, origin))


def _batches(facts: Graph, numerics: str, edit: Transaction) -> tuple[list[Site], list[Miss]]:
    """The products that are no Linear's: those of widened batches as sites."""
    sites, misses = list[Site](), list[Miss]()
    for other in list(others(facts)):
        found = batches.decide(facts, other, numerics)
        if isinstance(found, Widened):
            sites.append(_batch_site(facts, found))
            batches.replace(facts, found, edit)
        else:
            misses.append(_miss(facts, found, other.node))
    return sites, misses


def _decide_gated(
    facts: Graph, gemm: Node, others: Sequence[Node], numerics: str
) -> Match | NoMatch | None:
    """The site of ``gemm`` and one of ``others``, or of the halves of ``gemm``, if there is one."""

    def against(site: Match) -> str | None:
        claimed = next(filter(None, (claim(anchor.gemm) for anchor in site.gemms)), None)
        return claimed or refuse(site) or objection(facts, site, numerics)

    return match_gated(facts, gemm, others, numerics, against)


def _decide(facts: Graph, anchor: Anchor, numerics: str, edit: Transaction) -> Match | NoMatch:
    """The site that ``anchor`` makes, with an epilogue or without, if it may and should be one."""
    claimed = claim(anchor.gemm)
    if claimed is not None:
        return NoMatch(claimed, anchor.gemm)
    found = _matched(facts, anchor, numerics, edit)
    if isinstance(found, Match):
        return found
    against = bare_objection(anchor, numerics)
    if against is None:
        return bare(anchor, found)
    # Nobody misses an epilogue where nothing could be one, or in a backward that nobody wrote.
    alone = anchor.gemm not in facts.forward or (found.nothing and has_kernel(anchor))
    return NoMatch(against, anchor.gemm) if alone else found


def _matched(facts: Graph, anchor: Anchor, numerics: str, edit: Transaction) -> Match | NoMatch:
    """``match``, with what is behind a permutation in front of it, if that makes a site."""

    def against(site: Match) -> str | None:
        return refuse(site) or objection(facts, site, numerics)

    turned = Turned(facts, anchor.z) if numerics == "accurate" else None
    if turned is None or not turned.added:
        return match(facts, anchor, numerics, against)
    found = match(facts, anchor, numerics, against)
    if turned.helps(found):
        turned.keep(edit)
        return found
    turned.undo()
    straight = match(facts, anchor, numerics, against)
    if isinstance(found, NoMatch) and isinstance(straight, NoMatch):
        return NoMatch(found.reason, straight.node)
    return straight


def _miss(facts: Graph, found: NoMatch, layer: Node) -> Miss:
    return Miss(
        reason=found.reason,
        node=found.node.name,
        source=source_of(found.node, layer),
        module=module_of(layer),
        gemm=layer.name,
        shape=shape_text(layer),
        flops=flops(layer),
        backward=layer not in facts.forward,
        kind=_kind(facts, layer),
    )


def _kind(facts: Graph, gemm: Node) -> str:
    if gemm not in facts.forward:
        return "gradient"
    return "matmul" if is_matmul(gemm) else "linear"


def _site(facts: Graph, found: Match, anchor: Anchor, numerics: str = "accurate") -> Site:
    z = anchor.z.meta["val"]
    (m, n), k = shape_of(anchor.gemm), shape_of(anchor.x)[1]
    kernel = "torch's GEMM, generated code" if z.device.type == "cpu" else "GEMM, then one kernel"
    if z.device.type == "cuda" and (not found.epilogue.nodes or one_kernel(found, numerics)):
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
        follows=_follows(found),
        next=None if found.stopped is None else found.stopped.node.name,
        kind=_kind(facts, anchor.gemm),
        flops=flops(anchor.gemm),
        backward=anchor.gemm not in facts.forward,
    )


def _batch_site(facts: Graph, found: Widened) -> Site:
    gemm, narrow = found.gemm, str(found.x.value.dtype).removeprefix("torch.")
    batch, m, n = map(str, shape_of(gemm))
    return Site(
        epilogue="",
        dtype="float32",
        m=m,
        n=n,
        k=str(found.x.value.shape[-1]),
        kernel="one kernel",
        source=source_of(gemm),
        module=module_of(gemm),
        node=gemm.name,
        nodes=(gemm.name,),
        why=f"it multiplies what was widened from {narrow}, whose products float32 holds",
        kind=_kind(facts, gemm),
        flops=flops(gemm),
        backward=gemm not in facts.forward,
        batch=batch,
    )


def _follows(found: Match) -> str | None:
    """What takes the site's result and might have been a part of it, and why it is not."""
    stopped = found.stopped
    return None if stopped is None or stopped.nothing else stopped.reason
