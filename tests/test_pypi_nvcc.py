"""Where there is no CUDA toolkit, NVIDIA's compiler from PyPI is found and builds the kernels."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from emitted import include

from fusepass.__main__ import main
from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import build_cubin
from fusepass.kernels.plan import sm90 as plan

NVCC = toolchain.find_nvcc()


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nvcc where its package puts it, for the real one if there is one; elsewhere is none."""
    nvcc = tmp_path / "site-packages" / "nvidia" / "cu13" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f'#!/bin/sh\nexec {NVCC or "false"} "$@"\n')
    nvcc.chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    folders = os.environ["PATH"].split(os.pathsep)
    monkeypatch.setenv(
        "PATH", os.pathsep.join(f for f in folders if not (Path(f) / "nvcc").exists())
    )
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(tmp_path / "cache"))
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda p: "/usr/local/cuda" not in str(p) and is_file(p))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    return nvcc


def test_without_the_package_there_is_none(
    packaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packaged.rename(packaged.with_name("unused"))
    assert toolchain.find_nvcc() is None
    main(["doctor", "--quick"])
    out = capsys.readouterr().out
    assert "kernels that are not built yet cannot be built" in out
    assert "'nvidia-cuda-nvcc==" in out or "nvidia-cuda-nvcc-cu" in out


def test_with_the_package_it_builds(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(packaged.parents[3]))
    assert toolchain.find_nvcc() == packaged
    if NVCC is None:
        pytest.skip("it is found; to build with it needs nvcc")
    cubin = build_cubin(
        "sm90/gemm_sm90.cu",
        plan.defines(plan.CONFIGS[0], True, False, False),
        "90a",
        include("gelu", "bf16"),
    )
    assert cubin.read_bytes()[:4] == b"\x7fELF"
