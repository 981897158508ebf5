"""Threads that read, decode and ask, and the bounded queue before them: the event loop itself waits for nobody."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, TypeVar

from dhlab_lab.access import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pool", "Workers"]

Value = TypeVar("Value")
Pool = Literal["tiles", "files", "jobs"]

# A disk that opens slides slowly must not hold up the tiles of others, nor a cluster that does not answer the slides.
FILE_THREADS, JOB_THREADS = 2, 2


class Workers:
    """Pools of a few threads: one makes tiles, one opens files, one asks for jobs; to be used from one event loop.

    Parameters
    ----------
    threads
        How many make tiles.
    most_waiting
        Requests that may wait for a thread or be served by one; more are refused.
    """

    def __init__(self, threads: int, *, most_waiting: int) -> None:
        self.most_waiting = most_waiting
        self._pools = {
            pool: ThreadPoolExecutor(count, thread_name_prefix=f"dhlab-{pool}")
            for pool, count in (("tiles", threads), ("files", FILE_THREADS), ("jobs", JOB_THREADS))
        }
        self._waiting = 0

    def submit(self, work: Callable[[], Value], *, pool: Pool = "tiles") -> asyncio.Future[Value]:
        """Do `work` in a thread; when the future is cancelled before its turn, it is not done.

        Parameters
        ----------
        work
            What to do.
        pool
            Which threads: those that make tiles; those that open files, which may take long; or those that ask for
            jobs, which may wait for a cluster.

        Raises
        ------
        Refused
            503 if too many wait already.
        """
        if self._waiting >= self.most_waiting:
            raise Refused(503, f"{self._waiting} requests wait for this server's disk; try again in a moment.")
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._pools[pool], work)

        def forget(_: object) -> None:
            self._waiting -= 1

        future.add_done_callback(forget)
        return future

    def close(self) -> None:
        """Drop what waits; what is under way is finished."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
