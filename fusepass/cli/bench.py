"""``python -m fusepass bench``: one's own model, every peer side by side in one process."""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..explaining.explain import without_caches
from ..match.followers import ATTENTION, NOTHING
from ..progress import step
from ..report import Entry, Flops, Miss, Report, collect
from ..report.summary import rows as rows_of
from ..rewrite.decision import ALONE
from .measured import Result, Row
from .spent import spent
from .timing import float32_precision, interleaved

# name -> what torch.compile is given; None is the model as it is.
PEERS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "inductor": {"backend": "inductor"},
    "max-autotune": {"backend": "inductor", "mode": "max-autotune-no-cudagraphs"},
    "fusepass": {"backend": "fusepass"},
}
_HOPELESS = (NOTHING, ATTENTION, ALONE)
QUICK = ("eager", "inductor", "fusepass")  # max-autotune takes minutes to compile


def run(
    name: str,
    model: torch.nn.Module,
    inputs: Sequence[Any],
    peers: Sequence[str] = tuple(PEERS),
    seconds: float = 5.0,
) -> Result:
    """Compiles the model with every peer, checks and times them.

    Args:
        name: of the model, for the table.
        model: on its device, in eval mode.
        inputs: of its forward, on the same device.
        peers: names of ``PEERS``.
        seconds: of timing, in all.
    """
    tensor = next(t for t in [*model.parameters(), *inputs] if isinstance(t, torch.Tensor))
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[], Any]] = {}
    with torch.inference_mode(), collect() as gathered:
        exact = _exact(model, inputs)
        for peer in peers:
            rows[peer], call = _prepare(peer, model, inputs, exact)
            if call is not None:
                calls[peer] = call
        times = interleaved(calls, tensor.device.type, seconds, _bar) if calls else {}
        spent_on = spent(calls["fusepass"], tensor.device.type) if "fusepass" in calls else {}
    for peer, timing in times.items():
        rows[peer] = dataclasses.replace(rows[peer], rounds_ms=timing.rounds)
    report = gathered.report()
    return Result(
        model=name,
        device=device_name(tensor.device),
        dtype=str(tensor.dtype).removeprefix("torch."),
        torch=torch.__version__,
        float32_matmul_precision=float32_precision(),
        fused=len(report.fused),
        rows=rows,
        spent=spent_on,
        next=_next(report),
    )


def _next(report: Report) -> str | None:
    """The layers with the most work that something follows which might have been fused."""
    hopeful: list[Entry] = [s for s in report.gemms if s.flops and s.follows]
    hopeful += [m for m in report.misses if m.flops and not m.reason.startswith(_HOPELESS)]
    found = next(iter(rows_of(hopeful)), None)
    if found is None:
        return None
    share = Flops.of(report.sites, report.misses).share(found.flops)
    entry = found.first
    reason = entry.reason if isinstance(entry, Miss) else str(entry.follows)
    reason, _, _ = reason.partition(": `")
    return f"{found.title}, {share} of the products' FLOPs: {reason}"


def _prepare(
    peer: str, model: torch.nn.Module, inputs: Sequence[Any], exact: list[torch.Tensor] | None
) -> tuple[Row, Callable[[], Any] | None]:
    """The peer's call, compiled and checked; no call if it fails."""
    arguments = PEERS[peer]
    torch._dynamo.reset()
    call = model if arguments is None else torch.compile(model, **arguments)
    start = time.perf_counter()
    try:
        with step(f"compiling with {peer}"), without_caches():
            out = call(*inputs)
            _synchronize()
    except Exception as error:  # a peer that fails is a row of the table, whatever it raised
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Row(failed=reason), None
    seconds = time.perf_counter() - start
    distance = None if exact is None else _error(_tensors(out), exact)
    return Row(error=distance, compile_s=seconds), lambda: call(*inputs)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _tensors(out: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(out)
    return [t for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]


def _exact(model: torch.nn.Module, inputs: Sequence[Any]) -> list[torch.Tensor] | None:
    """The outputs in float64, or None where the model cannot run so: then no error is shown."""
    try:
        wide = copy.deepcopy(model).double()
        return _tensors(wide(*pytree.tree_map_only(torch.Tensor, _double, tuple(inputs))))
    except (RuntimeError, TypeError) as error:
        print(f"fusepass: no float64 reference: {error}", file=sys.stderr)
        return None


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _error(out: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    pairs = list(zip(out, exact, strict=True))
    distance = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for _, b in pairs)
    return (distance / size) ** 0.5 if size else distance**0.5


def _bar(share: float) -> None:
    if not sys.stderr.isatty():
        return
    width = 40
    done = round(share * width)
    end = "\r" if share < 1 else "\r\033[K"
    print(f"timing [{'#' * done}{'.' * (width - done)}] {share:4.0%}", end=end, file=sys.stderr)
    sys.stderr.flush()


def device_name(device: torch.device) -> str:
    """A device as a reader of a table wants it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"the CPU ({threads} thread{'s' * (threads != 1)})"
    return str(device)
