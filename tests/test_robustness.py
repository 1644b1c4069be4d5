"""The folder of built kernels under everything that happens to it in real life.

A compiler that logs each of its calls stands in front of nvcc, or in its place where there is none,
so that "one build" is counted and "in the middle of a build" is a moment one can wait for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fusepass.kernels import build, cache, toolchain

ROOT = os.geteuid() == 0
NOBODY = 65534
_fork = multiprocessing.get_context("fork")

SOURCE, DEFINES, ARCH = "split_sm90.cu", {"FUSEPASS_TEST": 1}, "90a"

_COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "nvcc of the tests"; exit 0; fi
echo $$ >> {folder}/calls
while [ -e {folder}/wait ]; do sleep 0.05; done
{compile}
"""
_PRETEND = """
for last; do :; done
echo compiled > "$last" || { echo "cannot write $last" >&2; exit 1; }
echo "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
"""


class Compiler:
    """The nvcc that the tests' processes find."""

    def __init__(self, folder: Path, real: Path | None) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        nvcc = folder / "bin" / "nvcc"
        compile_ = f'exec {real} "$@"' if real else _PRETEND
        nvcc.write_text(_COMPILER.replace("{folder}", str(folder)).replace("{compile}", compile_))
        nvcc.chmod(0o755)

    @property
    def calls(self) -> int:
        log = self.folder / "calls"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def hold(self) -> None:
        """From now on a compilation does not end, until ``release``."""
        (self.folder / "wait").touch()

    def release(self) -> None:
        (self.folder / "wait").unlink()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return _install(tmp_path, monkeypatch, None)


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, real: Path | None) -> Compiler:
    compiler = Compiler(folder / "cuda", real)
    monkeypatch.setenv("CUDA_HOME", str(compiler.folder))
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setattr(cache, "_warn_unusable", cache._warn_unusable.__wrapped__)
    return compiler


def _build() -> Path:
    return build.build_cubin(SOURCE, DEFINES, ARCH)


def _report(connection: Any, work: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = work()
        except BaseException as error:
            result = error
    connection.send((result, [str(w.message) for w in caught]))


class Child:
    """``work`` in a process of its own, forked here; its result and its warnings."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._connection, theirs = _fork.Pipe()
        self.process = _fork.Process(target=_report, args=(theirs, work))
        self.process.start()
        theirs.close()

    def result(self, seconds: float = 60) -> tuple[Any, list[str]]:
        assert self._connection.poll(seconds), f"no result after {seconds} s"
        result, warned = self._connection.recv()
        self.process.join(10)
        if isinstance(result, BaseException):
            raise result
        return result, warned


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _read() -> bytes:
    return _build().read_bytes()


# --- many at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretended", "nvcc"])
def test_eight_processes_on_an_empty_cache_build_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real = toolchain.find_nvcc() if kind == "nvcc" else None
    if kind == "nvcc" and real is None:
        pytest.skip("needs nvcc")
    compiler = _install(tmp_path, monkeypatch, real)
    gate = _fork.Event()

    def work() -> bytes:
        gate.wait()
        return _read()

    children = [Child(work) for _ in range(8)]
    gate.set()
    results = [child.result() for child in children]
    images = {image for image, _ in results}
    assert compiler.calls == 1
    assert len(images) == 1 and b"" not in images
    assert [warned for _, warned in results] == [[]] * 8


def test_a_killed_builder_leaves_no_trace_and_nobody_waits(compiler: Compiler) -> None:
    compiler.hold()
    victim = Child(_read)
    _wait_for(lambda: compiler.calls == 1)
    others = [Child(_read) for _ in range(3)]
    time.sleep(0.3)  # they stand at the lock
    assert compiler.calls == 1
    os.kill(victim.process.pid, signal.SIGKILL)
    _wait_for(lambda: compiler.calls == 2)  # one of them has taken over
    compiler.release()
    assert {child.result()[0] for child in others} == {b"compiled\n"}
    assert compiler.calls == 2
    assert Child(_read).result()[0] == b"compiled\n"
    assert compiler.calls == 2
    assert list(cache.configured_root().glob(".building-*")) == []


# --- the folder ---------------------------------------------------------------------------------


def test_with_a_group_writable_umask_the_second_process_still_finds_it(compiler: Compiler) -> None:
    def work() -> bytes:
        os.umask(0o002)  # many distributions' default
        return _read()

    for _ in range(2):
        assert Child(work).result() == (b"compiled\n", [])
    assert compiler.calls == 1


def test_a_missing_folder_is_made_for_its_user_alone(compiler: Compiler, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    os.environ["FUSEPASS_CACHE_DIR"] = str(folder)
    assert Child(_read).result() == (b"compiled\n", [])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_another_process_makes_first(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.configured_root().mkdir(mode=0o700)
    monkeypatch.setattr(Path, "exists", lambda path: False)  # as it was a moment ago
    assert Child(_read).result() == (b"compiled\n", [])


def _told(warned: list[str], *words: str) -> None:
    assert len(warned) == 1
    for word in ("cannot use the cache folder", *words):
        assert word in warned[0]


def test_a_folder_that_cannot_be_made_is_told_and_done_without(
    compiler: Compiler, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    os.environ["FUSEPASS_CACHE_DIR"] = str(tmp_path / "file" / "below")
    image, warned = Child(_read).result()
    assert image == b"compiled\n"
    _told(warned, "Not a directory")


def test_what_others_can_write_is_told_and_never_used(compiler: Compiler) -> None:
    planted = Child(_build).result()[0]
    planted.write_bytes(b"planted")
    cache.configured_root().chmod(0o777)
    image, warned = Child(_read).result()
    assert image == b"compiled\n"
    _told(warned, "other users can write to it", "chmod go-w")


@pytest.mark.skipif(not ROOT, reason="needs root, to give a folder away")
def test_what_another_user_owns_is_told_and_never_used(compiler: Compiler) -> None:
    planted = Child(_build).result()[0]
    os.chown(cache.configured_root(), NOBODY, NOBODY)
    image, warned = Child(_read).result()
    assert image == b"compiled\n"
    _told(warned, "belongs to another user", "FUSEPASS_CACHE_DIR")
    os.chown(cache.configured_root(), 0, 0)
    os.chown(planted, NOBODY, NOBODY)  # the folder is ours, but the file in it is not
    planted.write_bytes(b"planted")
    assert Child(_read).result() == (b"compiled\n", [])


def _as_nobody(work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return work()

    return run


@pytest.mark.skipif(not ROOT, reason="needs root, to become another user")
def test_a_read_only_folder_serves_what_it_has_and_lets_the_rest_be_built(
    compiler: Compiler, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):  # with a worker's own, under xdist
        folder.chmod(0o755)
    Child(_build).result()
    subprocess.run(["chmod", "-R", "a+rX", str(cache.configured_root())], check=True)
    assert Child(_as_nobody(_read)).result() == (b"compiled\n", [])
    assert compiler.calls == 1
    (compiler.folder / "calls").chmod(0o666)

    def other() -> bytes:
        return build.build_cubin(SOURCE, {"FUSEPASS_TEST": 2}, ARCH).read_bytes()

    image, warned = Child(_as_nobody(other)).result()
    assert (image, compiler.calls) == (b"compiled\n", 2)
    _told(warned, "Permission denied")


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(folder)]
    if not ROOT or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    monkeypatch.setenv("FUSEPASS_CACHE_DIR", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _fill(folder: Path) -> None:
    with pytest.raises(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_told_and_done_without(compiler: Compiler, full_disk: Path) -> None:
    _fill(full_disk)
    image, warned = Child(_read).result()
    assert image == b"compiled\n"
    _told(warned, "No space left on device")


def test_a_disk_that_fills_up_while_the_compiler_writes(
    compiler: Compiler, full_disk: Path
) -> None:
    compiler.hold()
    child = Child(_read)
    _wait_for(lambda: compiler.calls == 1)
    _fill(full_disk)
    compiler.release()
    image, warned = child.result()
    assert image == b"compiled\n"
    _told(warned, "No space left on device")


def _truncate(entry: Path) -> None:
    os.truncate(entry, 3)


def _replace(entry: Path) -> None:
    entry.unlink()
    entry.write_bytes(b"some other library")


def _link(entry: Path) -> None:
    elsewhere = entry.parents[2] / "elsewhere"
    elsewhere.write_bytes(b"planted")
    entry.unlink()
    entry.symlink_to(elsewhere)


def _open_to_all(entry: Path) -> None:
    entry.chmod(0o666)


def _lose_manifest(entry: Path) -> None:
    (entry.parent / "manifest.json").unlink()


def _write_manifest(entry: Path, text: str) -> None:
    (entry.parent / "manifest.json").write_text(text)


_MANIFESTS = [partial(_write_manifest, text=t) for t in ('["not a manifest"]', "null", "5", "{}")]


@pytest.mark.parametrize(
    "spoil", [_truncate, _replace, _link, _open_to_all, _lose_manifest, *_MANIFESTS]
)
def test_a_spoilt_entry_is_built_anew(compiler: Compiler, spoil: Callable[[Path], None]) -> None:
    spoil(Child(_build).result()[0])
    for _ in range(2):
        assert Child(_read).result() == (b"compiled\n", [])
    assert compiler.calls == 2
    assert list(cache.configured_root().glob(".building-*")) == []


def test_another_torch_cuda_or_gpu_is_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {build._binding_hash(("90a",)), build._binding_hash(("80",))}
    monkeypatch.setattr(build.torch, "__version__", "9.9.9")
    names.add(build._binding_hash(("90a",)))
    monkeypatch.setattr(build.torch.version, "cuda", "99.9")
    names.add(build._binding_hash(("90a",)))
    assert len(names) == 4


def test_what_does_not_compile_is_tried_once_a_process(compiler: Compiler) -> None:
    broken = _COMPILER.replace("{compile}", "echo error: no such instruction; exit 1")
    (compiler.folder / "bin" / "nvcc").write_text(broken.replace("{folder}", str(compiler.folder)))

    def work() -> list[str]:
        told = []
        for _ in range(3):
            with pytest.raises(toolchain.BuildError) as caught:
                _build()
            told.append(str(caught.value))
        return told

    told, _ = Child(work).result()
    assert compiler.calls == 1
    assert all("error: no such instruction" in text for text in told)


@pytest.mark.skipif(toolchain.host_compiler() is None, reason="needs a C++ compiler")
def test_a_runtime_without_a_name_for_the_linker_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's CUDA runtime is lib/libcudart.so.13 and nothing else."""
    home, links = tmp_path / "cu13", tmp_path / "links"
    for folder in (home / "bin", home / "include", home / "lib", links):
        folder.mkdir(parents=True)
    (home / "bin" / "nvcc").touch()
    (home / "include" / "cuda_runtime.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    compiler = [str(toolchain.host_compiler()), "-x", "c++", os.devnull, "-shared", "-o"]
    toolchain.run([*compiler, str(home / "lib" / "libcudart.so.13")])
    link = [*compiler, str(tmp_path / "binding.so"), f"-L{home / 'lib'}"]
    with pytest.raises(toolchain.BuildError, match="cudart"):
        toolchain.run([*link, "-lcudart"])
    toolchain.run([*link, *toolchain.runtime_flags(home / "bin" / "nvcc", links), "-lcudart"])
    (home / "lib" / "libcudart.so").symlink_to("libcudart.so.13")  # as in a toolkit
    assert toolchain.runtime_flags(home / "bin" / "nvcc", links) == []
