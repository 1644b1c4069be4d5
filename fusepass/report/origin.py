"""Where a node of a graph comes from, in a model author's words: a line, a module."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n\s*([^\n]*)')
_TORCH = os.path.dirname(torch.__file__) + os.sep
# What Dynamo calls the rest of a function behind a break of its graph.
_RESUMED = re.compile(r"torch_dynamo_resume_in_(.+)_at_\d+")


def source_of(*nodes: Node) -> str | None:
    """``model.py:12, in forward: x = x * self.scale``: the user's innermost line of the first node
    that has one; torch's own files are not the user's."""
    for node in nodes:
        frames = _FRAME.findall(node.meta.get("stack_trace") or "")
        users = [f for f in frames if not f[0].startswith(_TORCH)] or frames
        if users:
            path, line, function, code = users[-1]
            function = _RESUMED.sub(r"\1", function)
            return f"{os.path.basename(path)}:{line}, in {function}: {code.strip()}"
    return None


# The compiled module as Dynamo names it. Behind a decorator of its forward it is `args[0]`.
_OUTERMOST = re.compile(r"""^L\[['"]args['"]\]\[0\]\.?|^L\[['"]\w+['"]\]\.?|^self\.?""")


def module_of(node: Node) -> str | None:
    """The module that ``node`` comes from, as attributes of the compiled one: ``layers.0.up``.

    For a node of the backward, the module whose forward it belongs to.
    """
    meta = node.meta
    stack: dict[str, Any] = meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return None
    path = str(list(stack.values())[-1][0])
    path = _OUTERMOST.sub("", path)
    path = re.sub(r"_modules\[['\"]([^'\"]*)['\"]\]|\[['\"]?([^\]'\"]*)['\"]?\]", r".\1\2", path)
    return re.sub(r"\.+", ".", path).strip(".") or None
