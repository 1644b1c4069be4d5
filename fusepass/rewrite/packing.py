"""What freezing makes of a Linear on a CPU: its weight packed once, for a GEMM of such weights."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..match.facts import tensor


def is_packed(kn: Node) -> bool:
    """Whether Inductor will pack ``kn``, the [K, N] matrix of a GEMM, when it freezes the graph.

    Its GEMM, oneDNN's or MKL's, is then faster than the one that the op is lowered to, and oneDNN's
    runs many of the operators behind it as well.
    """
    from torch._inductor import config

    value = tensor(kn)
    if value is None or value.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    freezes = config.freezing and not torch.is_grad_enabled() and config.cpp.weight_prepack
    enabled = bool(freezes and torch.backends.mkldnn.enabled)
    return enabled and _has_gemm(value.dtype) and _is_constant(kn)


def _has_gemm(dtype: torch.dtype) -> bool:
    onednn = torch.ops.mkldnn
    if dtype == torch.float32:
        return torch._C.has_mkl or onednn._is_mkldnn_acl_supported()
    if dtype == torch.bfloat16:
        return bool(onednn._is_mkldnn_bf16_supported())
    return dtype == torch.float16 and bool(onednn._is_mkldnn_fp16_supported())


def _is_constant(node: Node) -> bool:
    """Whether ``node`` is made of parameters and buffers alone."""
    parameters = set(_parameters(node.graph))
    seen, pending = set(), [node]
    while pending:
        current = pending.pop()
        if current.op == "placeholder" and current not in parameters:
            return False
        pending.extend(i for i in current.all_input_nodes if i not in seen)
        seen.update(current.all_input_nodes)
    return True


def _parameters(graph: torch.fx.Graph) -> list[Node]:
    """The inputs that freezing turns into constants: it asks that they come first."""
    context = torch._guards.TracingContext.try_get()
    count = len(context.params_flat or ()) if context is not None else 0
    return graph.find_nodes(op="placeholder")[:count]
