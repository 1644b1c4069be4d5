"""doctor: what it says of machines with one thing or another missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fusepass.__main__ import main
from fusepass.cli import doctor
from fusepass.kernels.build import build, cache, toolchain

QUICK = ["doctor", "--quick"]


def _check(name: str, state: str) -> doctor.Check:
    """The one check of that name and state among all."""
    (check,) = (c for c in doctor.examine(quick=True) if (c.name, c.state) == (name, state))
    return check


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(tmp_path / "cache"))


def test_a_machine_that_is_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("all well\n")
    assert "Linear, Hardtanh, GELU: 1 fused of 1, within" in out
    assert f"{tmp_path / 'cache'}, will be made on first use" in out
    assert not (tmp_path / "cache").exists() or torch.cuda.is_available()


def test_json_and_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEPASS", "yes")
    assert main([*QUICK, "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)
    (problem,) = (c for c in checks if c["state"] == "problem")
    assert problem["name"] == "environment" and problem["fix"] == "unset FUSEPASS"


@pytest.fixture
def quickly(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[int, str]]:
    """The status and the lines on the environment."""

    def quickly() -> tuple[int, str]:
        status = main(QUICK)
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        start = next(i for i, line in enumerate(lines) if "environment" in line)
        return status, "\n".join(lines[start : start + 2]) + "\n" + lines[-1]

    return quickly


def test_a_switch_of_no_meaning(
    monkeypatch: pytest.MonkeyPatch, quickly: Callable[[], tuple[int, str]]
) -> None:
    monkeypatch.setenv("FUSEPASS", "true")
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", "")
    status, text = quickly()
    assert status == 1
    assert "FUSEPASS='true' is none of 0, 1; plain torch.compile ignores it, backend=" in text
    assert "fix: unset FUSEPASS\n" in text and text.endswith("1 problem")
    assert "ok       environment" not in text


def test_a_switch_that_torch_never_looks_at(
    monkeypatch: pytest.MonkeyPatch, quickly: Callable[[], tuple[int, str]]
) -> None:
    monkeypatch.setenv("FUSEPASS", "1")  # after torch was imported, as if it had looked at nothing
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    status, text = quickly()
    assert status == 1
    assert "FUSEPASS=1 does nothing, TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps torch from" in text
    assert "fix: unset TORCH_DEVICE_BACKEND_AUTOLOAD\n" in text and text.endswith("1 problem")


def test_a_switch_that_works() -> None:
    """In a process of its own: torch looks at it while it is imported."""
    command = [sys.executable, "-m", "fusepass", *QUICK]
    env = {**os.environ, "FUSEPASS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok       environment   FUSEPASS=1" in done.stdout
    assert done.stdout.endswith("all well\n")


def test_a_switch_of_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEPASS", "1")  # after torch was imported, as if it had found nothing
    check = _check("environment", "problem")
    assert "FUSEPASS=1 does nothing, torch finds no fusepass" in check.text
    assert check.fix is not None and "pip install --no-deps" in check.fix


def test_the_trial_sees_a_wrong_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fusepass.op import cpu, lowering

    monkeypatch.setattr(lowering, "_is_inductors", lambda *arguments: False)  # the op is called
    right = cpu.run
    monkeypatch.setattr(cpu, "run", lambda *a, **k: [t + 1 for t in right(*a, **k)])
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "differs from eager's by 1" in out and "1 problem\n" in out


def test_the_trial_reports_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **keywords: object) -> object:
        raise OSError("no space left")

    monkeypatch.setattr(torch, "compile", fail)
    check = next(c for c in doctor.examine() if c.name == "trial on cpu")
    assert (check.state, check.text) == ("problem", "OSError: no space left")


# --- Python and torch ---------------------------------------------------------------------------


def test_an_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    check = _check("torch", "problem")
    assert "fusepass needs 2.11" in check.text
    assert check.fix is not None and check.fix.endswith("-m pip install 'torch>=2.11'")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda exclude_tags: ["inductor"])
    fix = _check("backend", "problem").fix
    assert fix is not None and fix.endswith(f" install --no-deps {Path(__file__).parents[1]}")


# --- compilers ----------------------------------------------------------------------------------


def test_without_nvcc_the_fix_is_pypis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fix = _check("nvcc", "note").fix  # without a GPU nothing needs it
    assert fix is not None and "'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*'" in fix
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    fix = _check("nvcc", "note").fix
    assert fix is not None and fix.endswith("'nvidia-cuda-nvcc-cu12==12.8.*'")


def _compiler(folder: Path, text: str) -> Path:
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_nvcc_of_another_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compiler(tmp_path, "echo Cuda compilation tools, release 11.8, V11.8.89")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    state = "problem" if torch.cuda.is_available() else "note"
    check = _check("nvcc", state)
    assert "release 11.8" in check.text and "built for CUDA 13.0" in check.text
    assert check.fix is not None and "nvidia-cuda-nvcc==13.0.*" in check.fix


def test_an_nvcc_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compiler(tmp_path, "echo broken installation; exit 3")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    state = "problem" if torch.cuda.is_available() else "note"
    assert "broken installation" in _check("nvcc", state).text


def test_without_a_host_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check = _check("C++ compiler", "problem")
    assert "no 'no-such-compiler'" in check.text and check.fix == "apt-get install g++"


def test_without_ninja(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shutil.which

    def which(name: str, *arguments: object, **keywords: object) -> str | None:
        return None if name == "ninja" else found(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "which", which)
    state = "problem" if torch.cuda.is_available() else "note"
    fix = _check("ninja", state).fix
    assert fix is not None and fix.endswith("-m pip install ninja")


# --- the cache ----------------------------------------------------------------------------------


def _entry(name: str) -> Path:
    def build(folder: Path) -> None:
        (folder / "kernel.cubin").write_bytes(bytes(3 << 20))

    return cache.entry(name, build)


def test_a_folder_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    check = _check("cache", "problem")
    assert "could plant code" in check.text
    assert check.fix == f"chmod go-w '{tmp_path / 'cache'}'"
    os.system(check.fix)  # the fix fixes it
    assert _check("cache", "ok").text.endswith("GiB free")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    check = _check("cache", "problem")
    assert "it is not a folder" in check.text
    assert check.fix == "export FUSEPASS_CACHE_DIR=<a folder of yours>"


def test_a_disk_with_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "5 MiB free" in _check("cache", "problem").text


@pytest.mark.parametrize("access", ["folder", "parent"])
def test_a_read_only_place(access: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    if access == "folder":
        (tmp_path / "cache").mkdir()
        assert "read-only; what it lacks is built for one process" in _check("cache", "note").text
    else:
        assert "cannot be made" in _check("cache", "problem").text


def test_what_is_built_and_what_is_damaged() -> None:
    _entry("gemm-1")
    _entry("gemm-2")
    assert _check("built", "ok").text == "2 kernel libraries, 6.0 MiB"
    damaged = _entry("gemm-3") / "kernel.cubin"
    damaged.write_bytes(b"short")
    check = _check("built", "note")
    assert check.text.startswith("gemm-3 is damaged") and check.fix == f"rm -r '{damaged.parent}'"


@pytest.mark.gpu
def test_on_a_gpu_the_binding_is_accounted_for() -> None:
    assert not build.is_binding_built()  # an empty cache
    texts = [c.text for c in doctor.examine(quick=True) if c.name == "built"]
    assert "the binding will be built" in texts
