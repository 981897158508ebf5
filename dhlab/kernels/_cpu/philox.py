"""Random words for few counters at a time, where calls are what costs, see ``philox.c``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.kernels._cpu import bind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["philox_cpu"]


def philox_cpu(counter: Sequence[Any], key: NDArray[np.int64]) -> tuple[Any, Any, Any, Any]:
    """Return four arrays of the shape that the four of `counter` and `key` broadcast to."""
    shape = np.broadcast_shapes(key.shape, *map(np.shape, counter))
    numbers, words = np.empty((5, *shape), np.int64), np.empty((4, *shape), np.int64)
    for row, values in zip(numbers, (*counter, key), strict=True):
        row[...] = values
    bind("philox_words", "pppl")(numbers.ctypes.data, numbers[4].ctypes.data, words.ctypes.data, words[0].size)
    return words[0], words[1], words[2], words[3]
