"""What was made with effort, kept up to a number of bytes and made once however many threads ask for it."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ByteCache"]

Value = TypeVar("Value")


class ByteCache:
    """Values by key, the least recently used dropped once their bytes exceed a budget; safe between threads.

    Parameters
    ----------
    budget
        Largest sum of the sizes that are kept, in bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._items: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._making: dict[Any, Future[Any]] = {}
        self._lock = Lock()

    def get(self, key: Any) -> Any:
        """Return the value kept under `key`, or None."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Keep a value of `size` bytes, unless it is larger than the whole budget."""
        if size > self.budget:
            return
        with self._lock:
            self.used += size - (self._items.pop(key)[1] if key in self._items else 0)
            self._items[key] = (value, size)
            while self.used > self.budget:
                self.used -= self._items.popitem(last=False)[1][1]

    def get_or_make(self, key: Any, make: Callable[[], Value], size: Callable[[Value], int]) -> Value:
        """Return the value kept under `key`, or make and keep it; threads that ask meanwhile wait for the first.

        Parameters
        ----------
        key
            Anything hashable.
        make
            Makes the value; what it raises reaches everyone who waits, and nothing is kept.
        size
            Returns the bytes that a value takes.
        """
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                found: Value = self._items[key][0]
                return found
            making = self._making.get(key)
            first = making is None
            if making is None:
                making = self._making[key] = Future()
        if not first:
            waited: Value = making.result()
            return waited
        try:
            value = make()
        except BaseException as error:
            making.set_exception(error)
            raise
        else:
            self.put(key, value, size(value))
            making.set_result(value)
            return value
        finally:
            with self._lock:
                del self._making[key]

    def drop(self, chosen: Callable[[Any], bool] = lambda _: True) -> None:
        """Forget the values whose keys are `chosen`, by default all."""
        with self._lock:
            for key in [key for key in self._items if chosen(key)]:
                self.used -= self._items.pop(key)[1]

    def __len__(self) -> int:
        return len(self._items)
