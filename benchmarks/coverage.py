"""What of a layer's Linears fusepass takes, by FLOPs, of today's architectures: no GPU needed.

    python benchmarks/coverage.py [--out results/coverage.json] [--picture results/coverage.svg]
                                  [--models NAME ...] [--train]

Each model is built of fake tensors at its published sizes, in bfloat16, and traced by
torch.compile; the decisions are those for an H200, by the plan's model of time. It is traced with
two layers and with four: the difference is two layers from inside of a model, without what stands
at its ends, which a model of many layers has once. One whose layers differ in size is traced whole.

The FLOPs are those of the graph's products with a weight, experts' among them: Linears. What
attention multiplies is none, nor are convolutions. A Linear's tail is what is pointwise behind it;
a norm, a softmax, an attention or the next product is none, but RoPE, which rotates pairs of
columns, counts as one. A Linear without a tail is told apart, whoever runs it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from architectures import ARCHITECTURES, Architecture, available
from coverage_picture import KINDS, draw, reasons, table
from rows import write
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from fusepass import kernels
from fusepass.explaining.explain import observe
from fusepass.match.followers import ATTENTION, MANY, NOTHING
from fusepass.report import Entry, Report, Site
from fusepass.rewrite.decision import ALONE
from fusepass.rewrite.graph_pass import FusePass

_SMS = 132  # of an H200
_ADDING = [torch.ops.aten.addmm, torch.ops.aten.baddbmm]
_PRODUCTS = [getattr(torch.ops.aten, name) for name in ("mm", "bmm", "_grouped_mm")] + _ADDING
_LAYERS = 2, 4  # all layers of a model are alike, or every other one
_PROTOCOL = "two layers of fake tensors at published sizes; what runs is what the plan chooses"

Made = tuple[FakeTensorMode, nn.Module, tuple[Any, ...], dict[str, Any]]
Counted = collections.Counter[tuple[str, str]]  # (kind, why) -> FLOPs


def is_linear(entry: Entry) -> bool:
    """Whether it multiplies with a weight, or is of the backward of what does."""
    attention = not isinstance(entry, Site) and entry.reason == ATTENTION
    return entry.kind != "matmul" and not attention


def kind_of(entry: Entry) -> str:
    """Which of ``KINDS`` a Linear is."""
    if isinstance(entry, Site):
        taken, left = ("whole", "part") if entry.epilogue else ("empty", "untaken")
        return left if entry.follows and not _is_no_tail(entry.follows) else taken
    return "bare" if entry.reason.startswith(ALONE) or _is_no_tail(entry.reason) else "left"


def _is_no_tail(why: str) -> bool:
    """Whether a reason says that nothing pointwise follows."""
    return why.startswith(NOTHING) or (why.endswith(MANY) and "RoPE" not in why)


def counted(report: Report) -> Counted:
    """The FLOPs of a report's Linears, by kind and by why they are no more than that."""
    flops: Counted = collections.Counter()
    for entry in filter(is_linear, (*report.sites, *report.misses)):
        why = entry.follows if isinstance(entry, Site) else entry.reason
        flops[kind_of(entry), why or ""] += entry.flops or 0
    return flops


def shares(flops: Counted) -> dict[str, Any]:
    """A row's share of each kind, and the reasons."""
    total = flops.total()
    kinds: collections.Counter[str] = collections.Counter()
    for (kind, _), n in flops.items():
        kinds[kind] += n
    share = {kind: round(kinds[kind] / total, 4) if total else 0.0 for kind in KINDS}
    known = [(f"{kind}: {why}", round(n / total, 4)) for (kind, why), n in flops.most_common()]
    return {"flops": total, "share": share, "reasons": [r for r in known if r[0][-2:] != ": "]}


@contextlib.contextmanager
def on_an_h200() -> Iterator[None]:
    """Inside, the pass believes that every graph it is given runs on an H200."""
    run = FusePass.__call__

    def call(self: FusePass, graph: torch.fx.Graph) -> Any:
        _move(graph, "cuda")
        try:
            return run(self, graph)
        finally:
            _move(graph, "cpu")

    def sms(device: torch.device) -> int | None:
        return _SMS if device.type == "cuda" else None

    patched = mock.patch.object
    with patched(FusePass, "__call__", call), patched(kernels, "hopper_sms", sms):
        yield


def _move(graph: torch.fx.Graph, device: str) -> None:
    def moved(value: torch.Tensor) -> torch.Tensor:
        mode = getattr(value, "fake_mode", None)
        if value.dim() == 0 or mode is None:  # a number of the host's, perhaps
            return value
        with mode:
            base = torch.empty(0, dtype=value.dtype, device=device)
            return base.as_strided(value.shape, value.stride(), value.storage_offset())

    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map_only(
                torch.Tensor, moved, node.meta["val"]
            )


def made_of_nothing(architecture: Architecture, layers: int) -> Made:
    """The model and its inputs as fake tensors, and the mode that these belong to.

    What reads a number while it is constructed, as vision models do for their drop rates, is made
    of real tensors first.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            return mode, *architecture.make(layers)
    except DataDependentOutputException:
        model, args, kwargs = architecture.make(layers)

    def faked(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = mode.from_tensor(parameter.detach())
                module._parameters[name] = nn.Parameter(made, parameter.requires_grad)
        module._buffers.update({name: faked(b) for name, b in module._buffers.items()})
    args, kwargs = torch.utils._pytree.tree_map(faked, (args, kwargs))
    return mode, model, args, kwargs


def traced(made: Made, train: bool) -> Report:
    """What the pass says of a model."""
    torch._dynamo.reset()
    mode, model, args, kwargs = made
    model.train(train)
    with torch.set_grad_enabled(train), mode, on_an_h200():
        report, _ = observe(model, args, kwargs, None)
    return report


class Products(TorchDispatchMode):
    """Counts the FLOPs of the products that eager runs."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in _PRODUCTS:
            x = args[1 if func._overloadpacket in _ADDING else 0]
            self.flops += 2 * out.numel() * x.shape[-1]
        return out


def told(made: Made, report: Report) -> float:
    """The FLOPs of a report's products, forward, over those eager runs: below 1, some are silent.

    Above, torch runs an attention with its Linears as one operator, which it does not in a graph.
    """
    mode, model, args, kwargs = made
    with torch.no_grad(), mode, Products() as run:
        model(*args, **kwargs)
    entries = [e for e in (*report.sites, *report.misses) if not e.backward]
    return sum(e.flops or 0 for e in entries) / run.flops if run.flops else 1.0


def is_same(one: Made, other: Made) -> bool:
    """Whether two models have as many parameters."""
    sizes = [sum(p.numel() for p in made[1].parameters()) for made in (one, other)]
    return sizes[0] == sizes[1]


def inner(fewer: Report, more: Report) -> tuple[Counted, int]:
    """What a model of more layers has more, and how many products.

    Raises:
        ValueError: if that of fewer layers has anything that the other has not.
    """
    few, many = counted(fewer), counted(more)
    products = [len(r.sites) + len(r.misses) for r in (fewer, more)]
    if lost := [key for key in few if few[key] > many[key]]:
        raise ValueError(f"with more layers the model has less of {lost}")
    return many - few, products[1] - products[0]


def measure(architecture: Architecture, train: bool) -> dict[str, Any]:
    """One architecture's row; one that fails is a row that says so, and the others go on."""
    start = time.perf_counter()
    row: dict[str, Any] = {"model": architecture.name, "family": architecture.family}
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.set_grad_enabled(train):
            fewer, more = (made_of_nothing(architecture, layers) for layers in _LAYERS)
        report = traced(fewer, train)
        flops, products = counted(report), len(report.sites) + len(report.misses)
        if not is_same(fewer, more):
            flops, products = inner(report, traced(more, train))
        row |= shares(flops) | {"products": products, "told": round(told(fewer, report), 4)}
        row["notes"] = report.notes
    except Exception as error:
        traceback.print_exc()
        row["failed"] = f"{type(error).__name__}: {error}"[:300]
    finally:
        torch.set_default_dtype(torch.float32)
    return row | {"took_s": round(time.perf_counter() - start, 1)}


def chosen(parts: list[str] | None, drawn: bool) -> Iterator[Architecture]:
    """Those whose names have one of ``parts`` in them; else all, unless they are only drawn."""
    if parts is None:
        return iter(()) if drawn else available()
    return (a for a in available() if any(part in a.name for part in parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", help="parts of names; default: all")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--out", type=Path, help="results as JSON, kept up to date model by model")
    parser.add_argument("--picture", type=Path, help="a bar a model; needs matplotlib")
    parser.add_argument(
        "--from", dest="source", type=Path, help="an earlier run's results, kept for other models"
    )
    parser.add_argument("--commit", help="for that file, where git does not know")
    options = parser.parse_args()
    order = {a.name: i for i, a in enumerate(ARCHITECTURES)}
    rows: list[dict[str, Any]] = []
    if options.source:
        rows = json.loads(options.source.read_text())["rows"]
    for architecture in chosen(options.models, bool(options.source)):
        rows = [row for row in rows if row["model"] != architecture.name]
        rows.append(measure(architecture, options.train))
        print(json.dumps(rows[-1]), flush=True)
        rows.sort(key=lambda row: order[row["model"]])
        write(options.out, "as on an NVIDIA H200", rows, options.commit, _PROTOCOL)
    print(table(rows), reasons(rows), sep="\n\n")
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
