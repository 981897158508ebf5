"""Threads that read and decode, and the bounded queue before them: the event loop itself never waits for a disk."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from dhlab_lab.access import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Workers"]

Value = TypeVar("Value")


# What waits for a slow disk to open its slides must not hold up the tiles of others.
OPENING_THREADS = 2


class Workers:
    """A few threads that make tiles, and others that open files; to be used from one event loop.

    Parameters
    ----------
    threads
        How many make tiles.
    most_waiting
        Requests that may wait for a thread or be served by one; more are refused.
    """

    def __init__(self, threads: int, *, most_waiting: int) -> None:
        self.most_waiting = most_waiting
        self._tiles = ThreadPoolExecutor(threads, thread_name_prefix="dhlab-tiles")
        self._opening = ThreadPoolExecutor(OPENING_THREADS, thread_name_prefix="dhlab-open")
        self._waiting = 0

    def submit(self, work: Callable[[], Value], *, opening: bool = False) -> asyncio.Future[Value]:
        """Do `work` in a thread; when the future is cancelled before its turn, it is not done.

        Parameters
        ----------
        work
            What to do.
        opening
            It opens a file, which may take long.

        Raises
        ------
        Refused
            503 if too many wait already.
        """
        if self._waiting >= self.most_waiting:
            raise Refused(503, f"{self._waiting} requests wait for this server's disk; try again in a moment.")
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._opening if opening else self._tiles, work)

        def forget(_: object) -> None:
            self._waiting -= 1

        future.add_done_callback(forget)
        return future

    def close(self) -> None:
        """Drop what waits; what is under way is finished."""
        for pool in (self._tiles, self._opening):
            pool.shutdown(wait=False, cancel_futures=True)
