"""``linear`` of an x that nobody reads again: its memory may be written over.

In "highest" pieces of operands as large as they are would lie beside them for the call. Of an x
[K, M], whose rows of the output are written part after part, columns are free as soon as theirs
are there. Below ``torch.compile`` alone, in graphs in which x dies (rewrite/dying.py); what is left
in it is not said.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ARGUMENTS = (
    "(Tensor(a!) x, Tensor weight, Tensor? bias, str epilogue, Tensor[] operands) -> Tensor"
)
# However x lies, the op takes it: Inductor must not copy what is there to be written over.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)


def _consuming(*args: Any) -> Tensor:
    from ..kernels import load_binding

    if args[0].device.type == "cuda" and load_binding():
        out: Tensor = torch.ops.fusepass.linear.consuming(*args)
        return out
    return _fake(*args)


def _fake(*args: Any) -> Tensor:
    out: Tensor = torch.ops.fusepass.linear.default(*args)
    return out


def define(library: torch.library.Library) -> None:
    """Adds the overload ``linear.consuming``."""
    library.define(f"linear.consuming{_ARGUMENTS}", tags=_TAGS)
    library.impl("linear.consuming", _consuming, "CompositeExplicitAutograd")
    torch.library.register_fake("fusepass::linear.consuming", _fake, lib=library)
