"""Inference: no_grad and inference_mode, frozen weights, the C++ wrapper, exported packages."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from small_models import QUICK, Mlp, block, compiled, fused
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.testing import assert_close

from fusepass.rewrite.graph_pass import FusePass

pytestmark = pytest.mark.usefixtures("one_thread")


class _OneOfEach(nn.Module):
    """A site without run-time scalars, one with, and one whose pre-activation is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(16, 16) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(F.hardtanh(self.first(x) * 0.5))
        x = F.gelu(self.second(x) * self.scale)
        z = self.third(x)
        return F.relu(z), z


class _Sisters(nn.Module):
    """Linears of one input, which a Hopper GPU runs in one launch; one has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(1024, n, bias=n > 256) for n in (1024, 256, 256))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_grad_and_inference_mode(mode: Any) -> None:
    model, x = _OneOfEach(), torch.randn(6, 16)
    expected = model(x)
    with mode():
        found = compiled(model)(x)
    assert_close(found, expected)
    assert not found[0].requires_grad
    assert found[0].is_inference() == (mode is torch.inference_mode)
    assert fused() == 3


def test_inference_and_training_of_one_compiled_model() -> None:
    model, x = Mlp(16, 24), torch.randn(6, 16)
    fast = compiled(model, options=QUICK)
    for _ in range(2):
        with torch.inference_mode():
            assert_close(fast(x), model(x))
        fast(x).square().sum().backward()
    assert fused() == 3  # one graph for each, and the derivative


class _Masked(nn.Module):
    """What the Linear multiplies with is computed from parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.mask = nn.Linear(16, 24), nn.Parameter(torch.ones(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.linear(x, self.linear.weight * self.mask, self.linear.bias))


def test_freezing_folds_the_weights_and_keeps_the_site() -> None:
    # In float64: the packed weights of other types are oneDNN's (test_packing.py).
    model, x = _Masked().double().eval(), torch.randn(6, 16, dtype=torch.float64)
    with torch.no_grad(), inductor_config.patch(freezing=True):
        fast, expected = compiled(model), model(x)
        assert_close(fast(x), expected)
        assert fused() == 1
        # Folded at compile time: the product is no longer taken.
        model.mask.zero_()
        assert_close(fast(x), expected)


def test_cpp_wrapper() -> None:
    model, x = _OneOfEach(), torch.randn(6, 16)
    with torch.no_grad():
        assert_close(compiled(model, options={"cpp_wrapper": True})(x), model(x))
    assert fused() == 3


# One package is made: neither trial compiles of vector instructions nor headers for the next pay.
_ONCE = {"cpp.vec_isa_ok": False, "aot_inductor.precompile_headers": False}


def _export(model: nn.Module, x: Tensor, path: Path, **config: Any) -> None:
    batch = torch.export.Dim("batch", max=1024)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs={**_ONCE, **config}
    )


def test_export_keeps_the_program_free_of_fusepass() -> None:
    program = torch.export.export(block(), (torch.randn(4, 32),))
    assert "fusepass" not in str(program.graph)


# All that a process needs to run a package: torch, and on a GPU the op.
_RUN = """
import sys, torch
if sys.argv[3] == "cuda":
    import fusepass.op.linear
model = torch._inductor.aoti_load_package(sys.argv[1])
for x, expected in torch.load(sys.argv[2]):
    torch.testing.assert_close(model(x), expected)
assert not any("inductor.compile_fx" in name for name in sys.modules)
assert ("fusepass.op.linear" in sys.modules) == (sys.argv[3] == "cuda")
print("ran")
"""


def _shares_its_library(compiler: str, folder: Path) -> bool:
    """Whether what ``compiler`` links loads the C++ library, instead of holding a copy of it."""
    source, library = folder / "f.cpp", folder / "f.so"
    source.write_text("#include <string>\nstd::string f(int n) { return std::to_string(n); }\n")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return b"libstdc++.so" in library.read_bytes()


@pytest.fixture
def sharing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CXX, unless what it links has a C++ library of its own: then the system's compiler.

    A package with such a copy crashes while it is loaded: torch's own passes it C++ objects.
    """
    compilers = (os.environ.get("CXX", "g++"), "g++")
    compiler = next(c for c in compilers if _shares_its_library(c, tmp_path))
    monkeypatch.setenv("CXX", compiler)
    with inductor_config.patch({"cpp.cxx": (None, compiler)}):
        yield


def _process(program: str, *arguments: str, **environment: str) -> str:
    """What the program prints, in a process of its own."""
    command, env = [sys.executable, "-c", program, *arguments], {**os.environ, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _package_and_run(folder: Path, model: nn.Module, x: Tensor) -> None:
    """Runs a package in a process of its own."""
    with torch.no_grad():
        cases = [(v, list(model(v))) for v in (x, x[:3], torch.cat([x] * 25))]
    torch.save(cases, folder / "cases")
    _export(model, x, folder / "fused.pt2", joint_custom_pre_pass=FusePass())
    package, given = str(folder / "fused.pt2"), str(folder / "cases")
    assert "ran" in _process(_RUN, package, given, x.device.type)


# Knows nothing of fusepass: the environment does.
_EXPORT = f"""
import sys, torch
from torch import Tensor, nn
from torch.nn import functional as F
{inspect.getsource(_OneOfEach)}
model, x = _OneOfEach().eval(), torch.randn(8, 16)
with torch.no_grad():
    program = torch.export.export(
        model, (x,), dynamic_shapes=({{0: torch.export.Dim("batch", max=1024)}},)
    )
    cases = [(v, list(model(v))) for v in (x, x[:3], torch.cat([x] * 25))]
torch._inductor.aoti_compile_and_package(
    program, package_path=sys.argv[1], inductor_configs={_ONCE}
)
torch.save(cases, sys.argv[2])
print("fused", torch._dynamo.utils.counters["fusepass"]["fused"])
"""


@pytest.mark.usefixtures("sharing_compiler")
def test_a_package_fused_by_the_environment_runs_where_there_is_no_compiler(
    tmp_path: Path,
) -> None:
    package, cases = str(tmp_path / "model.pt2"), str(tmp_path / "cases")
    assert "fused 3" in _process(_EXPORT, package, cases, FUSEPASS="1")
    assert "ran" in _process(_RUN, package, cases, "cpu", PATH=str(tmp_path))


@pytest.mark.gpu
@pytest.mark.usefixtures("sharing_compiler")
def test_a_package_runs_on_the_gpu(tmp_path: Path) -> None:
    x = torch.randn(8, 16, device="cuda")
    _package_and_run(tmp_path, _OneOfEach().cuda().eval(), x)
    assert fused() == 3


@pytest.mark.gpu
@pytest.mark.hopper
@pytest.mark.usefixtures("sharing_compiler")
def test_a_package_runs_several_weights_in_one_launch(tmp_path: Path) -> None:
    model = _Sisters().to("cuda", torch.bfloat16).eval()
    x = torch.randn(8, 1024, device="cuda", dtype=torch.bfloat16)
    before = counters["fusepass"]["gemms"]
    _package_and_run(tmp_path, model, x)
    assert counters["fusepass"]["gemms"] - before == 3
