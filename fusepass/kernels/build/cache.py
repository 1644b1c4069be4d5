"""The folder of built kernels: built once per machine, by whoever comes first, and never trusted
blindly.

An entry is a folder whose name holds the hash of all it was built from. It is built in a temporary
folder under a lock that dies with its holder, and renamed into place: it is whole or it is absent.
A manifest of checksums tells a damaged file from a good one.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path

from ...progress import step
from .toolchain import BuildError

CACHE_VARIABLE = "FUSEPASS_CACHE_DIR"
_MANIFEST = "manifest.json"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ROOM = 64 << 20  # bytes; with less left on the disk, that is why a build failed

_folder_only = False  # of this process, which builds in order to ship


class CacheUnusable(BuildError):
    """A folder cannot be used as the cache.

    Attributes:
        root: the folder.
        reason: why, in words for the user.
        remedy: what the user can do.
    """

    def __init__(self, root: Path, reason: str, remedy: str | None = None) -> None:
        self.root, self.reason = root, reason
        self.remedy = remedy or f"set {CACHE_VARIABLE} to a folder of your own"
        super().__init__(f"cannot use the cache folder '{root}': {reason}; {self.remedy}")


def configured_root() -> Path:
    """Where built kernels are kept: FUSEPASS_CACHE_DIR, else beside torch's own extensions."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    if extensions := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(extensions).expanduser().absolute() / "fusepass"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "fusepass"


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the cache, built by ``build(empty folder)`` if it is not there whole.

    Where the cache folder cannot be used, the user is warned and the entry is built in a folder
    that lives as long as this process.

    Raises:
        CacheUnusable: if the folder cannot be used, ``within_folder``.
    """
    try:
        with _explained(configured_root()) as root:
            return _entry_in(_usable(root), name, build)
    except CacheUnusable as unusable:
        if _folder_only:
            raise
        _warn_unusable(str(unusable))
    return _entry_in(_private_root(), name, build)


@contextlib.contextmanager
def within_folder() -> Iterator[Path]:
    """The cache folder, made if it is not there; nothing is built elsewhere meanwhile.

    For a program that builds in order to ship the folder, as this switches for all its threads.

    Raises:
        CacheUnusable: if the folder cannot be used.
    """
    global _folder_only
    with _explained(configured_root()) as root:
        _usable(root)
    _folder_only = True
    try:
        yield root
    finally:
        _folder_only = False


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[Path]:
    """Turns what the system says of ``root`` into words for the user."""
    try:
        yield root
    except OSError as error:
        raise CacheUnusable(root, error.strerror or str(error)) from error


def find(prefix: str) -> Path | None:
    """A whole entry whose name starts with ``prefix``; None if there is none or no cache."""
    with contextlib.suppress(CacheUnusable, OSError):
        root = _usable(configured_root())
        for folder in sorted(root.glob(prefix + "*")):
            if _whole(folder):
                return folder
    return None


def entries() -> list[tuple[Path, bool]]:
    """All entries of the cache folder, each with whether it is whole.

    Raises:
        CacheUnusable, OSError: if the folder cannot be used or is not there.
    """
    root = check_root(configured_root())
    folders = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    return [(folder, _whole(folder)) for folder in folders]


def _entry_in(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    folder = root / name
    if _whole(folder):  # before the lock: a cache that cannot be written can still be read
        return folder
    with _locked(root, name):
        if not _whole(folder):
            _build(root, name, build)
    return folder


def _build(root: Path, name: str, build: Callable[[Path], None]) -> None:
    """Builds and renames into place; called with the lock held."""
    for left_behind in root.glob(f".building-{name}-*"):  # by a builder that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".building-{name}-", dir=root))
    try:
        _run(build, scratch)
        checksums = {p.name: _checksum(p) for p in sorted(scratch.iterdir()) if p.is_file()}
        (scratch / _MANIFEST).write_text(json.dumps(checksums))
        for path in scratch.iterdir():  # a lax umask must not make the entry distrusted
            path.chmod(path.stat().st_mode & ~_OTHERS_WRITE)
        if (root / name).is_symlink():
            (root / name).unlink()
        elif (root / name).exists():  # damaged, or not ours
            # Away from its name at once, whoever owns it; the next builder of it removes the rest.
            away = tempfile.mkdtemp(prefix=f".building-{name}-", dir=root)
            os.replace(root / name, Path(away) / "old")
            shutil.rmtree(away, ignore_errors=True)
        os.replace(scratch, root / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(build: Callable[[Path], None], scratch: Path) -> None:
    try:
        build(scratch)
    except Exception as error:
        # A compiler on a full disk fails in words of its own.
        if shutil.disk_usage(scratch).free < _ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _whole(folder: Path) -> bool:
    """Whether every file of the entry is there, ours, and what was built."""
    try:
        if not _trusted(folder) or not stat.S_ISDIR(folder.lstat().st_mode):
            return False
        checksums = json.loads((folder / _MANIFEST).read_text())
        files = [folder / file for file in checksums]
        trusted = all(_trusted(path) for path in (folder / _MANIFEST, *files))
        same = (_checksum(path) == checksums[path.name] for path in files)
        return trusted and bool(files) and all(same)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _trusted(path: Path) -> bool:
    """Whether only this user (or root) can have written ``path``."""
    info = path.lstat()
    return info.st_uid in (0, os.geteuid()) and not info.st_mode & _OTHERS_WRITE


def _usable(root: Path) -> Path:
    if not root.exists():
        root.mkdir(parents=True, mode=0o700, exist_ok=True)  # others may start at the same time
    return check_root(root)


def check_root(root: Path) -> Path:
    """The real path of an existing cache folder that only this user can write.

    Raises:
        CacheUnusable: with what is wrong and what to do.
    """
    root = root.resolve()
    if not root.is_dir():
        raise CacheUnusable(root, "it is not a folder")
    if root.stat().st_uid not in (0, os.geteuid()):
        raise CacheUnusable(root, "it belongs to another user, who could plant code in it")
    if root.stat().st_mode & _OTHERS_WRITE:
        reason = "other users can write to it and could plant code in it"
        raise CacheUnusable(root, reason, f"chmod go-w '{root}'")
    return root


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """Exclusive among processes and threads. The system drops the lock of a process that dies."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(root / f".lock-{name}", flags, 0o600)
    try:
        with step(f"waiting for another process that builds {name}"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_private_lock = threading.Lock()


def _private_root() -> Path:
    with _private_lock:
        return _make_private_root(os.geteuid())


@cache
def _make_private_root(user: int) -> Path:
    """A folder for this process while ``user`` runs it: who it becomes could not write into it."""
    root = tempfile.mkdtemp(prefix="fusepass-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)


@lru_cache(maxsize=16)
def _warn_unusable(why: str) -> None:
    warnings.warn(f"fusepass: {why}. Kernels are built for this process alone.", stacklevel=2)
