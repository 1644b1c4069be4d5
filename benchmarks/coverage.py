"""What of today's architectures fusepass takes, by their FLOPs: no GPU and little memory needed.

    python benchmarks/coverage.py [--out results/coverage.json] [--picture results/coverage.svg]
                                  [--models NAME ...] [--train]

Each model is built of fake tensors at its published sizes, with a few of its layers, in bfloat16,
and traced by torch.compile once; the decisions are those for an H200, by the plan's model of time.
The FLOPs counted are those of matrix products in the graphs: Linears, and what attention multiplies
where it is no operator of its own; not those of convolutions or of attention's operator.
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
from architectures import Architecture, available
from coverage_picture import KINDS, draw, reasons, table
from rows import write
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from fusepass import kernels
from fusepass.explaining.explain import observe
from fusepass.report import Entry, Report, Site
from fusepass.rewrite.graph_pass import FusePass

_SMS = 132  # of an H200
_PROTOCOL = "traced once, of fake tensors at published sizes; what runs is what the plan chooses"


def kind_of(entry: Entry) -> str:
    """Which of ``KINDS`` runs a product."""
    if isinstance(entry, Site):
        if not entry.epilogue:
            return "alone"
        return "part" if entry.follows else "whole"
    return "bare" if entry.reason.startswith(("nothing to fuse", "a product alone")) else "left"


def summed(report: Report) -> dict[str, Any]:
    """The FLOPs of a report by kind, as shares, and the reasons of what is not taken."""
    entries = [*report.sites, *report.misses]
    flops: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    for entry in entries:
        kind = kind_of(entry)
        flops[kind] += entry.flops or 0
        why = entry.follows if isinstance(entry, Site) else entry.reason
        if why:
            reasons[f"{kind}: {why}"] += entry.flops or 0
    total = sum(flops.values())
    share = {kind: round(flops[kind] / total, 4) if total else 0.0 for kind in KINDS}
    known = [(why, round(n / total, 4)) for why, n in reasons.most_common() if total]
    return {"flops": total, "share": share, "products": len(entries), "reasons": known}


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


def made_of_nothing(
    architecture: Architecture,
) -> tuple[FakeTensorMode, nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model and its inputs as fake tensors, and the mode that these belong to.

    What reads a number while it is constructed, as vision models do for their drop rates, is made
    of real tensors first.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            return mode, *architecture.make()
    except DataDependentOutputException:
        model, args, kwargs = architecture.make()

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


def measure(architecture: Architecture, train: bool) -> dict[str, Any]:
    """One architecture's row; one that fails is a row that says so, and the others go on."""
    start = time.perf_counter()
    row: dict[str, Any] = {"model": architecture.name, "family": architecture.family}
    torch._dynamo.reset()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.set_grad_enabled(train):
            mode, model, args, kwargs = made_of_nothing(architecture)
            model.train(train)
            with mode, on_an_h200():
                report, _ = observe(model, args, kwargs, None)
        row |= summed(report) | {"notes": report.notes}
    except Exception as error:
        traceback.print_exc()
        row["failed"] = f"{type(error).__name__}: {error}"[:300]
    finally:
        torch.set_default_dtype(torch.float32)
    return row | {"took_s": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", help="parts of names; default: all")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--out", type=Path, help="results as JSON, kept up to date model by model")
    parser.add_argument("--picture", type=Path, help="a bar a model; needs matplotlib")
    parser.add_argument("--from", dest="source", type=Path, help="draw an earlier run's results")
    parser.add_argument("--commit", help="for that file, where git does not know")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.source:
        rows = json.loads(options.source.read_text())["rows"]
    for architecture in [] if options.source else available():
        if options.models and not any(m in architecture.name for m in options.models):
            continue
        rows.append(measure(architecture, options.train))
        print(json.dumps(rows[-1]), flush=True)
        write(options.out, "as on an NVIDIA H200", rows, options.commit, _PROTOCOL)
    print(table(rows), reasons(rows), sep="\n\n")
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
