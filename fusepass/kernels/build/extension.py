"""The part of a build that takes a process of its own: torch's ``load_inline``.

It finds CUDA, ninja and the compiler by settings of the process it runs in, and opens what it has
built. Those of a user's process are not ours to change, not even for as long as a build takes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from . import toolchain

# The child imports from where this process does, whatever has been done to its path.
_CHILD = (
    "import json, sys; path, task = map(json.loads, sys.argv[1:]); sys.path[:] = path; "
    "from fusepass.kernels.build.extension import build_here; build_here(**task)"
)


def build_extension(home: Path, keywords: Mapping[str, object]) -> None:
    """``load_inline(**keywords)`` with the CUDA toolkit ``home``, in another process.

    Args:
        home: the folder of bin/nvcc and of the headers.
        keywords: what JSON can hold; ``build_directory`` is where the library lands.

    Raises:
        BuildError: with the compiler's message.
    """
    task = json.dumps({"home": str(home), "keywords": dict(keywords)})
    command = [sys.executable, "-c", _CHILD, json.dumps([str(p) for p in sys.path]), task]
    environment = {
        **os.environ,
        "PATH": toolchain.path_with_tools(),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # other devices have no part in this
    }
    toolchain.run(command, environment=environment, name="the build of the CUDA kernels")


def build_here(home: str, keywords: Mapping[str, object]) -> None:
    """What the other process does; it ends with status 1 and the message where that fails."""
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = home  # it would take the first that it finds
    try:
        cpp_extension.load_inline(**keywords)  # type: ignore[arg-type]
    except Exception as error:  # RuntimeError, OSError and more, by the version of torch
        sys.exit(str(error))
