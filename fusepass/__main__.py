"""The command line of fusepass. Exit status: 0 well, 1 not what was asked for, 2 wrong usage."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .report import Report

_TARGET = "FILE[:Class], with get_init_inputs() and get_inputs()"
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    # torch says so when it is imported; neither fusepass nor the models it is shown need NumPy.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    lacking = _without_torch()
    if lacking is not None:
        print(f"python -m fusepass: {lacking}", file=sys.stderr)
        return 1
    try:
        status: int = arguments.command(arguments)
    except UsageError as error:
        print(f"python -m fusepass: {error}", file=sys.stderr)
        return 2
    return status


class UsageError(Exception):
    """What is wrong with the command line."""


def _without_torch() -> str | None:
    """Why torch cannot be imported, and what installs it; None if it can."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # an OSError: one of its libraries cannot be loaded
        pip = f"{sys.executable} -m pip install"
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            return f"torch is not installed; this installs it: {pip} 'torch>=2.11'"
        return f"torch cannot be imported ({error}); anew: {pip} --force-reinstall 'torch>=2.11'"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fusepass", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="the model fusepass was started for, side by side")
    demo.add_argument("--full", action="store_true", help="the author's shapes also on a CPU")
    _add_device(demo)
    demo.add_argument("--dtype", default="float32", choices=_DTYPES[:3], help="of the model")
    demo.set_defaults(command=_demo)

    explain = commands.add_parser("explain", help="what of a model fuses, what not, and why")
    explain.add_argument("model", help=_TARGET)
    _add_device(explain)
    _add_dtype(explain)
    explain.add_argument("--train", action="store_true", help="with gradients, as in training")
    explain.add_argument("--numerics", choices=("accurate", "bitwise"), help="the contract")
    explain.add_argument("--json", action="store_true", help="print JSON instead of text")
    explain.add_argument("--html", type=Path, metavar="OUT", help="also write a page")
    explain.add_argument(
        "--at-least", type=int, default=0, metavar="N", help="exit with 1 if fewer sites fuse"
    )
    explain.set_defaults(command=_explain)

    doctor = commands.add_parser("doctor", help="what this machine can run, and what it lacks")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")
    doctor.add_argument("--quick", action="store_true", help="compile and run nothing")
    doctor.set_defaults(command=_doctor)

    build = commands.add_parser("build", help="build kernels ahead, e.g. for a container")
    build.add_argument(
        "--arch", nargs="+", metavar="sm_XX", help="e.g. sm_90a; default: the GPUs of this machine"
    )
    build.add_argument("--model", help=f"build what this model needs: {_TARGET}")
    _add_dtype(build)
    build.add_argument("--train", action="store_true", help="the model's training as well")
    build.add_argument("--any-batch", action="store_true", help="every batch size as well")
    build.set_defaults(command=_build)

    bench = commands.add_parser("bench", help="time a model: eager, Inductor and fusepass")
    bench.add_argument("model", nargs="?", help=f"{_TARGET}; default: the demo's")
    _add_device(bench)
    _add_dtype(bench)
    bench.add_argument("--peers", nargs="+", metavar="PEER", help="default: all")
    bench.add_argument("--quick", action="store_true", help="no max-autotune, 2 s of timing")
    bench.add_argument("--seconds", type=float, help="of timing, in all; default: 5")
    bench.add_argument("--json", type=Path, metavar="OUT", help="also write the result as JSON")
    bench.add_argument("--picture", type=Path, metavar="OUT", help="also draw it: .png, .svg, .pdf")
    bench.set_defaults(command=_bench)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU if there is one"
    )


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=_DTYPES, help="default: the model's own")


# --- commands -----------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    from .cli.demo import run

    run(arguments.device, arguments.full, arguments.dtype)
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    import torch

    from .explaining.explain import explain
    from .explaining.page import html
    from .progress import step

    model, inputs = _load(arguments.model, arguments.device, arguments.dtype)
    options = {"fusepass.numerics": arguments.numerics} if arguments.numerics else None
    with torch.set_grad_enabled(arguments.train), step("tracing and fusing"):
        report = explain(model.train(arguments.train), *inputs, options=options)
    print(_explained_json(arguments.model, report) if arguments.json else report)
    if arguments.html:
        facts = {"torch": torch.__version__, "device": _device(arguments.device)}
        _write(arguments.html, html(report, arguments.model, facts))
    return 0 if len(report.fused) >= arguments.at_least else 1


def _explained_json(target: str, report: Report) -> str:
    import json

    import torch

    graphs = [{"before": before, "after": after} for before, after in report.graphs]
    facts = {"model": target, "torch": torch.__version__}
    return json.dumps({**facts, **json.loads(report.to_json()), "graphs": graphs}, indent=1)


def _doctor(arguments: argparse.Namespace) -> int:
    from .cli import doctor

    checks = doctor.examine(quick=arguments.quick)
    print(doctor.to_json(checks) if arguments.json else doctor.to_text(checks))
    return 1 if any(c.state == "problem" for c in checks) else 0


def _build(arguments: argparse.Namespace) -> int:
    from .cli import ahead

    try:
        archs = ahead.architectures(arguments.arch)
    except ValueError as error:
        raise UsageError(error) from None
    calls = []
    if arguments.model:
        model, inputs = _load(arguments.model, "cpu", arguments.dtype)
        calls = ahead.calls_of(model, inputs, train=arguments.train)
        calls = ahead.with_any_rows(calls) if arguments.any_batch else calls
    return ahead.build(archs, calls)


def _bench(arguments: argparse.Namespace) -> int:
    from .cli import bench, measured

    peers = arguments.peers or list(bench.QUICK if arguments.quick else bench.PEERS)
    seconds = arguments.seconds or (2.0 if arguments.quick else 5.0)
    if unknown := [p for p in peers if p not in bench.PEERS]:
        raise UsageError(f"no peer {unknown[0]!r}; the peers are {', '.join(bench.PEERS)}")
    name, model, inputs = _bench_model(arguments)
    result = bench.run(name, model, inputs, peers, seconds)
    print(result)
    if arguments.json:
        _write(arguments.json, result.to_json() + "\n")
    if arguments.picture:
        try:
            measured.picture(result, arguments.picture)
        except (ValueError, OSError) as error:
            raise UsageError(error) from None
    return 1 if any(row.failed for row in result.rows.values()) else 0


def _bench_model(arguments: argparse.Namespace) -> tuple[str, torch.nn.Module, list[Any]]:
    if arguments.model:
        return (arguments.model, *_load(arguments.model, arguments.device, arguments.dtype))
    import torch

    from .cli.demo import MODEL, load

    device, dtype = _device(arguments.device), arguments.dtype or "float32"
    return (MODEL.name, *load(device, device == "cuda", getattr(torch, dtype)))


# --- shared -------------------------------------------------------------------------------------


def _device(chosen: str | None) -> str:
    import torch

    return chosen or ("cuda" if torch.cuda.is_available() else "cpu")


def _load(target: str, device: str | None, dtype: str | None) -> tuple[torch.nn.Module, list[Any]]:
    import torch

    from .cli.modelfile import load_model

    try:
        model, inputs, _ = load_model(target, _device(device))
    except ValueError as error:
        raise UsageError(error) from None
    if dtype is None:
        return model, inputs
    wanted = getattr(torch, dtype)

    def cast(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(wanted) if floating else value

    return model.to(wanted), [cast(v) for v in inputs]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
