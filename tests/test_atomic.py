"""Outputs appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dhlab import atomic
from dhlab.atomic import atomic_file, atomic_folder, atomic_write_bytes, atomic_write_text, share
from dhlab.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

AWKWARD = ["plain.bin", "two words.bin", "Gewebe-Überblick 🔬.bin", "-dash", "a" * 250, "x.partial"]


def names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()]


def fail_after(write: Callable[[str], object], text: str, *, error: type[BaseException]) -> None:
    write(text)
    raise error


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", AWKWARD)
def test_file_appears_whole_under_its_name(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with atomic_file(target) as partial:
        partial.write_bytes(b"new")
        assert partial.parent == target.parent
        assert partial.name.startswith(".")
        assert partial.name.endswith(".partial")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    atomic_write_text(target, "old µ")
    with pytest.raises(error), atomic_file(target) as partial:
        fail_after(partial.write_text, "half", error=error)
    assert target.read_text(encoding="utf-8") == "old µ"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_file_keeps_the_permissions_of_what_it_replaces(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "a"
    atomic_write_text(target, "old")
    fresh = target.stat().st_mode
    (tmp_path / "b").touch()
    assert fresh == (tmp_path / "b").stat().st_mode
    target.chmod(mode)
    atomic_write_text(target, "new")
    assert stat.S_IMODE(target.stat().st_mode) == mode
    if os.geteuid() == 0:
        os.chown(target, -1, 3000)
        atomic_write_text(target, "newer")
        assert target.stat().st_gid == 3000


@pytest.mark.parametrize(("above", "mode"), [(0o775, 0o660), (0o777, 0o666), (0o755, 0o600), (0o1777, 0o600)])
def test_what_is_shared_may_be_written_by_whoever_may_write_into_the_folder(
    tmp_path: Path, above: int, mode: int
) -> None:
    tmp_path.chmod(above)
    for path, is_folder in ((tmp_path / "a", False), (tmp_path / "b", True)):
        path.mkdir() if is_folder else path.touch()
        path.chmod(0o700 if is_folder else 0o600)
        share(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode | ((mode & 0o444) >> 2 if is_folder else 0)


@pytest.mark.parametrize("before", ["nothing", "folder", "file", "link"])
def test_folder_replaces_what_is_there(tmp_path: Path, before: str) -> None:
    target = tmp_path / "store 🔬"
    if before == "folder":
        (target / "deep").mkdir(parents=True)
        (target / "deep" / "old").write_text("old")
    elif before == "file":
        target.write_text("old")
    elif before == "link":
        (tmp_path / "real").mkdir()
        target.symlink_to("real")
    with atomic_folder(target) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "new").write_text("new")
    assert [p.relative_to(target).as_posix() for p in sorted(target.rglob("*"))] == ["sub", "sub/new"]
    assert target.is_symlink() == (before == "link")
    assert leftovers(tmp_path) == []


def test_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as partial:
        fail_after((partial / "half").write_text, "half", error=ZeroDivisionError)
    assert names(target) == ["old"]
    assert leftovers(tmp_path) == []


def test_without_exchange_the_old_folder_comes_back_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").touch()
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    with atomic_folder(target) as partial:
        (partial / "new").touch()
    assert names(target) == ["new"]
    assert leftovers(tmp_path) == []
    # As a crash between the two renames leaves it: the old folder aside, the new one not yet there.
    dead = f"{atomic._machine()}-{2**22 + 1}-1-0"
    target.rename(tmp_path / f".store.{dead}.replaced")
    (tmp_path / f".store.{dead}.partial").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(target):
        raise ZeroDivisionError
    assert names(target) == ["new"]
    assert leftovers(tmp_path) == []


def test_partials_of_dead_processes_go_and_of_live_ones_stay(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    script = (
        "import os, sys\nfrom dhlab.atomic import atomic_file\n"
        "with atomic_file(sys.argv[1]) as p:\n    p.write_bytes(b'half')\n    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert killed.returncode == -9
    assert len(leftovers(tmp_path)) == 1
    assert not target.exists()
    other = tmp_path / ".a.bin.0123456789-17-17-0.partial"
    other.touch()
    with atomic_file(target) as first:
        first.write_bytes(b"first")
        atomic_write_bytes(target, b"second")
        assert set(leftovers(tmp_path)) == {first.name, other.name}
    assert target.read_bytes() == b"first"
    os.utime(other, (0, 0))
    atomic_write_bytes(target, b"third")
    assert leftovers(tmp_path) == []


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    target = tmp_path / "one.bin"
    contents = [bytes([i]) * 4097 for i in range(16)]
    threads = [threading.Thread(target=atomic_write_bytes, args=(target, c)) for c in contents for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() in contents
    assert leftovers(tmp_path) == []


def test_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    try:
        atomic_write_bytes(tmp_path / "old", b"old")
        with pytest.raises(StorageError, match=r"'old' into .*disk is full .*MB free now.*Free some space"):
            atomic_write_bytes(tmp_path / "old", bytes(10**6))
        with pytest.raises(StorageError, match="disk is full"), atomic_folder(tmp_path / "store") as partial:
            (partial / "big").write_bytes(bytes(10**6))
        assert names(tmp_path) == ["old"]
        assert (tmp_path / "old").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_file_size_limit_is_a_storage_error(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\nfrom dhlab.errors import StorageError\n"
        "from dhlab.atomic import atomic_write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    atomic_write_bytes(sys.argv[1], bytes(10**6))\nexcept StorageError as e:\n    print(e)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "big")]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "ulimit" in told.stdout
    assert names(tmp_path) == []


@pytest.mark.parametrize("read_only", ["mode", "mount"])
def test_read_only_folder_is_a_storage_error(tmp_path: Path, read_only: str) -> None:
    folder = tmp_path / "shared, read-only"
    folder.mkdir()
    if read_only == "mode":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.chmod(0o555)
    elif (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a read-only tmpfs needs root")
    try:
        with pytest.raises(StorageError, match=r"'a' into .*shared, read-only.*elsewhere"):
            atomic_write_bytes(folder / "a", b"")
        with pytest.raises(StorageError, match="elsewhere"), atomic_folder(folder / "b"):
            pytest.fail("the folder cannot have been made")
    finally:
        if read_only == "mount":
            subprocess.run(["umount", str(folder)], check=True)
        else:
            folder.chmod(0o755)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere does not exist"):
        atomic_write_bytes(tmp_path / "nowhere" / "a", b"")


def test_errors_of_other_files_are_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as caught, atomic_file(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else/source.svs")
    assert not isinstance(caught.value, StorageError)
    assert names(tmp_path) == []


def test_identity_tells_the_living_from_the_dead() -> None:
    me = atomic.process_identity()
    assert atomic.is_alive(me) is True
    machine, pid, start = me.split("-")
    assert atomic.is_alive(f"{machine}-{pid}-{int(start) + 1}") is False
    assert atomic.is_alive(f"{machine}-{2**22 + 1}-{start}") is False
    assert atomic.is_alive(f"elsewhere-{pid}-{start}") is None
