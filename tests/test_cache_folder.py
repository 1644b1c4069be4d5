"""The folder of built kernels under everything that happens to it in real life."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from counting_compiler import (
    ARCH,
    NOBODY,
    SOURCE,
    Child,
    Compiler,
    as_nobody,
    build_one,
    install,
    open_to_all,
    read,
    wait_for,
)

from fusepass.kernels.build import build, cache

ROOT = os.geteuid() == 0


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return install(tmp_path, monkeypatch, None)


def test_with_a_group_writable_umask_the_second_process_still_finds_it(compiler: Compiler) -> None:
    def work() -> bytes:
        os.umask(0o002)  # many distributions' default
        return read()

    for _ in range(2):
        assert Child(work).result() == (b"compiled\n", [])
    assert compiler.calls == 1


def test_a_missing_folder_is_made_for_its_user_alone(compiler: Compiler, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    os.environ["FUSEPASS_CACHE_DIR"] = str(folder)
    assert Child(read).result() == (b"compiled\n", [])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_another_process_makes_first(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.configured_root().mkdir(mode=0o700)
    monkeypatch.setattr(Path, "exists", lambda path: False)  # as it was a moment ago
    assert Child(read).result() == (b"compiled\n", [])


def _told(warned: list[str], *words: str) -> None:
    assert len(warned) == 1
    for word in ("cannot use the cache folder", *words):
        assert word in warned[0]
    assert "; set FUSEPASS_CACHE_DIR to " in warned[0] or "; chmod go-w " in warned[0]


def test_a_folder_that_cannot_be_made_is_told_and_done_without(
    compiler: Compiler, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    os.environ["FUSEPASS_CACHE_DIR"] = str(tmp_path / "file" / "below")
    image, warned = Child(read).result()
    assert image == b"compiled\n"
    _told(warned, "Not a directory")


def test_what_others_can_write_is_told_and_never_used(compiler: Compiler) -> None:
    planted = Child(build_one).result()[0]
    planted.write_bytes(b"planted")
    cache.configured_root().chmod(0o777)
    image, warned = Child(read).result()
    assert image == b"compiled\n"
    _told(warned, "other users can write to it", "chmod go-w")


@pytest.mark.skipif(not ROOT, reason="needs root, to give a folder away")
def test_what_another_user_owns_is_told_and_never_used(compiler: Compiler) -> None:
    planted = Child(build_one).result()[0]
    os.chown(cache.configured_root(), NOBODY, NOBODY)
    image, warned = Child(read).result()
    assert image == b"compiled\n"
    _told(warned, "belongs to another user", "FUSEPASS_CACHE_DIR")
    os.chown(cache.configured_root(), 0, 0)
    os.chown(planted, NOBODY, NOBODY)  # the folder is ours, but the file in it is not
    planted.write_bytes(b"planted")
    assert Child(read).result() == (b"compiled\n", [])


@pytest.mark.skipif(not ROOT, reason="needs root, to become another user")
def test_a_read_only_folder_serves_what_it_has_and_lets_the_rest_be_built(
    compiler: Compiler, tmp_path: Path
) -> None:
    open_to_all(tmp_path)
    Child(build_one).result()
    subprocess.run(["chmod", "-R", "a+rX", str(cache.configured_root())], check=True)
    assert Child(as_nobody(read)).result() == (b"compiled\n", [])
    assert compiler.calls == 1
    (compiler.folder / "calls").chmod(0o666)

    def other() -> bytes:
        return build.build_cubin(SOURCE, {"FUSEPASS_TEST": 2}, ARCH).read_bytes()

    image, warned = Child(as_nobody(other)).result()
    assert (image, compiler.calls) == (b"compiled\n", 2)
    _told(warned, "Permission denied")


@pytest.mark.skipif(not ROOT, reason="needs root, to become another user")
def test_a_process_that_becomes_another_user_gets_a_folder_of_that_users() -> None:
    def work() -> tuple[Path, Path, bool]:
        cache._make_private_root.cache_clear()  # the one of the tests' own process is not to go
        mine = cache._private_root()
        theirs = as_nobody(cache._private_root)()
        return mine, theirs, os.access(theirs, os.W_OK)

    (mine, theirs, writable), _ = Child(work).result()
    for folder in (mine, theirs):  # a forked process leaves without cleaning up
        shutil.rmtree(folder, ignore_errors=True)
    assert theirs != mine and writable


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
    image, warned = Child(read).result()
    assert image == b"compiled\n"
    _told(warned, "No space left on device")


def test_a_disk_that_fills_up_while_the_compiler_writes(
    compiler: Compiler, full_disk: Path
) -> None:
    compiler.hold()
    child = Child(read)
    wait_for(lambda: compiler.calls == 1)
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
    spoil(Child(build_one).result()[0])
    for _ in range(2):
        assert Child(read).result() == (b"compiled\n", [])
    assert compiler.calls == 2
    assert list(cache.configured_root().glob(".building-*")) == []
