"""Threads that make tiles: those that somebody waits for at once, those that may be wanted next in idle time."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from queue import Full
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["TileWorkers"]

Value = TypeVar("Value")
MOST_AHEAD = 64
# Idle is when nobody has asked for this long.
PAUSE_S = 0.1
NICENESS = 10


class TileWorkers:
    """A bounded queue of work with its threads; work whose future is cancelled before its turn is dropped.

    Parameters
    ----------
    threads
        Threads for what somebody waits for. One more, of low priority, works ahead.
    most_waiting
        Length of the queue; beyond it new work is refused.
    """

    def __init__(self, threads: int = 2, *, most_waiting: int = 4096) -> None:
        self.threads = threads
        self.most_waiting = most_waiting
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._ahead: deque[Callable[[], object]] = deque(maxlen=MOST_AHEAD)
        self._changed = threading.Condition()
        self._running: list[threading.Thread] = []
        self._last = 0.0
        self._closed = False

    def submit(self, work: Callable[[], Value]) -> Future[Value]:
        """Do `work` as soon as a thread is free; its result or error arrives in the future.

        Raises
        ------
        queue.Full
            If too much is waiting already, or the workers are closed.
        """
        future: Future[Value] = Future()
        with self._changed:
            if self._closed or len(self._waiting) >= self.most_waiting:
                raise Full
            self._start()
            self._last = time.monotonic()
            self._waiting.append((future, work))
            self._changed.notify_all()
        return future

    def foresee(self, works: Iterable[Callable[[], object]]) -> None:
        """Do these in idle time, the last named first; they push out older ones that were never begun."""
        with self._changed:
            self._ahead.extend(works)
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel what waits and end the threads."""
        with self._changed:
            self._closed = True
            for future, _ in self._waiting:
                future.cancel()
            self._waiting.clear()
            self._ahead.clear()
            self._changed.notify_all()

    def _start(self) -> None:
        if self._running:
            return
        targets = [self._serve] * self.threads + [self._work_ahead]
        self._running = [
            threading.Thread(target=t, name=f"dhlab-tiles-{i}", daemon=True) for i, t in enumerate(targets)
        ]
        for thread in self._running:
            thread.start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                future, work = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                future.set_exception(error)
            del future, work

    def _work_ahead(self) -> None:
        if hasattr(os, "setpriority"):
            # Linux keeps a priority for each thread.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ahead or self._closed)
                if self._closed:
                    return
                rest = self._last + PAUSE_S - time.monotonic()
                if self._waiting or rest > 0:
                    self._changed.wait(max(rest, 0.001))
                    continue
                work = self._ahead.pop()
            # Whoever asks for it in earnest will be told what is wrong.
            with contextlib.suppress(Exception):
                work()
            del work
