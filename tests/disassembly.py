"""A cubin's instructions, by whichever of NVIDIA's tools is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_TOOLS = (("cuobjdump", "-sass"), ("nvdisasm", "-c"))


def disassembled(cubin: Path) -> str:
    """By the tool of a CUDA toolkit or of NVIDIA's packages; the tests' own extra has one."""
    for name, flag in _TOOLS:
        packaged = Path(sys.prefix).glob(f"lib/python*/site-packages/nvidia/cu*/bin/{name}")
        tool = shutil.which(name) or next(map(str, packaged), None)
        if tool is not None:
            command = [tool, flag, str(cubin)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pytest.fail("needs cuobjdump or nvdisasm: pip install nvidia-cuda-nvdisasm")
