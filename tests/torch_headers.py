"""What it takes to compile the binding's sources against torch's headers."""

from __future__ import annotations

from pathlib import Path

import torch

CXX_STANDARD = "-std=c++20" if torch.__version__ >= "2.12" else "-std=c++17"


def cuda_macros(folder: Path) -> Path:
    """A folder in ``folder`` with the one generated header that a CPU build of torch lacks."""
    root = folder / "generated"
    header = root / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    header.parent.mkdir(parents=True)
    header.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    return root
