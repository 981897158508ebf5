"""A file that is touched as long as a job's process lives: so much is seen of it from other machines, too."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from dhlab.scheduling.folder import REQUEST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ALIVE", "heartbeat", "is_beating"]

ALIVE = "alive"
SECONDS_BETWEEN_BEATS, SECONDS_UNTIL_GIVEN_UP = 10.0, 120.0


@contextmanager
def heartbeat(folder: Path) -> Iterator[None]:
    """Touch the file of a job every ten seconds, as long as the context lasts.

    Parameters
    ----------
    folder
        Folder of the job.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(folder / ALIVE, ended), name="dhlab-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def is_beating(folder: Path) -> bool:
    """Return whether a job gave a sign of life, or was handed over, in the last two minutes.

    Parameters
    ----------
    folder
        Folder of the job.
    """
    signs = [place.stat().st_mtime for name in (ALIVE, REQUEST) if (place := folder / name).exists()]
    return time.time() - max(signs, default=0.0) < SECONDS_UNTIL_GIVEN_UP


def _beat(place: Path, ended: threading.Event) -> None:
    while True:
        # A file system that is away for a moment is no reason to stop.
        with suppress(OSError):
            place.touch()
        if ended.wait(SECONDS_BETWEEN_BEATS):
            return
