"""fusepass: ``torch.compile(model, backend="fusepass")`` fuses Linear epilogues into the GEMM.

Importing this package is free: torch's compiler, sympy, CUDA and the disk are touched on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Epilogue", "Report", "__version__", "explain", "fusepass"]

if TYPE_CHECKING:
    from .backend import fusepass
    from .explaining.explain import explain
    from .ir import Epilogue
    from .report import Report

_HOME = {
    "Epilogue": ".ir",
    "Report": ".report",
    "explain": ".explaining.explain",
    "fusepass": ".backend",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fusepass' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
