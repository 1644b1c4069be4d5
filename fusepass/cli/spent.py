"""Where the time of a compiled call goes: fused products, others, attention, everything else."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

_CALL = "fusepass: one call"
# Names of operators and kernels -> what they do, the first that fits.
_KINDS = (
    ("fused products", re.compile(r"fusepass")),
    ("attention", re.compile(r"attention|flash|fmha|sdpa", re.IGNORECASE)),
    (
        "torch's products",
        re.compile(
            r"^(aten|mkl|mkldnn)::_?\w*(mm|linear|matmul)\w*$|gemm|nvjet|xmma|cutlass|splitK"
        ),
    ),
)
REST = "everything else"


def spent(call: Callable[[], Any], device: str) -> dict[str, float]:
    """What shares of one call's time are spent on what, the largest first.

    On a GPU of the time that its kernels run, on the CPU of the call's own. What the process
    writes to stderr meanwhile is lost.

    Args:
        call: warmed up.
        device: ``"cuda"`` or another.
    """
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device == "cuda" else []
    with _without_stderr(), profile(activities=activities) as profiled, record_function(_CALL):
        call()
    events = list(profiled.events() or ())
    times = _of_kernels(events) if device == "cuda" else _of_operators(events)
    total = sum(times.values())
    shares = {kind: time / total for kind, time in times.items()} if total else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """The profiler's own messages, which no setting of its silences, are not the user's."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def kind_of(name: str) -> str | None:
    """What an operator or kernel of this name does, if the name says so."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), None)


def _of_kernels(events: Iterable[Any]) -> dict[str, float]:
    """Of what ran on the GPU itself; the spans in which torch ran it hold it a second time."""
    times: dict[str, float] = {}
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kind = kind_of(event.name) or REST
            times[kind] = times.get(kind, 0.0) + event.device_time_total
    return times


def _of_operators(events: Iterable[Any]) -> dict[str, float]:
    """An operator with a kind has all the time of what it calls."""
    (whole,) = (e for e in events if e.name == _CALL)
    times: dict[str, float] = {}
    pending = list(whole.cpu_children)
    while pending:
        event = pending.pop()
        kind = kind_of(event.name)
        if kind is None:
            pending.extend(event.cpu_children)
        else:
            times[kind] = times.get(kind, 0.0) + event.cpu_time_total
    return {**times, REST: max(0.0, whole.cpu_time_total - sum(times.values()))}
