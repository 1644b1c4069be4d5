"""``fusepass.explain``: compile a model once, caches off, and say what fused and what did not."""

from __future__ import annotations

from typing import Any

import torch

from .report import Report


def explain(model: Any, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Report:
    """Compiles and runs ``model(*args, **kwargs)`` once with backend "fusepass" and reports.

    Compile caches are off, because a warm cache does not run the pass at all. The model is run
    once, in the grad mode of the caller: with gradients enabled the report is that of training.

    Args:
        model: an ``nn.Module`` or a function, not compiled yet.
        options: as in ``torch.compile(..., options=...)``.

    Returns:
        Report: ``.sites`` and ``.misses`` of all graphs of the model; ``str(report)`` reads well.

    Raises:
        ValueError: if ``model`` is already the result of torch.compile.
    """
    from . import report as reporting
    from .backend import fusepass

    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise ValueError("explain: `model` is compiled already; pass the original model")
    if not callable(model):
        raise ValueError(f"explain: `model` must be a module or a function, not {type(model)}")

    # A fresh callable is a fresh backend to Dynamo: what it compiled for the user stays as it is,
    # and nothing it compiled before is taken over.
    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        return fusepass(gm, inputs, options={**(options or {}), "force_disable_caches": True})

    with reporting.collect() as gathered:
        torch.compile(model, backend=backend)(*args, **kwargs)
    return gathered.report()
