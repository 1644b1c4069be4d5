"""The ops: importing this package defines them all."""

from . import gemm, linear

__all__ = ["gemm", "linear"]
