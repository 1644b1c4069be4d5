"""The epilogue as a program: pure values, their text, rules, reference, cost and device code.

Nothing here imports the rest of fusepass, and torch only where numbers are computed.
"""

from .epilogue import Builder, Epilogue, Node, Output
from .types import Z1, DType, Input, Number, Ref, Z

__all__ = ["Z1", "Builder", "DType", "Epilogue", "Input", "Node", "Number", "Output", "Ref", "Z"]
