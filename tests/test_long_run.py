"""What fusepass costs a program that only imports it, and one that runs for days."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)

_IMPORT = """
import os, sys, time
import torch
touched = []
def watch(event, arguments):
    if event == "open":
        path, flags = str(arguments[0]), arguments[2]
        reading = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0
        if reading and path.endswith((".py", ".pyc")):
            return  # the import itself
        touched.append((event, path))
    elif event.split(".")[0] in ("os", "shutil", "tempfile", "subprocess", "socket", "ctypes"):
        if event not in ("os.listdir", "os.scandir"):  # the import system's own look into folders
            touched.append((event, arguments))
sys.addaudithook(watch)
start = time.process_time()
import fusepass
seconds = time.process_time() - start
watching, touched = touched, []
assert watching == [], watching
assert not torch.cuda.is_initialized()
print(seconds)
"""


def test_import_costs_little_and_touches_neither_disk_nor_cuda() -> None:
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    seconds: list[float] = []
    while (
        len(seconds) < 3 and min(seconds, default=1.0) >= 0.050
    ):  # a busy machine gets three tries
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.050


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _handles() -> int:
    return len(os.listdir("/proc/self/fd")) + threading.active_count()


def _grows(call: Callable[[int], object], calls: int = 10_000) -> tuple[int, int, int]:
    """What ``calls`` calls add to resident memory, handles and device memory after a warm-up."""

    def run(count: int) -> tuple[int, int, int]:
        for i in range(count):
            call(i)
        gc.collect()
        device = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
        return _resident(), _handles(), device

    before = run(calls // 5)
    after = run(calls)
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def _modest(grown: tuple[int, int, int]) -> None:
    memory, handles, device = grown
    assert memory < 2 << 20, f"resident memory grew by {memory >> 10} KiB"
    assert handles <= 0 and device <= 0


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


@pytest.mark.sampled(2)
@needs_proc
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
@on_each_device
def test_ten_thousand_calls_of_the_op_with_changing_shapes(device: str, numerics: str) -> None:
    weight, bias = torch.randn(24, 16, device=device), torch.randn(24, device=device)
    x = torch.randn(400, 16, device=device)
    scale = torch.tensor([0.5], device=device)

    def call(i: int) -> torch.Tensor:
        rows = x[: 1 + i * 7919 % 400]
        return torch.ops.fusepass.linear(
            rows, weight, bias, "mul($0) clamp(-2.0, 2.0) gelu", [scale], numerics=numerics
        )

    with torch.no_grad():
        _modest(_grows(call))


@needs_proc
@pytest.mark.usefixtures("one_thread")
@on_each_device
def test_ten_thousand_calls_of_a_compiled_model_with_changing_shapes(device: str) -> None:
    model = nn.Sequential(nn.Linear(16, 24), nn.Hardtanh(-2, 2), nn.GELU()).to(device).eval()
    compiled = torch.compile(model, backend="fusepass", dynamic=True)
    x = torch.randn(400, 16, device=device)
    with torch.no_grad():
        _modest(_grows(lambda i: compiled(x[: 2 + i * 7919 % 398])))


@needs_proc
@pytest.mark.gpu
def test_ten_thousand_calls_of_one_kernel_with_changing_shapes_and_places() -> None:
    """Plans are kept by shape, and descriptions of memory by its address."""
    weight = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16)
    memory = torch.randn(4096, 256, device="cuda", dtype=torch.bfloat16)

    def call(i: int) -> torch.Tensor:
        start, rows = i * 104729 % 3000, 512 + 8 * (i * 7919 % 70)
        return torch.ops.fusepass.linear(memory[start : start + rows], weight, None, "gelu", [])

    with torch.no_grad():
        _modest(_grows(call))
