"""The threads that decode tiles, shared by all readers, and the stamp that tells whether a file has changed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dhlab import env
from dhlab.errors import BadFileError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["Stamp", "run_all"]

Item = TypeVar("Item")
PARTS_PER_THREAD = 4
NAME = "dhlab-decode"
_pools: dict[int, ThreadPoolExecutor] = {}


def run_all(function: Callable[[Sequence[Item]], Any], items: Sequence[Item], *, least: int = 2) -> None:
    """Call a function on runs of neighbouring items, on all threads that may decode (`env.thread_count`).

    Parameters
    ----------
    function
        Takes some of the items; it should release Python's lock while it works.
    items
        The work, in the order in which it lies in the file.
    least
        Items that make a thread worth its while; with fewer all run in the caller.

    Raises
    ------
    Exception
        The first that `function` raised; parts not begun are then dropped.
    """
    threads = min(env.thread_count(), len(items) // least)
    # A thread of the pool that waited for others of the pool could wait for ever.
    if threads <= 1 or threading.current_thread().name.startswith(NAME):
        function(items)
        return
    step = -(-len(items) // (threads * PARTS_PER_THREAD))
    pool = _pool(env.thread_count())
    parts = [pool.submit(function, items[first : first + step]) for first in range(0, len(items), step)]
    try:
        for part in parts:
            part.result()
    finally:
        # Nothing may write into the caller's array after an error has reached the caller.
        for part in parts:
            part.cancel()
        for part in parts:
            if not part.cancelled():
                part.exception()


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix=NAME)
    return _pools[threads]


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: a data loader's worker starts its own.
    os.register_at_fork(after_in_child=_pools.clear)


@dataclass(frozen=True)
class Stamp:
    """Size and time of change of a file, to notice that another one has taken its place."""

    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return the stamp of the file at `path`.

        Raises
        ------
        NotFoundError
            If it is gone.
        """
        try:
            found = path.stat()
        except FileNotFoundError:
            raise NotFoundError(f"nothing at {path} any more; expected the scan that was opened there.") from None
        return cls(found.st_size, found.st_mtime_ns)

    def check(self, path: Path) -> None:
        """Refuse a file that is not the one that was opened.

        Raises
        ------
        BadFileError
            If size or time of change differ.
        """
        if Stamp.of(path) != self:
            raise BadFileError(f"{path} has changed since the scan was opened. Open it again with dhlab.open.")
