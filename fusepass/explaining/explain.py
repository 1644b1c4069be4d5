"""``fusepass.explain``: trace a model once, caches off, and say what fused and what did not."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor.custom_graph_pass import CustomGraphPass

from ..ir import Epilogue
from ..ir.outputs import without_gemms
from ..kernels.calls import Call, Linears, calls_in, linears_in
from ..report import Report, Site


def explain(model: Any, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Report:
    """Traces and runs ``model(*args, **kwargs)`` once with backend "fusepass" and reports.

    Compile caches are off, because a warm cache does not run the pass at all, and Inductor
    generates no code. The model is run once, in the grad mode of the caller: with gradients enabled
    the report is that of training.

    Args:
        model: an ``nn.Module`` or a function, not compiled yet.
        options: as in ``torch.compile(..., options=...)``.

    Returns:
        Report: ``.sites`` and ``.misses`` of all graphs of the model; ``str(report)`` reads well.
        Each site's ``.kernel`` and ``.why`` hold for the shapes it was run with; ``.graphs`` holds
        the text of each graph before and after the pass.

    Raises:
        ValueError: if ``model`` is already the result of torch.compile, or not callable.
    """
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise ValueError("explain: `model` is compiled already; pass the original model")
    if not callable(model):
        raise ValueError(f"explain: `model` must be a module or a function, not {type(model)}")
    report, calls = observe(model, args, kwargs, options)
    return _with_kernels(report, calls)


def observe(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any] | None
) -> tuple[Report, list[list[Call | Linears]]]:
    """Traces and runs ``model`` once; the report, and the calls that each graph got."""
    from torch._inductor.compile_fx import compile_fx

    from .. import report as reporting
    from ..backend import PassChain, passes_of
    from ..rewrite.graph_pass import FusePass
    from ..settings import split_options
    from .forgetting import forgotten

    settings, theirs = split_options(options)
    before, after = Snapshot(), Snapshot()
    own = [p for p in passes_of(theirs) if not isinstance(p, FusePass)]
    chain = PassChain((*own, before, FusePass(settings.numerics), after))
    theirs["joint_custom_pre_pass"] = chain

    # A fresh callable is a fresh backend to Dynamo: what it compiled for the user stays as it is,
    # and nothing it compiled before is taken over. The limit is lifted for the same reason: what of
    # it the user's model has used up is not explain's.
    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        config = torch._TorchCompileInductorWrapper(None, theirs, None).config
        return compile_fx(gm, inputs, inner_compile=_interpreted, config_patches=config)

    unlimited: Any = torch._dynamo.config.patch(
        recompile_limit=1 << 20, accumulated_recompile_limit=1 << 20
    )
    compiled: Any = torch.compile(model, backend=backend)
    breaks = _breaks()
    with forgotten(), unlimited, without_caches(), reporting.collect() as gathered:
        compiled(*args, **kwargs)
    graphs = tuple(zip(before.texts, after.texts, strict=True))
    notes = _notes(len(graphs), _breaks() - breaks)
    # Calls the user's program made itself are in the graph before the pass as well.
    calls = [
        [c for c in new if c.node not in {o.node for o in old}]
        for old, new in zip(before.calls, after.calls, strict=True)
    ]
    return dataclasses.replace(gathered.report(), graphs=graphs, notes=notes), calls


def _breaks() -> Counter[str]:
    """How often Dynamo broke a graph or made none so far, by its own words for why."""
    counters = torch._dynamo.utils.counters
    return Counter(counters["graph_break"]) + Counter(counters["unimplemented"])


def _notes(graphs: int, breaks: Counter[str]) -> tuple[str, ...]:
    """What is not in the graphs, and why: the part of a model that Dynamo leaves to Python."""
    reasons = tuple(dict.fromkeys(map(_reason, breaks)))
    if graphs == 0:
        because = f": {'; '.join(reasons)}" if reasons else ""
        return (f"torch.compile made no graph of this model{because}",)
    return tuple(f"a part runs outside of the graphs: {reason}" for reason in reasons)


def _reason(told: str) -> str:
    """Dynamo's explanation out of its message of several lines: the reason, where it names one."""
    found = re.search(r"Explanation: ([^\n]*)", told)
    explained = found[1] if found else told.partition("\n")[0]
    return explained.rpartition(" Reason: ")[2].strip().rstrip(".")


def _interpreted(gm: torch.fx.GraphModule, *_: Any, **__: Any) -> Any:
    """Stands for Inductor's code generation, which nobody asked about and which takes long."""
    return make_boxed_func(gm.forward)


@contextlib.contextmanager
def without_caches() -> Iterator[None]:
    """Everything is compiled anew: a warm cache neither runs the pass nor counts what it fused."""
    patched: Any = torch._inductor.config.patch(force_disable_caches=True)  # type: ignore[no-untyped-call]
    with patched, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")  # its own consequence
        yield


def _with_kernels(report: Report, calls: Sequence[Sequence[Call | Linears]]) -> Report:
    """The report with the kernel that each site gets at these shapes, and why."""
    from .choice import Choice, choose

    pending = {
        graph: [call for call in of_graph if isinstance(call, Call)]
        for graph, of_graph in enumerate(calls)
    }
    sites, chosen = list[Site](), dict[tuple[int, str], Choice]()
    for site in report.sites:
        if site.why is not None:  # it is known
            sites.append(site)
            continue
        place = (site.graph, site.epilogue)
        call = _take(pending[site.graph], site)
        if call is not None:
            chosen[place] = choose(call)
        choice = chosen.get(place)  # of two products that are one call, the first one's
        if choice is not None:
            site = dataclasses.replace(site, kernel=choice.kernel, why=choice.why)
        sites.append(site)
    return dataclasses.replace(report, sites=tuple(sites))


def _take(pending: list[Call], site: Site) -> Call | None:
    """The first call left that is the site's: they stand in one order, but for biases by hand.

    None for the second of two products, whose call is the first one's.
    """
    wanted = str(without_gemms(Epilogue.parse(site.epilogue)))
    alike = (i for i, call in enumerate(pending) if call.result == wanted)
    index = next(alike, None)
    return None if index is None else pending.pop(index)


class Snapshot(CustomGraphPass):
    """Keeps the text and the fused calls of every graph it is shown; changes nothing."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: list[list[Call | Linears]] = []

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.calls.append([*calls_in(graph), *linears_in(graph)])
        self.texts.append("\n".join(line for node in graph.nodes if (line := node_text(node))))

    def uuid(self) -> Any | None:
        return None  # a graph seen must not come from a cache


def node_text(node: torch.fx.Node) -> str:
    """One node as a reader wants it: ``mul: f32[8, 48] = aten.mul(addmm, 0.5)``."""
    if node.op == "placeholder":
        return f"{node.name}{_type_text(node)}"
    if node.op == "output":
        return f"return {_argument_text(node.args[0])}"
    if node.op == "get_attr":
        return f"{node.name}{_type_text(node)} = self.{node.target}"
    arguments = [_argument_text(a) for a in node.args]
    arguments += [f"{k}={_argument_text(v)}" for k, v in node.kwargs.items()]
    target = getattr(node.target, "overloadpacket", None) or getattr(
        node.target, "__name__", node.target
    )
    return f"{node.name}{_type_text(node)} = {target}({', '.join(arguments)})"


_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


def _type_text(node: torch.fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ""
    dtype = str(value.dtype).removeprefix("torch.")
    return f": {_DTYPES.get(dtype, dtype)}[{', '.join(map(str, value.shape))}]"


def _argument_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_argument_text, value))}]"
    return repr(value) if isinstance(value, str) else str(value)
