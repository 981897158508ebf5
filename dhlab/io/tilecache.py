"""Decoded tiles that the next batch of windows is likely to want: the part that this batch left unread."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

__all__ = ["TILES", "TileCache"]

MOST_BYTES = 32 * 1024 * 1024


class TileCache:
    """The decoded tiles used last, up to a number of bytes; one larger tile is kept alone.

    Parameters
    ----------
    most_bytes
        Memory that all tiles together may take.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.clear()

    def clear(self) -> None:
        """Forget everything (and, in a forked process, a lock that another thread may have held)."""
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self.bytes = 0

    def get(self, key: Hashable) -> NDArray[Any] | None:
        """Return a tile, or None."""
        if key not in self._tiles:
            return None
        with self._lock:
            pixels = self._tiles.get(key)
            if pixels is not None:
                self._tiles.move_to_end(key)
            return pixels

    def put(self, key: Hashable, pixels: NDArray[Any]) -> None:
        """Keep a tile; nobody may write to it from now on."""
        with self._lock:
            if key in self._tiles:
                return
            self._tiles[key] = pixels
            self.bytes += pixels.nbytes
            while self.bytes > self.most_bytes and len(self._tiles) > 1:
                self.bytes -= self._tiles.popitem(last=False)[1].nbytes


TILES = TileCache()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TILES.clear)
