"""The command line: ``python -m fusepass demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    arguments = _parser().parse_args(argv)
    status: int = arguments.command(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fusepass", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser("demo", help="the model fusepass was started for, side by side")
    demo.add_argument("--full", action="store_true", help="the author's shapes also on a CPU")
    demo.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    demo.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float16", "bfloat16"),
        help="of the model",
    )
    demo.set_defaults(command=_demo)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run

    run(arguments.device, arguments.full, arguments.dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
