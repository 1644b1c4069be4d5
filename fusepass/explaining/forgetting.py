"""Dynamo forgets what it did for ``explain``: the user's functions stay as they were.

Dynamo keeps what it compiles with the function's code, and counts it: beyond its recompile limit a
function runs eager for good. It also remembers the sizes a function was called with, and compiles
for any size when it meets another.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
from torch._dynamo import convert_frame, pgo
from torch._dynamo.guards import DeletedGuardManagerWrapper


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """What Dynamo compiles in this thread is dropped at the end, and sizes it saw are forgotten.

    What it has compiled for the user before is kept. To be entered before caches are switched off:
    the first look at the sizes seen is where Dynamo reads its record of earlier processes.
    """
    compiled: list[tuple[CodeType, CodeType]] = []
    thread = threading.get_ident()

    def note(code: CodeType, new_code: CodeType) -> CodeType | None:
        if threading.get_ident() == thread:
            compiled.append((code, new_code))
        return None  # the new code as it is

    sizes = copy.deepcopy(pgo.get_code_state())
    hook = convert_frame.register_bytecode_hook(note)
    try:
        yield
    finally:
        hook.remove()
        made = {id(new) for _, new in compiled}
        for code in {id(old): old for old, _ in compiled}.values():
            _forget(code, made)
        state = pgo.get_code_state()
        state.clear()
        state.update(sizes)


class _Elsewhere:
    """An object that no frame holds."""


_ELSEWHERE = _Elsewhere()


def _forget(code: CodeType, made: set[int]) -> None:
    """Drops what was compiled for ``code``, if its id is in ``made``."""
    entries: list[Any] = list(_debug_get_cache_entry_list(code))
    ours = [entry for entry in entries if id(entry.code) in made]
    others = [entry for entry in entries if id(entry.code) not in made and entry.code is not None]
    limit: int = torch._dynamo.config.accumulated_recompile_limit
    if not others or len(entries) > limit // 2:
        reset_code(code)
        return
    # An entry can only be taken out together with the user's. Emptied, it never matches again; and
    # one that is bound to an object is not counted for frames that do not hold it.
    for entry in ours:
        manager = entry.guard_manager
        empty: Any = DeletedGuardManagerWrapper("it was compiled for fusepass.explain")  # type: ignore[no-untyped-call]
        empty.id_matched_objs = {"fusepass": weakref.ref(_ELSEWHERE)}
        manager.extra_state.invalidate(manager.cache_entry, empty)
