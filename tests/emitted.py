"""Includes that kernels are compiled with, by an epilogue's text."""

from __future__ import annotations

from fusepass.ir import DType, Epilogue
from fusepass.ir.emit import emit


def include(text: str, dtype: str) -> str:
    """What a kernel for a site of ``dtype`` ("bf16", "f16", "f32", "f64") includes."""
    return emit(Epilogue.parse(text), DType(dtype))
