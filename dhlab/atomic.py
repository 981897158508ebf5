"""Outputs that appear whole or not at all: written beside their place, made durable, renamed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import time
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from dhlab.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FOREIGN_STALE_S",
    "atomic_file",
    "atomic_folder",
    "atomic_write_bytes",
    "atomic_write_text",
    "is_abandoned",
    "is_alive",
    "keep_permissions",
    "move_into_place",
    "process_identity",
    "remove",
    "share",
    "storage_error",
    "storage_errors",
    "sync",
    "sync_tree",
]

# What the operating system said, and what the person can do about it.
REMEDIES = {
    errno.ENOSPC: ("the disk is full", "Free some space or write elsewhere"),
    errno.EDQUOT: ("your quota is used up", "Remove files of yours or write elsewhere"),
    errno.EROFS: ("the file system is read-only", "Write elsewhere"),
    errno.EACCES: ("you may not write there", "Write elsewhere or ask the folder's owner for permission"),
    errno.EPERM: ("you may not write there", "Write elsewhere or ask the folder's owner for permission"),
    errno.EFBIG: ("the file grew larger than this file system or your limits allow", "Raise the limit (ulimit -f)"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "Choose a shorter name"),
}
# A partial of another machine cannot be asked whether its process lives; a day without a change means no.
FOREIGN_STALE_S = 86_400.0
LONGEST_NAME = 150
ENDED = "ended"
_counter = count()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write a file to; the file takes its place when the block ends well.

    Parameters
    ----------
    path
        Where the file shall appear. What is there is replaced, and its permissions stay; a symbolic link is followed.

    Yields
    ------
    Path
        A hidden, unused name ending in ``.partial`` in the same folder. It is removed if the block fails.

    Raises
    ------
    StorageError
        If the disk is full, the quota used up, or the folder not writable.
    NotFoundError
        If the folder does not exist.
    """
    target = _target(path)
    partial = _partial(target)
    with _removed_on_failure(partial, target):
        yield partial
        keep_permissions(partial, target)
        sync(partial)
        partial.replace(target)
        sync(target.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes its place when the block ends well.

    Parameters
    ----------
    path
        Where the folder shall appear. What is there is replaced in one step: a crash leaves the old or the new one,
        whole.

    Yields
    ------
    Path
        An empty, hidden folder whose name ends in ``.partial``, beside `path`. It is removed if the block fails.

    Raises
    ------
    StorageError
        If the disk is full, the quota used up, or the folder not writable.
    NotFoundError
        If the folder above does not exist.
    """
    target = _target(path)
    partial = _partial(target)
    with _removed_on_failure(partial, target):
        partial.mkdir()
        yield partial
        sync_tree(partial)
        move_into_place(partial, target)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as UTF-8, whole or not at all (see `atomic_file`)."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, whole or not at all (see `atomic_file`)."""
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def storage_error(
    error: OSError, path: Path, *, left: str = "nothing half-written is left behind"
) -> StorageError | None:
    """Return the error to raise where writing `path` failed for want of space or permission, or None if not so.

    Parameters
    ----------
    error
        What the operating system raised.
    path
        The output that was being written.
    left
        What is left of it, for the message.
    """
    if error.errno not in REMEDIES:
        return None
    blocked = error.errno in (errno.EACCES, errno.EPERM) and error.filename is not None
    if blocked and path.parent not in (Path(os.fsdecode(error.filename)), *Path(os.fsdecode(error.filename)).parents):
        return None
    what, remedy = REMEDIES[error.errno]
    free = ""
    if error.errno == errno.ENOSPC and path.parent.is_dir():
        free = f" ({shutil.disk_usage(path.parent).free / 1e6:,.1f} MB free now)"
    return StorageError(f"cannot write {path.name!r} into {path.parent}: {what}{free}. {remedy}; {left}.")


@contextmanager
def storage_errors(path: Path, *, left: str = "nothing half-written is left behind") -> Iterator[None]:
    """Turn a full disk or a forbidden folder within the block into a `StorageError` about the output `path`."""
    try:
        yield
    except OSError as error:
        if (told := storage_error(error, path, left=left)) is not None:
            raise told from error
        raise


def sync_tree(folder: Path) -> None:
    """Make every file and folder under `folder` durable."""
    for place, _, files in os.walk(folder):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file or folder to `target` on the same file system, replacing what is there in one step.

    Parameters
    ----------
    source
        Finished and durable (see `sync_tree`).
    target
        Where it shall appear. What it replaces is removed afterwards.
    """
    if not os.path.lexists(target):
        source.rename(target)
    elif _exchange(source, target):
        remove(source)
    else:
        # Without an exchange in one step the old one steps aside; `_recover` brings it back after a crash here.
        aside = _partial(target, ".replaced")
        target.rename(aside)
        source.rename(target)
        remove(aside)
    sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder with everything in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink(missing_ok=True)


def keep_permissions(path: Path, old: Path) -> None:
    """Give a file of this user the group and permissions of an old one, if there is one; of root, its owner too."""
    with suppress(FileNotFoundError):
        status = old.stat()
        if os.geteuid() == 0:
            with suppress(OSError):
                os.chown(path, status.st_uid, -1)
        _permit(path, status.st_mode, status.st_gid)


def share(path: Path) -> None:
    """Let everybody who may write into the folder of a file or folder also write into it, whatever the umask.

    In a sticky folder such as ``/tmp``, where people leave each other's files alone, nothing is changed.

    Parameters
    ----------
    path
        Just made by this user.
    """
    folder = path.parent.stat()
    writing = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writing and not folder.st_mode & stat.S_ISVTX:
        # Who may write may also read, and enter a folder.
        granted = writing | writing << 1 | (writing >> 1 if path.is_dir() else 0)
        _permit(path, path.stat().st_mode | granted, folder.st_gid)


def process_identity(pid: int | None = None) -> str:
    """Return a name for a process, this one if `pid` is None, that no other has: ``<machine>-<pid>-<start>``."""
    pid = os.getpid() if pid is None else pid
    return f"{_machine()}-{pid}-{_start_of(pid)}"


def is_alive(identity: str) -> bool | None:
    """Return whether the process with this `process_identity` runs; None if it belongs to another machine."""
    machine, _, rest = identity.partition("-")
    pid, _, start = rest.partition("-")
    if machine != _machine():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_of(int(pid)) == start != ENDED


def is_abandoned(place: Path, identity: str, *, silence_s: float = FOREIGN_STALE_S) -> bool:
    """Return whether the process that made a file or folder is gone.

    Parameters
    ----------
    place
        The file or folder.
    identity
        The `process_identity` of who made it.
    silence_s
        On another machine it is taken for gone after so long without a change anywhere within.
    """
    alive = is_alive(identity)
    return time.time() - _last_change(place) > silence_s if alive is None else not alive


def _permit(path: Path, mode: int, group: int) -> None:
    # Some file systems know no permissions.
    with suppress(OSError):
        if path.stat().st_gid != group:
            try:
                os.chown(path, -1, group)
            except PermissionError:
                # It stays with another group, which gets no more than everybody.
                mode = mode & ~stat.S_IRWXG | (mode & stat.S_IRWXO) << 3
        path.chmod(stat.S_IMODE(mode))


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(os.path.realpath(Path(path).expanduser()))
    if not target.parent.is_dir():
        raise NotFoundError(
            f"cannot write {target.name!r}: the folder {target.parent} does not exist. Make it first or mend the path."
        )
    _recover(target)
    return target


def _stem(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        short = os.fsencode(name)[: LONGEST_NAME - 20].decode(errors="ignore")
        return f".{short}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}"


def _partial(target: Path, suffix: str = ".partial") -> Path:
    return target.with_name(f"{_stem(target)}.{process_identity()}-{next(_counter)}{suffix}")


def _recover(target: Path) -> None:
    """Remove what dead processes left of this target; bring the old one back if its replacement never came."""
    pattern = re.compile(re.escape(_stem(target)) + r"\.(\w+-\d+-\d+)-\d+(\.partial|\.replaced)")
    with os.scandir(target.parent) as entries:
        found = [(Path(e.path), m) for e in entries if (m := pattern.fullmatch(e.name))]
    for place, match in found:
        if not is_abandoned(place, match[1]):
            continue
        if match[2] == ".replaced" and not os.path.lexists(target):
            place.rename(target)
        else:
            remove(place)


def _last_change(path: Path) -> float:
    try:
        return max((p.lstat().st_mtime for p in path.rglob("*")), default=path.lstat().st_mtime)
    except OSError:
        return time.time()


@contextmanager
def _removed_on_failure(partial: Path, target: Path) -> Iterator[None]:
    with storage_errors(target):
        try:
            yield
        except BaseException:
            remove(partial)
            raise


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot make a folder durable on its own.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step (Linux renameat2); False where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    here, swap = -100, 2
    if call(here, os.fsencode(first), here, os.fsencode(second), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), os.fspath(second))


@cache
def _machine() -> str:
    """Return a word for this machine since its start and this process namespace (containers share host names)."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = (
        socket.gethostname(),
        boot.read_text() if boot.exists() else "",
        str(namespace.stat().st_ino) if namespace.exists() else "",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def _start_of(pid: int) -> str:
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    # A process that has ended stays listed until its parent looks.
    return ENDED if state == "Z" else rest[18]
