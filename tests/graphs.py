"""Runs FusePass on the graphs torch.compile would give Inductor, without Inductor's code
generation: AOTAutograd with Inductor's decompositions, then the graph itself."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from epilogues import CHANCE, error
from functorch.compile import (
    aot_module_simplified,
    make_boxed_func,
    min_cut_rematerialization_partition,
)
from torch import nn
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses import FakeTensor

from fusepass import kernels
from fusepass.explaining.explain import node_text
from fusepass.report import Report
from fusepass.rewrite.graph_pass import run

SMS: int | None = 132  # of the GPU that `as_on_hopper` pretends; None: it is no H200
SITE = "mul(0.5) clamp(-2.0, 2.0) gelu"
Tail = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Fused:
    """A compiled callable that remembers what the pass did.

    Attributes:
        before, after: the text of each graph the pass saw.
        reports: what it said of each.
        graphs: the rewritten graphs.
    """

    function: Callable[..., Any]
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    graphs: list[torch.fx.Graph] = field(default_factory=list)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    @property
    def report(self) -> Report:
        return Report(
            tuple(s for r in self.reports for s in r.sites),
            tuple(m for r in self.reports for m in r.misses),
        )

    @property
    def epilogues(self) -> list[str]:
        return [s.epilogue for s in self.report.sites]

    @property
    def reasons(self) -> list[str]:
        """The forward's: the backward is not what the user wrote."""
        return [m.reason for m in self.report.misses if not m.backward]


def fuse(
    model: Callable[..., Any], numerics: str = "accurate", hopper: bool = False, **kwargs: Any
) -> Fused:
    """``model`` compiled with the pass; nothing is traced before the first call.

    Args:
        hopper: whether the pass believes that the graph runs on an H200; it runs on the CPU.
    """
    fused = Fused(model)

    def apply(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
        fused.before.append(text(gm.graph))
        with as_on_hopper(gm.graph) if hopper else contextlib.nullcontext():
            fused.reports.append(run(gm.graph, numerics))
        fused.after.append(text(gm.graph))
        fused.graphs.append(gm.graph)
        gm.recompile()
        return gm

    def inference(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(apply(gm).forward)

    def partition(gm: torch.fx.GraphModule, joint_inputs: Any, **keywords: Any) -> Any:
        return min_cut_rematerialization_partition(apply(gm), joint_inputs, **keywords)

    def plain(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(gm.forward)

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        return aot_module_simplified(
            gm,
            inputs,
            fw_compiler=plain,
            bw_compiler=plain,
            inference_compiler=inference,
            partition_fn=partition,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
        )

    fused.function = torch.compile(model, backend=backend, **kwargs)
    return fused


@contextlib.contextmanager
def as_on_hopper(graph: torch.fx.Graph) -> Iterator[None]:
    """Inside, the graph's fake tensors are on a GPU, and that is an H200."""
    _move(graph, "cuda")
    with mock.patch.object(kernels, "hopper_sms", lambda d: SMS if d.type == "cuda" else None):
        yield
    _move(graph, "cpu")


def _move(graph: torch.fx.Graph, device: str) -> None:
    def moved(value: FakeTensor) -> torch.Tensor:
        if value.dim() == 0:
            return value  # a number of the host's, perhaps
        with value.fake_mode:
            base = torch.empty(0, dtype=value.dtype, device=device)
            return base.as_strided(value.shape, value.stride(), value.storage_offset())

    for node in graph.nodes:
        value = node.meta.get("val")
        node.meta["val"] = torch.utils._pytree.tree_map_only(FakeTensor, moved, value)


def text(graph: torch.fx.Graph) -> str:
    return "\n".join(line for node in graph.nodes if (line := node_text(node)))


# --- models that are a Linear and a tail ---


class Model(nn.Module):
    """A Linear and whatever follows it; wide enough that all stages matter."""

    def __init__(self, tail: Tail, dtype: torch.dtype = torch.float32, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40, bias=bias, dtype=dtype)
        nn.init.normal_(self.linear.weight)
        self.tail = tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.linear(x))


def check(
    model: nn.Module, x: torch.Tensor, epilogues: list[str], numerics: str = "accurate", **kwargs
) -> list[str]:
    """Asserts the sites, and an error against float64 like eager's; the misses' reasons."""
    with torch.no_grad():
        fused = fuse(model, numerics, **kwargs)
        found, eager = fused(x), model(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert fused.epilogues == epilogues
    assert found.dtype == eager.dtype and found.shape == eager.shape
    assert found.stride() == eager.stride()
    assert error(found, exact) <= error(eager, exact) + CHANCE[found.dtype]
    if numerics == "bitwise":
        assert torch.equal(found, eager)
    return fused.reasons


def compose(*tails: Tail) -> Tail:
    def tail(x: torch.Tensor) -> torch.Tensor:
        for step in tails:
            x = step(x)
        return x

    return tail
