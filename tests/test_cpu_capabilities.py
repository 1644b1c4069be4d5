"""Numbers do not depend on which of torch's kernels for CPUs run: by vector length, by oneDNN."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = ("test_numerics.py", "test_op.py", "test_match_bitwise.py")
# Those that meet torch's kernels; what Inductor generates is generated once, by the suite itself,
# and what is left to torch is torch's.
WHICH = "(test_numerics or bitwise or special or layouts or infinity or transposed) and not "
WHICH += "(inductor or opcheck or vmap or random or autocast or miss or integer)"
LENGTHS = {"default": (), "avx2": ("AVX2", "AVX512"), "avx512": ("AVX512",)}

# Before pytest, which imports torch's users; the arguments are oneDNN's switch and pytest's own.
_PROGRAM = """
import sys, torch, pytest
torch._C._set_mkldnn_enabled(sys.argv[1] == "oneDNN")
print(torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.enabled)
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.sampled(4)  # the suite itself has the longest vectors, with oneDNN
@pytest.mark.parametrize(
    ("length", "isa", "onednn"),
    [
        ("default", "ALL", True),
        ("avx2", "AVX2", True),  # oneDNN without its kernels for bfloat16
        ("avx512", "AVX512_CORE", True),
        ("avx512", "ALL", False),
    ],
)
def test_numbers_by_capability(length: str, isa: str, onednn: bool) -> None:
    if length != "default" and torch.backends.cpu.get_cpu_capability() not in LENGTHS[length]:
        pytest.skip(f"this CPU has no {length}")
    env = {**os.environ, "ATEN_CPU_CAPABILITY": length, "ONEDNN_MAX_CPU_ISA": isa}
    here = Path(__file__).parent
    options = ["-n", "0", "-q", "-x", "-p", "no:cacheprovider", "-k", WHICH]
    files = [str(here / name) for name in TESTS]
    switch = "oneDNN" if onednn else "none"
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, switch, *options, *files],
        env=env, cwd=here.parent, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    capability, enabled = done.stdout.split(maxsplit=2)[:2]
    assert capability == length.upper() and enabled == str(onednn)
