"""``python -m fusepass demo``: the model fusepass was started for, before and after, side by side.

The model stands in ``examples/gemm_scaling_hardtanh_gelu.py`` as its author wrote it; nothing here
or there changes a line of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..explaining.explain import explain
from ..progress import step
from . import modelfile
from .timing import float32_precision, interleaved

MODEL = Path(__file__).parents[1] / "examples" / "gemm_scaling_hardtanh_gelu.py"
SMALL = {"batch_size": 256, "in_features": 1024, "out_features": 1024}  # seconds on two CPU cores

Call = Callable[[], torch.Tensor]


def run(device: str | None = None, full: bool = False, dtype: str = "float32") -> None:
    """Prints the demo.

    Args:
        device: ``"cuda"`` or ``"cpu"``; by default the GPU if there is one.
        full: the author's own shapes also on a CPU (they are always used on a GPU).
        dtype: of the model and its inputs, ``float32``, ``float16`` or ``bfloat16``.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, inputs = load(device, full or device == "cuda", getattr(torch, dtype))
    print(inspect.getsource(type(model).forward).rstrip(), "\n")
    print(f"{_shape_text(inputs, model)} on {_device_text(device)}, torch {torch.__version__}\n")
    with torch.inference_mode():
        with step("tracing and fusing"):
            report = explain(model, *inputs)
        for before, after in report.graphs:
            print("Before fusepass's pass (ATen graph)\n" + _indent(before))
            print("\nAfter\n" + _indent(after) + "\n")
        print(report, "\n")
        peers = compile_peers(model, inputs)
        errors = errors_of(peers, model, inputs)
        print(_rightness(errors) + "\n", flush=True)
        print_table(peers, errors, device)


def load(device: str, full: bool, dtype: torch.dtype) -> tuple[torch.nn.Module, list[Any]]:
    """The demo's model and inputs, at the author's shapes or at small ones."""
    module = modelfile.load_module(MODEL)
    if not full:
        vars(module).update(SMALL)
    model = module.Model(*module.get_init_inputs()).to(device, dtype).eval()
    return model, [x.to(device, dtype) for x in module.get_inputs()]


def compile_peers(model: torch.nn.Module, inputs: list[Any]) -> dict[str, Call]:
    """Eager, Inductor and fusepass on the same model, compiled and run once."""
    torch._dynamo.reset()
    peers: dict[str, Call] = {"eager": lambda: model(*inputs)}
    for name in ("inductor", "fusepass"):
        compiled = torch.compile(model, backend=name)
        with step(f"compiling with {name}"):
            compiled(*inputs)
        peers[name] = lambda compiled=compiled: compiled(*inputs)  # type: ignore[misc]
    return peers


def errors_of(
    peers: dict[str, Call], model: torch.nn.Module, inputs: list[Any]
) -> dict[str, float]:
    """Each peer's error against float64, relative, in the Frobenius norm."""
    exact = reference(model, inputs)
    return {name: relative_error(call(), exact) for name, call in peers.items()}


def _rightness(errors: dict[str, float]) -> str:
    return (
        f"The fused result is {errors['fusepass']:.2e} from the one in float64, "
        f"eager's is {errors['eager']:.2e} (relative Frobenius norm)."
    )


def print_table(peers: dict[str, Call], errors: dict[str, float], device: str) -> None:
    """Error against float64 and median time of each peer."""
    with step("timing"):
        times = interleaved(peers, device, seconds=3.0)
    ratios = f"{'vs eager':>10} {'vs inductor':>12}"
    print(f"{'':10} {'error vs float64':>17} {'median ms':>10} {ratios}")
    for name, timing in times.items():
        eager, inductor = (times[p].median / timing.median for p in ("eager", "inductor"))
        ratios = f"{eager:>9.2f}x {inductor:>11.2f}x"
        print(f"{name:10} {errors[name]:17.2e} {timing.median:10.3f} {ratios}")
    print(
        "\nError: relative Frobenius norm; vs: how many times faster. "
        f"Times: {len(times['eager'].rounds)} interleaved rounds, one process, "
        f"{'device events' if device == 'cuda' else 'host clock'}."
    )


def reference(model: torch.nn.Module, inputs: list[Any]) -> torch.Tensor:
    """The model's output in float64, on the inputs' device."""
    import copy

    wide = copy.deepcopy(model).double()
    out: torch.Tensor = wide(*[x.double() for x in inputs])
    return out


def relative_error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """``|out - exact| / |exact|`` in the Frobenius norm."""
    return float((out.double() - exact).norm() / exact.norm())


def _shape_text(inputs: list[torch.Tensor], model: torch.nn.Module) -> str:
    x, out_features = inputs[0], next(iter(model.parameters())).shape[0]
    return f"{x.shape[0]}x{x.shape[1]} -> {out_features}, {str(x.dtype).removeprefix('torch.')}"


def _device_text(device: str) -> str:
    if device != "cuda":
        return f"the CPU ({torch.get_num_threads()} threads)"
    precision = float32_precision()
    return f"{torch.cuda.get_device_name()} (float32 matmul precision {precision!r})"


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.strip().splitlines())
