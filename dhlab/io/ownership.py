"""`Ownership`: one process at a time works in a folder, on any file system, and a dead one blocks nobody."""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from dhlab.atomic import is_alive, process_identity, remove, storage_errors
from dhlab.errors import ConflictError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SILENCE_S", "Ownership", "folder_of"]

# How long an owner on another machine may be silent before its place is taken; it gives a sign every tenth of that.
SILENCE_S = 300.0
_owned: weakref.WeakSet[Ownership] = weakref.WeakSet()


class Ownership:
    """The claim of one process on a hidden folder: numbered files, of which only the highest counts.

    A file is made exclusively, so two processes never hold the same number; taking over from a dead owner means
    making the next one. No file locks: they do not hold on every network file system.

    Parameters
    ----------
    folder
        The folder that is claimed.
    number
        Number of this claim.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self._ended = threading.Event()
        threading.Thread(target=_give_signs, args=(folder / f"owner.{number}", self._ended), daemon=True).start()
        self._free = weakref.finalize(self, _free, folder, number, ended=self._ended, process=os.getpid())
        _owned.add(self)

    @classmethod
    def take(cls, target: Path) -> Ownership:
        """Claim the hidden folder of an output, or raise `ConflictError` if another process is at work there."""
        folder = folder_of(target)
        with storage_errors(target):
            folder.mkdir(exist_ok=True)
            latest = _latest_owner(folder)
            if latest is not None:
                _refuse_if_held(folder, latest)
            number = 1 + (latest or 0)
            _claim(folder / f"owner.{number}")
            for older in range(number - 1, 0, -1):
                if not (folder / f"owner.{older}").exists():
                    break
                (folder / f"owner.{older}").unlink(missing_ok=True)
        return cls(folder, number)

    def check(self) -> None:
        """Raise `ConflictError` if this claim has ended or another process took over."""
        if self._ended.is_set() or _latest_owner(self.folder) != self.number:
            raise ConflictError(
                f"this process no longer holds {self.folder}: it was closed, removed or taken over after a long "
                "silence. Begin again; what was written is continued."
            )

    def release(self) -> None:
        """End the claim; the next process may go on at once."""
        self._free()
        _owned.discard(self)

    def remove(self) -> None:
        """Remove the folder and with it the claim."""
        self._free.detach()
        self._ended.set()
        _owned.discard(self)
        remove(self.folder)


def folder_of(target: Path) -> Path:
    """Return the hidden folder in which an output is made before it appears at `target`."""
    return target.with_name(f".{target.name}.partial")


def _claim(place: Path) -> None:
    """Make the file of a claim, with its content, unless there is one."""
    draft = place.with_name(f"draft.{process_identity()}.{threading.get_ident()}")
    draft.write_text(process_identity())
    try:
        os.link(draft, place)
    except FileExistsError:
        raise ConflictError(_held(place.parent, "another process, begun at this very moment,")) from None
    finally:
        draft.unlink()


def _latest_owner(folder: Path) -> int | None:
    try:
        numbers = [int(p.name.removeprefix("owner.")) for p in folder.iterdir() if p.name.startswith("owner.")]
    except FileNotFoundError:
        return None
    return max(numbers, default=None)


def _refuse_if_held(folder: Path, number: int) -> None:
    file = folder / f"owner.{number}"
    try:
        identity, silence = file.read_text(), time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return
    if identity == process_identity():
        if any(o.folder == folder and o.number == number for o in _owned):
            raise ConflictError(_held(folder, "this process"))
    elif identity and is_alive(identity):
        raise ConflictError(_held(folder, f"process {identity.split('-')[1]} on this machine"))
    elif identity and is_alive(identity) is None and silence < SILENCE_S:
        raise ConflictError(
            _held(
                folder,
                f"a process on another machine (last sign {silence:.0f} s ago; its place is free "
                f"after {SILENCE_S:.0f} s)",
            )
        )


def _held(folder: Path, who: str) -> str:
    return f"{who} is writing {folder}. Wait for it, stop it, or choose another name for the output."


def _free(folder: Path, number: int, *, ended: threading.Event, process: int) -> None:
    """Empty the file of a claim, so that the next process need not wait; a forked child frees nothing."""
    if os.getpid() == process:
        ended.set()
        with suppress(OSError):
            if _latest_owner(folder) == number:
                (folder / f"owner.{number}").write_text("")


def _give_signs(file: Path, ended: threading.Event) -> None:
    while not ended.wait(SILENCE_S / 10):
        try:
            os.utime(file)
        except OSError:
            return
