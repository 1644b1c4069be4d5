"""The hybrid under streams, devices and CUDA graphs; what a launch error does; its times."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from epilogues import eager
from hybrid_problem import problem

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue
from fusepass.cli.timing import interleaved

F = torch.nn.functional
linear = torch.ops.fusepass.linear
SEED_CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"


def test_current_stream() -> None:
    x, w, b = problem(torch.float32, 512, 128, 512)
    expected = F.gelu(F.linear(x, w, b) * 2)
    torch.testing.assert_close(linear(x, w, b, "mul(2.0) gelu", []), expected)  # builds
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        out = linear(late, w, b, "mul(2.0) gelu", [])
        assert not stream.query(), "the op waited for the device"
    stream.synchronize()
    torch.testing.assert_close(out, expected)


def test_device_operand_is_not_read_by_the_host() -> None:
    x, w, b = problem(torch.float32)
    c = torch.tensor(2.0, device="cuda")
    linear(x, w, b, "mul($0)", [c])
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = linear(x, w, b, "mul($0)", [c])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out, F.linear(x, w, b) * 2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device() -> None:
    x, w, b = (t.to("cuda:1") for t in problem(torch.float32))
    c = torch.tensor(0.7, device="cuda:1")
    out = linear(x, w, b, "mul($0) gelu", [c])
    assert out.device == x.device and torch.cuda.current_device() == 0
    torch.testing.assert_close(out, F.gelu(F.linear(x, w, b) * c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("warm", [False, True])
def test_cuda_graph(dtype: torch.dtype, warm: bool) -> None:
    x, w, b = problem(dtype, 96 + warm, 64, 256)  # a shape of its own: planned here or never
    c = torch.tensor(0.7, device="cuda", dtype=dtype)
    F.linear(x, w, b)
    if warm:
        linear(x, w, b, "mul($0) gelu", [c])
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = linear(x, w, b, "mul($0) gelu", [c])
    for seed in range(3):
        x.copy_(torch.randn_like(x))
        c.fill_(seed)
        graph.replay()
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
        expected = F.gelu(F.linear(x.float(), w.float(), b.float()) * seed)
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


_LAUNCH_ERROR = """
import sys, torch, fusepass.op.linear
from pathlib import Path
from fusepass import kernels
from fusepass.kernels.build import build, toolchain
source, cubin = Path(sys.argv[1]) / "kernel.cu", Path(sys.argv[1]) / "kernel.cubin"
source.write_text(
    'extern "C" __global__ void __launch_bounds__(32) fusepass_pointwise(const void*) {}'
)
flags = [*build._CUBIN_FLAGS, build.gencode(build.device_arch(0))]
toolchain.run([str(toolchain.require_nvcc()), *flags, str(source), "-o", str(cubin)])
kernels.pointwise_kernel = lambda *program: (str(cubin), False, [])
x = torch.ones(2, 2, device="cuda")
try:
    torch.ops.fusepass.linear(x, x, None, "gelu", [])
except RuntimeError as error:
    assert "cuLaunchKernelEx" in str(error), error
    print("surfaced")
"""


def test_launch_error_surfaces(tmp_path: Path) -> None:
    """A kernel that loads, but cannot be launched with as many threads: the op must say so."""
    command = [sys.executable, "-c", _LAUNCH_ERROR, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "surfaced", done.stderr
    assert "slower" not in done.stderr


_OTHER_ARCHITECTURE = """
import torch, fusepass.op.linear
from fusepass.kernels.build import build
other = "80" if torch.cuda.get_device_capability()[0] != 8 else "90"
build.device_arch = lambda device: other
x = torch.randn(2, 2, device="cuda")
for _ in range(2):
    out = torch.ops.fusepass.linear(x, x, None, "gelu", [])
    torch.testing.assert_close(out, torch.nn.functional.gelu(x @ x.t()))
print("ran")
"""


def test_kernels_of_another_architecture_are_left() -> None:
    """They do not load here: torch's own operators run, and the user is told once."""
    command = [sys.executable, "-c", _OTHER_ARCHITECTURE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "ran", done.stderr
    assert done.stderr.count("fusepass: epilogues run as torch's own operators") == 1
    assert "loading the kernel fusepass_pointwise of " in done.stderr


# --- times: printed, for whoever reads the log --------------------------------------------------


def _microseconds(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls * 1e6


def test_times(capsys: pytest.CaptureFixture[str]) -> None:
    x, w, b = problem(torch.float32, 16, 65, 16)
    calls = {
        "F.linear": lambda: F.linear(x, w, b),
        "fusepass.linear": lambda: linear.default(x, w, b, SEED_CHAIN, []),
    }
    lines = []
    with torch.no_grad():
        for name, call in calls.items():
            _microseconds(call, 100)
            torch.cuda.synchronize()
            lines.append(f"host time {name}: {_microseconds(call, 1000):.1f} us a call")
            torch.cuda.synchronize()
    chain = Epilogue.parse(SEED_CHAIN)
    pointwise = torch.compile(lambda z: eager(z, chain, []))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, w, _ = problem(dtype, 2048, 1, 8192)
        z = F.linear(x, w)
        peers = {
            "inductor": partial(pointwise, z),
            "fusepass": partial(linear, x, w, None, SEED_CHAIN, []),
            "gemm": partial(F.linear, x, w),
        }
        times = {name: t.median * 1e3 for name, t in interleaved(peers, "cuda", 0.5).items()}
        lines.append(
            f"pointwise 2048x8192 {dtype}: Inductor {times['inductor']:.1f} us, "
            f"fusepass, in place, less its GEMM {times['fusepass'] - times['gemm']:.1f} us"
        )
    with capsys.disabled():
        print("\n" + "\n".join(lines))
