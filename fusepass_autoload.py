"""Runs at the end of ``import torch`` (entry point group ``torch.backends``).

It lies outside the package so that a broken fusepass cannot break ``import torch``, and where
``FUSEPASS`` is not set it reads one environment variable and returns.
"""

from __future__ import annotations

import os

activated = False  # in this process, with FUSEPASS=1


def activate() -> None:
    """Arranges for Inductor to get the pass, if ``FUSEPASS=1``; never raises."""
    global activated
    if os.environ.get("FUSEPASS") in (None, "", "0"):
        return
    try:
        _hook()
    except Exception as error:
        _warn(error)
    else:
        activated = os.environ["FUSEPASS"] == "1"


def _hook() -> None:
    import sys
    from importlib.abc import MetaPathFinder

    target = "torch._inductor.compile_fx"
    if target in sys.modules:
        _install(sys.modules[target])
        return

    class Finder(MetaPathFinder):
        """Lets the import of Inductor's entry point run, then installs the pass in it."""

        def find_spec(self, fullname, path, _target=None):  # type: ignore[no-untyped-def]
            if fullname != target:
                return None
            from importlib.machinery import PathFinder

            sys.meta_path.remove(self)
            spec = PathFinder.find_spec(fullname, path)
            if spec is None or spec.loader is None:
                return spec
            run = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                run(module)
                _install(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Finder())


def _install(module) -> None:  # type: ignore[no-untyped-def]
    value = os.environ.get("FUSEPASS")
    if value not in (None, "", "0", "1"):
        _tell(f"fusepass: FUSEPASS={value!r} is ignored: use 1 to fuse every torch.compile, or 0")
        return
    try:
        from fusepass.backend import install

        install(module)
    except Exception as error:
        _warn(error)


def _tell(line: str) -> None:
    # Not as a warning: programs that compile models like to filter those.
    import sys

    print(line, file=sys.stderr, flush=True)


def _warn(error: Exception) -> None:
    import warnings

    warnings.warn(
        f"FUSEPASS=1, but fusepass could not be loaded ({type(error).__name__}: {error}); "
        "torch.compile runs without it. Reinstall fusepass or unset FUSEPASS.",
        stacklevel=2,
    )
