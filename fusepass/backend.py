"""The torch.compile backend: Inductor with FusePass in front of its joint graph.

``fusepass`` is found through the entry point group ``torch_dynamo_backends``; ``install`` serves
``FUSEPASS=1``, where programs that never heard of fusepass get the pass in plain ``torch.compile``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

from .rewrite.graph_pass import FusePass
from .rewrite.sharing import SharedSplits
from .settings import Settings, split_options, switch

_HOOK = "joint_custom_pre_pass"
_LAST_HOOK = "post_grad_custom_post_pass"


def fusepass(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
    **_future: Any,
) -> Callable[..., Any]:
    """Compiles ``gm`` with Inductor, Linear epilogues fused. Use through torch.compile::

        torch.compile(model, backend="fusepass", mode="max-autotune",
                      options={"fusepass.numerics": "bitwise"})

    Args:
        gm: the graph Dynamo traced.
        example_inputs: its inputs, fake or real tensors and symbolic integers.
        mode: one of torch.compile's modes, as Inductor expands it.
        options: ``fusepass.*`` keys are fusepass's (see settings.py), all others Inductor's.
        name: the compiled region's name, where torch has such a thing.

    Raises:
        RuntimeError: for an option that neither fusepass nor Inductor knows.
        ValueError: for a value an option or an environment variable does not take.
    """
    from torch._inductor.compile_fx import compile_fx

    settings, inductor_options = split_options(options)
    # torch's own wrapper expands the mode and checks the options, so that both mean, and fail,
    # exactly as with backend="inductor".
    config = torch._TorchCompileInductorWrapper(mode, inductor_options, None).config
    if switch() != "0":
        config = with_pass(config, settings)
    keywords: dict[str, Any] = {"config_patches": config}
    if name is not None and "compile_region_name" in inspect.signature(compile_fx).parameters:
        keywords["compile_region_name"] = name
    compiled: Any = compile_fx(gm, example_inputs, **keywords)
    return compiled


def _reset() -> None:
    # torch.compiler.reset() calls this: what Inductor's own backend would reset.
    from torch._inductor.cudagraph_trees import reset_cudagraph_trees

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        reset_cudagraph_trees()


fusepass.reset = _reset  # type: ignore[attr-defined]


def with_pass(config: Mapping[str, Any] | None, settings: Settings) -> dict[str, Any]:
    """Inductor's ``config_patches`` with our passes after those the user had already."""
    patched = dict(config or {})
    for hook, ours in ((_HOOK, FusePass(settings.numerics)), (_LAST_HOOK, SharedSplits())):
        passes = passes_of(patched, hook)
        if not any(isinstance(p, type(ours)) for p in passes):
            # One callable: older versions of torch take no list here.
            patched[hook] = PassChain((*passes, ours))
    return patched


def passes_of(config: Mapping[str, Any], hook: str = _HOOK) -> tuple[Any, ...]:
    """The passes at ``hook``, by ``config`` or else by Inductor's own setting."""
    import torch._inductor.config as inductor_config

    passes = config.get(hook, getattr(inductor_config, hook))
    if passes is None:
        return ()
    if isinstance(passes, PassChain):
        return passes.passes
    if isinstance(passes, (list, tuple)):
        return tuple(passes)
    return (passes,)


class PassChain(CustomGraphPass):
    """Several graph passes as one, in order; cached only if each of them can be."""

    def __init__(self, passes: tuple[Any, ...]) -> None:
        self.passes = passes

    def __call__(self, graph: torch.fx.Graph) -> None:
        for graph_pass in self.passes:
            graph_pass(graph)

    def uuid(self) -> Any | None:
        uuids = [p.uuid() if isinstance(p, CustomGraphPass) else None for p in self.passes]
        return None if None in uuids else tuple(uuids)


def install(compile_fx_module: ModuleType) -> None:
    """Puts FusePass into every use of Inductor: ``FUSEPASS=1``.

    Args:
        compile_fx_module: ``torch._inductor.compile_fx``, whose entry point is wrapped.
    """
    original = compile_fx_module.compile_fx
    signature = inspect.signature(original)

    @functools.wraps(original)
    def compile_fx(*args: Any, **kwargs: Any) -> Any:
        if switch() == "0":
            return original(*args, **kwargs)
        call = signature.bind(*args, **kwargs)  # callers give the config by name or by place
        config = with_pass(call.arguments.get("config_patches"), split_options(None)[0])
        call.arguments["config_patches"] = config
        return original(*call.args, **call.kwargs)

    # compile_fx calls itself by its global name once the patches are in force; with_pass then sees
    # the pass already there and adds nothing.
    compile_fx_module.compile_fx = compile_fx  # type: ignore[attr-defined]
