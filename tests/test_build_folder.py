"""``python -m fusepass build``: what is built lands in the folder that is shipped, or it fails."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
import torch
from counting_compiler import Child, Compiler, as_nobody, install, open_to_all, wait_for

from fusepass.cli import ahead
from fusepass.kernels.calls import Call

ROOT = os.geteuid() == 0

# One kernel is chosen for it.
_CALL = Call(
    node="linear",
    epilogue="mul(0.5) gelu",
    dtype=torch.bfloat16,
    m=2048,
    n=8192,
    k=8192,
    w_is_kn=False,
    with_preact=False,
    numerics="accurate",
    device=torch.device("cpu"),
)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    monkeypatch.setattr(torch.version, "cuda", None)  # no binding: a kernel is enough
    return install(tmp_path, monkeypatch, None)


def _build() -> tuple[int, str]:
    """The exit status and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = ahead.build(["90a"], [_CALL])
    return status, out.getvalue()


def test_what_is_built_is_in_the_folder(compiler: Compiler, tmp_path: Path) -> None:
    (status, out), warned = Child(_build).result()
    # The pointwise kernel, the GEMM with its epilogue, and widened batches.
    assert (status, compiler.calls, warned) == (0, 3, [])
    assert f"kernels are in {tmp_path / 'cache'}\n" in out
    assert len(list((tmp_path / "cache").glob("*/*.cubin"))) == 3


def _refused(result: tuple[tuple[int, str], list[str]], *words: str) -> None:
    (status, out), warned = result
    assert status == 1 and warned == []
    assert "kernels are in" not in out
    (line,) = (line for line in out.splitlines() if line.startswith("failed"))
    for word in ("cannot use the cache folder", *words):
        assert word in line


def test_a_file(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    _refused(Child(_build).result(), "it is not a folder; set FUSEPASS_CACHE_DIR to a folder")
    assert compiler.calls == 0


def test_a_folder_below_a_file(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    _refused(Child(_build).result(), "Not a directory; set FUSEPASS_CACHE_DIR to a folder")


def test_a_folder_others_can_write(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    _refused(Child(_build).result(), "other users can write to it", "; chmod go-w '")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_read_only_folder(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o555)
    open_to_all(tmp_path)
    work = as_nobody(_build) if ROOT else _build  # root may write anywhere
    _refused(Child(work).result(), "Permission denied; set FUSEPASS_CACHE_DIR to a folder")
    assert compiler.calls == 0


def test_a_folder_that_is_lost_meanwhile(compiler: Compiler, tmp_path: Path) -> None:
    """As a disk that fills up is: found out when the compiler has done its work."""
    compiler.hold()
    child = Child(_build)
    wait_for(lambda: compiler.calls == 1)
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    compiler.release()
    _refused(child.result(), "; set FUSEPASS_CACHE_DIR to a folder")
