"""``python -m fusepass bench``: one's own model, every peer side by side in one process."""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .explaining import without_caches
from .progress import step
from .timing import float32_precision, interleaved

# name -> what torch.compile is given; None is the model as it is.
PEERS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "inductor": {"backend": "inductor"},
    "max-autotune": {"backend": "inductor", "mode": "max-autotune-no-cudagraphs"},
    "fusepass": {"backend": "fusepass"},
}
PROTOCOL = (
    "one process; peers take turns in every round, each round starts with another; median of the "
    "rounds; vs is how many times faster; error is the relative Frobenius norm against the model "
    "in float64"
)


@dataclass(frozen=True)
class Row:
    """One peer's result.

    Attributes:
        median_ms: of the rounds; None if the peer failed.
        spread: the middle half of the rounds over the median.
        error: against float64; None where the model cannot run in float64.
        compile_s: the first call.
        failed: the first line of the error, or None.
    """

    median_ms: float | None = None
    spread: float | None = None
    rounds: int = 0
    error: float | None = None
    compile_s: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Result:
    """Everything one run measured; ``dataclasses.asdict`` of it is the JSON form."""

    model: str
    device: str
    dtype: str
    torch: str
    float32_matmul_precision: str
    fused: int
    protocol: str = PROTOCOL
    rows: dict[str, Row] = field(default_factory=dict)

    def speedup(self, name: str, over: str) -> float | None:
        """How many times faster peer ``name`` is than peer ``over``; None if either has no time."""
        base, own = self.rows.get(over, Row()).median_ms, self.rows[name].median_ms
        return base / own if base and own else None

    def __str__(self) -> str:
        head = (
            f"{self.model}, {self.dtype} on {self.device}, torch {self.torch}, float32 matmul "
            f"precision {self.float32_matmul_precision}; fusepass fused {self.fused}\n"
        )
        columns = (
            "median ms", "middle half", "vs eager", "vs inductor", "error vs float64",
            "first call s",
        )  # fmt: skip
        lines = [head, f"{'':13}" + "".join(f"{c:>{len(c) + 3}}" for c in columns)]
        for name, row in self.rows.items():
            if row.failed is not None:
                lines.append(f"{name:13}   failed: {row.failed}")
                continue
            cells = (
                _text(row.median_ms, ".4g"),
                _text(row.spread, ".1%"),
                _text(self.speedup(name, "eager"), ".2f", "x"),
                _text(self.speedup(name, "inductor"), ".2f", "x"),
                _text(row.error, ".2e"),
                _text(row.compile_s, ".1f"),
            )
            lines.append(
                f"{name:13}"
                + "".join(f"{v:>{len(c) + 3}}" for c, v in zip(columns, cells, strict=True))
            )
        rounds = max((row.rounds for row in self.rows.values()), default=0)
        return "\n".join([*lines, "", f"{rounds} rounds, {self.protocol}."])


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
    from torch._dynamo.utils import counters

    counters["fusepass"].clear()
    tensor = next(t for t in [*model.parameters(), *inputs] if isinstance(t, torch.Tensor))
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[], Any]] = {}
    with torch.inference_mode():
        exact = _exact(model, inputs)
        for peer in peers:
            rows[peer], call = _prepare(peer, model, inputs, exact)
            if call is not None:
                calls[peer] = call
        times = interleaved(calls, tensor.device.type, seconds, _bar) if calls else {}
    for peer, timing in times.items():
        rows[peer] = dataclasses.replace(
            rows[peer], median_ms=timing.median, spread=timing.spread, rounds=len(timing.rounds)
        )
    return Result(
        model=name,
        device=device_name(tensor.device),
        dtype=str(tensor.dtype).removeprefix("torch."),
        torch=torch.__version__,
        float32_matmul_precision=float32_precision(),
        fused=counters["fusepass"]["fused"],
        rows=rows,
    )


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


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def picture(result: Result, path: Path) -> None:
    """Draws the medians as bars.

    Raises:
        ValueError: if matplotlib is not installed, or does not know the file's ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install matplotlib") from error
    times: Mapping[str, float] = {
        name: row.median_ms for name, row in result.rows.items() if row.median_ms is not None
    }
    figure = Figure(figsize=(7, 0.6 * len(times) + 1.4), layout="constrained")
    axes = figure.subplots()
    colors = ["C1" if name == "fusepass" else "C0" for name in times]
    bars = axes.barh(list(times), list(times.values()), color=colors)
    axes.bar_label(bars, fmt="%.4g ms", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("median time, ms (less is better)")
    axes.set_title(f"{result.model}, {result.dtype}, {result.device}", fontsize=10)
    figure.savefig(path, dpi=150)
