"""On a GPU whose kernels cannot be built or loaded, the model runs and the user is told once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusepass.kernels.build import toolchain

pytestmark = pytest.mark.gpu

_PROGRAM = """
import torch
from torch._dynamo.utils import counters
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(256, 512), torch.nn.Hardtanh(-2, 2), torch.nn.GELU(),
    torch.nn.Linear(512, 256), torch.nn.GELU(),
).to("cuda", torch.float16)
x = torch.randn(128, 256, device="cuda", dtype=torch.float16)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, backend="fusepass")(x), model(x))
print("fused", counters["fusepass"]["fused"])
"""


# A compiler that is newer than the driver: what it writes (the last argument) does not load.
_RESOURCES = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
_LOADS_NOT = f"for last; do :; done; echo newer > $last; echo '{_RESOURCES}'"


@pytest.mark.parametrize(
    ("compile_", "message", "what"),
    [
        ("echo 'error: a broken header'; exit 1", "a broken header", "epilogues"),
        (None, "no nvcc", "fused ops"),
        (_LOADS_NOT, "loading the kernel", "epilogues"),
    ],
)
def test_the_model_runs_and_the_message_is_seen_once(
    tmp_path: Path, compile_: str | None, message: str, what: str
) -> None:
    home = tmp_path / "cuda"
    env = {**os.environ, "CUDA_HOME": str(home), "FUSEPASS_CACHE_DIR": str(tmp_path / "cache")}
    program = _PROGRAM
    if compile_ is None:
        program = (
            "from fusepass.kernels.build import toolchain\ntoolchain.find_nvcc = lambda: None\n"
        )
        program += _PROGRAM
    else:
        (home / "bin").mkdir(parents=True)
        real = toolchain.cuda_home(toolchain.require_nvcc())
        for folder in ("include", "lib64", "lib"):
            if (real / folder).exists():
                (home / folder).symlink_to(real / folder)
        nvcc = home / "bin" / "nvcc"
        version = "Cuda compilation tools, release 13.0, V13.0.88"
        nvcc.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit\n{compile_}\n'
        )
        nvcc.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert "fused 2" in done.stdout
    assert done.stderr.count(f"fusepass: {what} run as torch's own") == 1
    assert done.stderr.count("fusepass: GEMM and epilogue run as two kernels") <= 1
    assert message in done.stderr
