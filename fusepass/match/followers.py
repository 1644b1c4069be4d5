"""What follows a GEMM and is not fused with it, and why, in words a model author understands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from ..op.cpu import compute_dtype
from ..report import module_of
from .facts import (
    Graph,
    dtype_name,
    dtype_of,
    is_cast,
    is_identity,
    is_pointwise,
    is_view,
    numel_is_one,
    packet,
)
from .gemms import (
    feeds_attention,
    is_attention,
    is_grouped,
    is_ours,
    is_product,
    is_rnn,
    is_taken_apart,
    is_whole_layer,
)
from .program import represents
from .region import Region
from .written import idiom, is_part, joined_later, layer_of, operator_of, other_input, sigmoid_times

aten = torch.ops.aten

_BINARY = {"mul", "div", "clamp", "clamp_min", "clamp_max", "maximum", "minimum"}
_ADDS = {"add", "sub", "rsub", "where", "masked_fill"}
_OF_IDIOMS = (aten.pow, aten.mul, aten.neg, aten.sub, aten.div, aten.view_as_complex)
_ONE_BY_ONE = ("dropout", "BatchNorm")  # the latter in evaluation; in training it reads columns
MANY = "reads many elements of the result, an epilogue one at a time"


@dataclass(frozen=True)
class NoMatch:
    """Why a GEMM, or what follows it, is left to Inductor, and the node that says so."""

    reason: str
    node: Node

    @property
    def nothing(self) -> bool:
        """Whether nothing follows that might have been an epilogue."""
        return self.reason.startswith(NOTHING)


@dataclass(frozen=True)
class _Use:
    """An operator that takes a value, seen through views, casts and parts of it."""

    node: Node
    value: Node
    part: bool
    lossy: str


def left(region: Region, read: Sequence[NoMatch] = ()) -> NoMatch:
    """Why nothing behind a GEMM is an epilogue, by its first user that might have been one.

    Args:
        read: why the stages that were tried are none.
    """
    uses = list(_uses(region, region.z))
    found = _first(region, uses, next(iter(read), None))
    return found or _bare(region.facts, region.z, uses)


def beyond(region: Region, exit_: Node, read: NoMatch | None) -> NoMatch | None:
    """What takes an epilogue's result and might have been part of it, and why it is not.

    Args:
        read: why the next stage that was tried is none.
    """
    return _first(region, list(_uses(region, exit_)), read)


def layer_reason(region: Region, node: Node) -> str | None:
    """Why a node of a region is no operation but a piece of a layer; None if it is of none."""
    for value in region.members[node].inputs:
        uses = list(_uses(region, value))
        together = idiom(region.facts, [u.node for u in uses]) if not region.rotations else None
        for use in uses:
            if use.node is node:
                return _layer(region, use, together)
    return None


def composite(nodes: Sequence[Node]) -> str | None:
    """The reason when ``nodes`` are one operator of the user's program, taken apart."""
    computing = [n for n in nodes if not is_identity(n)]
    if spelled := sigmoid_times(computing):
        return f"{spelled} is not a stage fusepass knows"
    names, first = {operator_of(n) for n in computing}, _target(computing[0])
    could_be_a_stage = len(computing) == 1 and first in _BINARY
    if could_be_a_stage or len(names) != 1 or names == {first}:
        return None
    return f"`{names.pop()}` is not a stage fusepass knows"


def others(facts: Graph) -> Iterator[NoMatch]:
    """The products that are no Linear's, each with what it is."""
    for node in facts.graph.nodes:
        if is_whole_layer(node):
            yield NoMatch(_RNN if is_rnn(node) else _WHOLE, node)
        elif is_taken_apart(node):
            name = operator_of(node)
            yield NoMatch(f"torch computes this `{name}` element by element, without a GEMM", node)
        elif is_product(node) and node.target not in (aten.mm.default, aten.addmm.default):
            yield NoMatch(_product(facts, node), node)


NOTHING = "nothing to fuse"
ATTENTION = "a part of attention, no Linear: torch has kernels for the whole of it"
_WHOLE = (
    "torch runs this whole layer as one operator; with torch.backends.mha.set_fastpath_enabled"
    "(False) its Linears can fuse"
)
_RNN = "torch runs all steps of this recurrent layer as one operator, its products inside"
_ONE_BATCH = (
    "a batched product of one batch, as torch.einsum makes it, is not read as a Linear; "
    "torch.nn.functional.linear and @ are"
)


_KINDS = {
    aten.bmm: "of a batch of matrices",
    aten.baddbmm: "of a batch of matrices",
    aten.mv: "with a vector",
    aten.addmv: "with a vector",
    aten._scaled_mm: "of scaled float8 numbers",
    aten._int_mm: "of integers",
}


def _product(facts: Graph, node: Node) -> str:
    if is_attention(facts, node):
        return ATTENTION
    if packet(node) is aten.bmm and node.meta["val"].shape[0] == 1:
        return _ONE_BATCH
    kind = _KINDS.get(packet(node), "of other dtypes than its operands'")
    kind = "of groups of rows with a matrix each" if is_grouped(node) else kind
    return f"a product {kind} (`{operator_of(node)}`), which no kernel of fusepass computes"


# --- the uses of a value ------------------------------------------------------------------------


def _uses(region: Region, start: Node) -> Iterator[_Use]:
    pending = [(start, "", False)]
    while pending:
        node, lossy, part = pending.pop()
        for user in region.facts.users_in_phase(node):
            if is_view(user) or is_cast(user) or packet(user) is aten.expand:
                pending.append((user, lossy or _lossy(region, user), part))
            elif is_part(user):
                pending.append((user, lossy, True))
            else:
                yield _Use(user, node, part, lossy)


def _lossy(region: Region, cast: Node) -> str:
    ours, theirs = dtype_of(region.z), dtype_of(cast)
    if ours is None or theirs is None:
        return ""
    name = dtype_name(theirs)
    if not represents(theirs, ours):
        return f"the cast to {name} right behind the Linear loses bits; fusing would keep them"
    compute = compute_dtype(ours)
    if not represents(compute, theirs):
        return (
            f"the program goes on in {name}, where the fused op computes in {dtype_name(compute)}"
        )
    return ""


def _first(region: Region, uses: Sequence[_Use], read: NoMatch | None) -> NoMatch | None:
    """The first use that might have been a stage, with what is wrong if it is none.

    A layer that reads many elements, or a stage of a later product, is told where there is no other
    use beside it.
    """
    together = idiom(region.facts, [u.node for u in uses])
    instead: NoMatch | None = None
    for use in sorted(uses, key=lambda u: u.node):
        layer = _layer(region, use, together)
        tried = read is not None and not read.reason.endswith(MANY)
        if layer is None and tried and use.node in region.members:
            return read
        later = [] if layer else joined_later(region.facts, use.node, use.value, region.z)
        # A residual goes on past the next layers to the stage of another product.
        goes_on = any(region.facts.depends_on(product, use.value) for product in later)
        reason = layer or (None if goes_on else _pointwise(region, use))
        if reason is None:
            continue
        told = NoMatch(reason, use.node)
        if layer is None and not later:
            return told
        instead = instead or told
    return instead


def _layer(region: Region, use: _Use, together: str | None) -> str | None:
    """Why the layer that an operator is a piece of is no stage; None if it is of no layer."""
    layer = layer_of(use.node)
    if layer in _ONE_BY_ONE and not _of_its_own_values(region.facts, use):
        return None
    if layer is None and together and packet(use.node) in _OF_IDIOMS:
        layer = together
    return f"{layer} {MANY}" if layer else None


def _of_its_own_values(facts: Graph, use: _Use) -> bool:
    """Whether an operator reads more than one element of the value, itself or by another input."""
    inputs = [i for i in use.node.all_input_nodes if i is not use.value]
    return not is_pointwise(use.node) or any(facts.depends_on(i, use.value) for i in inputs)


def _pointwise(region: Region, use: _Use) -> str | None:
    """Why an operator behind z is not in its epilogue; None if it is nothing like a stage."""
    if not is_pointwise(use.node):
        return None
    if use.lossy:
        return use.lossy
    if use.node in region.members:
        return f"`{operator_of(use.node)}` is not a stage fusepass knows"
    return _outside(region, use)


def _outside(region: Region, use: _Use) -> str | None:
    node, name = use.node, operator_of(use.node)
    inputs = [i for i in node.all_input_nodes if i is not use.value and i not in region.members]
    if all(region.facts.constant(i) is not None or region.is_operand(i) for i in inputs):
        if not use.part:
            return f"`{name}` changes the shape or the dtype of its input"
        # Attention scales a third of a Linear's result; that is no activation.
        whole = f"`{name}` takes a part of the Linear's result, a fused op all of it"
        return None if name in ("mul", "div") else whole
    written = other_input(node, use.value, inputs)
    if written is None and {name, _target(node)}.isdisjoint(_BINARY | _ADDS):
        return f"`{name}` is not a stage fusepass knows"
    reason = f"`{name}` {_why_not(region, use, inputs)}"
    return f"{written}: {reason}" if written and not all(map(numel_is_one, inputs)) else reason


def _why_not(region: Region, use: _Use, inputs: Sequence[Node]) -> str:
    """Why an operator may not read its other inputs, in words that follow its name."""
    if use.part:
        return "takes a part of the Linear's result, a fused op all of it"
    reasons = (region.why_not(use.node, i) for i in inputs)
    return next((r for r in reasons if r is not None), "takes the result in another order")


def _target(node: Node) -> str:
    return str(getattr(node.target, "_schema", node.target).name).split("::")[-1]  # type: ignore[union-attr]


# --- GEMMs that nothing like a stage follows ----------------------------------------------------


def _bare(facts: Graph, z: Node, uses: Sequence[_Use]) -> NoMatch:
    if not uses:
        return NoMatch(f"{NOTHING}: the forward makes no use of its result", z)
    rest = [u.node for u in uses]
    first = min((n for n in rest if n.op != "output"), default=rest[0])
    return NoMatch(f"{NOTHING}: its result {_goes(facts, first)}", first)


def _goes(facts: Graph, node: Node) -> str:
    name = operator_of(node)
    if node.op == "output":
        return "is returned"
    if "attention" in name or is_attention(facts, node) or feeds_attention(facts, node, False):
        return "goes into attention"
    if is_product(node) or is_ours(node) or is_whole_layer(node):
        path = module_of(node)
        return f"goes into the next product, `{path}`" if path else "goes into the next product"
    if "convolution" in name:
        return "goes into a convolution"
    if packet(node) in (aten.cat, aten.stack):
        return "is joined with other tensors"
    return f"goes in parts into `{name}`" if is_pointwise(node) else f"goes into `{name}`"
