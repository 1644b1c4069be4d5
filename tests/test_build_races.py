"""Many processes on one folder of kernels: one build, whoever is killed; failures are kept."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from counting_compiler import COMPILER, FORK, Child, Compiler, build_one, install, read, wait_for

from fusepass.kernels.build import build, cache, toolchain


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return install(tmp_path, monkeypatch, None)


@pytest.mark.parametrize("kind", ["pretended", "nvcc"])
def test_eight_processes_on_an_empty_cache_build_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real = toolchain.find_nvcc() if kind == "nvcc" else None
    if kind == "nvcc" and real is None:
        pytest.skip("needs nvcc")
    compiler = install(tmp_path, monkeypatch, real)
    gate = FORK.Event()

    def work() -> bytes:
        gate.wait()
        return read()

    children = [Child(work) for _ in range(8)]
    gate.set()
    results = [child.result() for child in children]
    images = {image for image, _ in results}
    assert compiler.calls == 1
    assert len(images) == 1 and b"" not in images
    assert [warned for _, warned in results] == [[]] * 8


def test_a_killed_builder_leaves_no_trace_and_nobody_waits(compiler: Compiler) -> None:
    compiler.hold()
    victim = Child(read)
    wait_for(lambda: compiler.calls == 1)
    others = [Child(read) for _ in range(3)]
    time.sleep(0.3)  # they stand at the lock
    assert compiler.calls == 1
    os.kill(victim.process.pid, signal.SIGKILL)
    wait_for(lambda: compiler.calls == 2)  # one of them has taken over
    compiler.release()
    assert {child.result()[0] for child in others} == {b"compiled\n"}
    assert compiler.calls == 2
    assert Child(read).result()[0] == b"compiled\n"
    assert compiler.calls == 2
    assert list(cache.configured_root().glob(".building-*")) == []


def test_another_torch_or_cuda_is_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {build._binding_hash()}
    monkeypatch.setattr(build.torch, "__version__", "9.9.9")
    names.add(build._binding_hash())
    monkeypatch.setattr(build.torch.version, "cuda", "99.9")
    names.add(build._binding_hash())
    assert len(names) == 3


def test_machines_of_one_home_have_libraries_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one processor's or C library's compiler makes, another's may not even load."""
    names = []
    for machine, libc in (("aarch64", "glibc 2.39"), ("x86_64", "glibc 2.39"), ("x86_64", None)):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(os, "confstr", lambda name, libc=libc: libc)
        names.append(build._binding_prefix())
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2.5"))
    names.append(build._binding_prefix())
    assert len(set(names)) == len(names)


def test_a_process_is_left_as_it_is_while_it_builds(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads read these meanwhile, and start processes with them."""
    from torch.utils import cpp_extension

    (compiler.folder / "include").mkdir()
    (compiler.folder / "include" / "cuda_runtime.h").touch()
    cxx = tmp_path / "c++"
    cxx.write_text(COMPILER.format(folder=compiler.folder, compile="exit 1"))
    cxx.chmod(0o755)
    monkeypatch.setenv("CXX", str(cxx))
    compiler.hold()

    def settings() -> tuple[object, ...]:
        return (dict(os.environ), list(sys.path), cpp_extension.CUDA_HOME, os.getcwd())

    before = settings()
    with ThreadPoolExecutor(1) as other:
        built = other.submit(build.build_binding)
        try:
            wait_for(lambda: compiler.calls > 0)
            meanwhile = settings()
        finally:
            compiler.release()
        assert meanwhile == before
        with pytest.raises(toolchain.BuildError, match="the build of the CUDA kernels failed"):
            built.result(60)
    assert settings() == before


def test_what_does_not_compile_is_tried_once_a_process(compiler: Compiler) -> None:
    broken = COMPILER.replace("{compile}", "echo error: no such instruction; exit 1")
    (compiler.folder / "bin" / "nvcc").write_text(broken.replace("{folder}", str(compiler.folder)))

    def work() -> list[str]:
        told = []
        for _ in range(3):
            with pytest.raises(toolchain.BuildError) as caught:
                build_one()
            told.append(str(caught.value))
        return told

    told, _ = Child(work).result()
    assert compiler.calls == 1
    assert all("error: no such instruction" in text for text in told)


def test_a_runtime_without_a_name_for_the_linker_links(
    host_compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's CUDA runtime is lib/libcudart.so.13 and nothing else."""
    home, links = tmp_path / "cu13", tmp_path / "links"
    for folder in (home / "bin", home / "include", home / "lib", links):
        folder.mkdir(parents=True)
    (home / "bin" / "nvcc").touch()
    (home / "include" / "cuda_runtime.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    compiler = [host_compiler, "-x", "c++", os.devnull, "-shared", "-o"]
    toolchain.run([*compiler, str(home / "lib" / "libcudart.so.13")])
    link = [*compiler, str(tmp_path / "binding.so"), f"-L{home / 'lib'}"]
    with pytest.raises(toolchain.BuildError, match="cudart"):
        toolchain.run([*link, "-lcudart"])
    toolchain.run([*link, *toolchain.runtime_flags(home / "bin" / "nvcc", links), "-lcudart"])
    (home / "lib" / "libcudart.so").symlink_to("libcudart.so.13")  # as in a toolkit
    assert toolchain.runtime_flags(home / "bin" / "nvcc", links) == []
