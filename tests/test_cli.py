"""``python -m fusepass``: each command as a user calls it, with its exit status."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusepass.__main__ import main
from fusepass.cli import ahead
from fusepass.explaining.choice import GEMM, HYBRID, _modelled, choose, choose_for
from fusepass.kernels.build import toolchain
from fusepass.kernels.calls import Call, Linears

MODEL = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.scale = scale

    def forward(self, x):
        return nn.functional.gelu(torch.clamp(self.up(x) * self.scale, -2, 2))


class Plain(Model):
    def forward(self, x):
        return self.up(x)


def get_init_inputs():
    return [0.5]


def get_inputs():
    return [torch.randn(8, 16)]
"""


# --- explain ------------------------------------------------------------------------------------


def test_explain_text_and_page(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out.html"
    arguments = ["explain", model, "--device", "cpu", "--html", str(page), "--at-least", "1"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert " ".join(out.split()).startswith(
        "fusepass: 1 fused, 0 missed 8.19 kFLOP in products: 100.0% fused "
        "fused up: linear mul(0.5) clamp(-2.0, 2.0) gelu "
        "float32 [8, 16] x [16, 32], 100.0% of the FLOPs "
        "torch's GEMM, then code that Inductor generates, because it runs on the CPU "
    )
    assert "model.py:13, in forward: return nn.functional.gelu(" in out
    assert "mul(0.5) clamp(-2.0, 2.0) gelu" in page.read_text()


def test_explain_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", model, "--device", "cpu", "--json", "--dtype", "bfloat16"]
    assert main([*arguments, "--numerics", "bitwise"]) == 0
    told = json.loads(capsys.readouterr().out)
    (site,) = told["sites"]
    assert (site["dtype"], site["m"], site["n"], site["k"]) == ("bfloat16", "8", "32", "16")
    assert site["kernel"] == "torch's own operators, one after the other"
    assert told["torch"] == torch.__version__ and told["misses"] == []
    (graph,) = told["graphs"]
    assert "addmm" in graph["before"] and "addmm" not in graph["after"]
    assert "fusepass.linear(" in graph["after"] and "numerics='bitwise'" in graph["after"]


def test_explain_says_when_too_little_fuses(model: str) -> None:
    assert main(["explain", model + ":Plain", "--device", "cpu", "--at-least", "1"]) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.py", "nowhere.py: no such file"),
        ("{model}:Absent", "defines no 'Absent'"),
        ("{model}:torch", "torch is not an nn.Module|'module' object is not callable"),
    ],
)
def test_a_wrong_target_is_wrong_usage(
    model: str, target: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "torch" in target:
        Path(model).write_text(MODEL + "\n\ndef torch(scale):\n    return scale\n")
    assert main(["explain", target.replace("{model}", model)]) == 2
    assert any(part in capsys.readouterr().err for part in message.split("|"))


def test_a_page_that_cannot_be_written_is_told(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "missing" / "out.html"
    assert main(["explain", model, "--device", "cpu", "--html", str(out)]) == 2
    assert "No such file or directory" in capsys.readouterr().err


# --- which kernel, and why ----------------------------------------------------------------------


def _call(**changes: object) -> Call:
    given: dict[str, object] = {
        "node": "linear",
        "epilogue": "mul(0.5) gelu",
        "dtype": torch.float64,
        "m": 128,
        "n": 64,
        "k": 32,
        "w_is_kn": False,
        "with_preact": False,
        "numerics": "accurate",
        "device": torch.device("cpu"),
    }
    return Call(**{**given, **changes})  # type: ignore[arg-type]


# One kernel is chosen for it; it is compiled here, not run.
BIG = {"dtype": torch.bfloat16, "m": 2048, "n": 8192, "k": 8192}


@pytest.mark.parametrize(
    ("changes", "arch", "why"),
    [
        ({"numerics": "bitwise"}, "90a", "bitwise numerics need eager's own GEMM"),
        ({}, "80", "sm_80 has no fused GEMM"),
        ({}, "90a", "no fused kernel is faster for float64 at 128x64x32"),
        ({"dtype": torch.float16, "m": 8, "k": 36}, "90a", "8 rows are bound by memory, where"),
        ({"dtype": torch.float16, "n": 60}, "90a", "N = 60 or K = 32 is no multiple of 8"),
        ({"dtype": torch.float16, "k": 4096}, "90a", "at 128x64x4096 one kernel takes "),
    ],
)
@pytest.mark.parametrize(("epilogue", "kernel"), [("mul(0.5) gelu", HYBRID), ("", GEMM)])
def test_the_reason_for_torchs_gemm(
    changes: dict[str, object], arch: str, why: str, epilogue: str, kernel: str
) -> None:
    choice = choose_for(_call(**changes, epilogue=epilogue), arch, 132)
    assert choice.kernel == kernel and choice.why.startswith(why)


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc")
def test_the_reason_for_one_kernel() -> None:
    choice = choose_for(_call(**BIG), "90a", 132)
    assert re.fullmatch(r"one kernel, \d+x\d+ (pingpong|cooperative) .*", choice.kernel)
    times = re.fullmatch(
        r"at 2048x8192x8192 it takes (\d+\.?\d*) us, by the model; two kernels take (\d+\.?\d*) us",
        choice.why,
    )
    assert times and float(times[1]) < float(times[2])
    few = choose_for(_call(**{**BIG, "m": 4}), "90a", 132)
    assert few.kernel.startswith("one kernel, few rows")
    assert few.why == "4 rows are bound by reading the weight, which it does at full speed"
    # Without an epilogue it is weighed against torch's GEMM alone, which takes less.
    bare = _modelled(_call(**BIG, epilogue=""), 132)
    alone, longer = (float(t.removesuffix(" us")) for t in bare)
    assert alone < float(times[1]) and longer < float(times[2])


def test_the_reason_on_other_devices() -> None:
    assert choose(_call()).why == "it runs on the CPU"
    assert choose(_call(device=torch.device("meta"))).why == "it runs on meta"


# --- build --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--arch", "hopper"], "'hopper' is no architecture"), ([], "there is no GPU here")],
)
def test_build_needs_an_architecture(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["build", *arguments]) == 2
    assert message in capsys.readouterr().err


without_cuda = pytest.mark.skipif(
    torch.version.cuda is not None, reason="a torch with CUDA would build the binding as well"
)


@without_cuda
@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc")
def test_build_for_a_model(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--arch", "sm_80", "80", "--model", model, "--train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("skipped binding: this torch is built without CUDA")
    epilogue = "uses    sm_80  [32, 16] float32 mul(0.5) clamp(-2.0, 2.0) gelu"
    assert [line.split(":")[0] for line in lines[1:3]] == [
        epilogue,
        epilogue + " with pre-activation",
    ]
    assert len(lines) == 3 or lines[3] == ""


@without_cuda
@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc")
def test_build_for_a_gpu_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        assert ahead.build(["90a"], [_call(**BIG)]) == 0
        out = capsys.readouterr().out
        assert "built   sm_90a  [8192, 8192] bfloat16 mul(0.5) gelu: one kernel" in out
        assert f"kernels are in {tmp_path}" in out
        # The second runs other sizes, behind torch's GEMM.
        cubins = sorted(tmp_path.glob("*/*.cubin"))
        assert [cubin.name for cubin in cubins] == [
            "gemm_sm90.cubin",
            "pointwise.cubin",
            "widened.cubin",
        ]
        assert all(cubin.read_bytes()[:4] == b"\x7fELF" for cubin in cubins)
        # The second time there is no compiler, as in the container it was built for.
        monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc")
def test_linears_of_one_input_are_built_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(tmp_path))
    call = Linears("linears", torch.float16, 512, (1024, 512), 1024, False, False)
    told: set[str] = set()
    assert ahead._build_linears(call, "90a", told)
    assert ahead._build_linears(call, "90a", told)  # and told once
    assert ahead._build_linears(dataclasses.replace(call, dtype=torch.float32), "90a", told)
    built, uses = capsys.readouterr().out.splitlines()
    assert built.startswith("built   sm_90a  [1024 + 512, 1024] float16: one launch, ")
    assert uses == "uses    sm_90a  [1024 + 512, 1024] float32: one after the other"
    assert len(list(tmp_path.glob("*/gemm_sm90.cubin"))) == 1
    assert ahead.with_any_rows([call])[:2] == [call, dataclasses.replace(call, m=64)]


def test_a_build_that_fails_shows_the_compilers_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho 'error: no such instruction'\nexit 1\n")
    (home / "bin" / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert ahead.build(["90a"], [_call(**BIG)]) == 1
    out = capsys.readouterr().out
    assert "failed  sm_90a  [8192, 8192] bfloat16 mul(0.5) gelu" in out
    assert "error: no such instruction" in out


# --- the process --------------------------------------------------------------------------------


def test_as_a_process() -> None:
    """Status 2 for no command, 0 for help, and neither waits for torch."""
    program = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['fusepass', *sys.argv[1:]]"
    )
    program += "; runpy.run_module('fusepass', run_name='__main__')"
    for arguments, status in (([], 2), (["--help"], 0), (["bench", "--help"], 0), (["fly"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == status, done.stderr
        assert "usage: python -m fusepass" in done.stdout + done.stderr
