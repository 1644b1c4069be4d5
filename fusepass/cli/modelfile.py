"""Loads a model from a file: ``FILE[:Class]``, by the convention KernelBench uses.

The file defines a module class (``Model`` unless named), ``get_init_inputs()`` with the arguments
of its constructor and ``get_inputs()`` with those of its forward.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def load_module(path: str | Path) -> ModuleType:
    """Runs the Python file at ``path`` as a module.

    Raises:
        ValueError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give FILE.py or FILE.py:Class")
    spec = importlib.util.spec_from_file_location(f"fusepass_model_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_model(target: str, device: str) -> tuple[torch.nn.Module, list[Any], ModuleType]:
    """Builds ``FILE[:Class]`` with its own ``get_init_inputs`` and ``get_inputs``.

    Args:
        target: a path, optionally with ``:Class`` behind it.
        device: where the model and its input tensors are put, e.g. ``"cuda"``.

    Returns:
        (model in eval mode, inputs, the file's module).

    Raises:
        ValueError: naming what the file lacks.
    """
    path, _, name = target.rpartition(":") if ":" in target else (target, "", "")
    name = name or "Model"
    module = load_module(path)
    for needed in (name, "get_inputs"):
        if not hasattr(module, needed):
            raise ValueError(f"{path}: defines no {needed!r}")
    init = module.get_init_inputs() if hasattr(module, "get_init_inputs") else []
    model = getattr(module, name)(*init)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{path}: {name} is not an nn.Module")
    return model.to(device).eval(), to_device(module.get_inputs(), device), module


def to_device(inputs: list[Any], device: str) -> list[Any]:
    """The inputs with every tensor on ``device``."""
    return [v.to(device) if isinstance(v, torch.Tensor) else v for v in inputs]
