"""Memory for large results that each step makes anew: what was given back is filled again, its pages at hand."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Pool"]

HUGE_PAGE = 1 << 21
# Below this size malloc itself keeps what is freed.
LEAST_BYTES = 1 << 22


class Pool:
    """Blocks of memory under tensors, kept for the next tensor when the last one on them is gone.

    The system clears every page that it hands out, which takes as long as computing a gradient does.

    Parameters
    ----------
    most_bytes
        Largest sum of the blocks that are kept while nobody uses them.
    """

    def __init__(self, most_bytes: int = 1 << 28) -> None:
        self.most_bytes = most_bytes
        # Its operations are atomic: a tensor may be freed in any thread, and amid any line here.
        self._idle: deque[mmap.mmap] = deque()

    @property
    def idle_bytes(self) -> int:
        """Bytes that are kept and not in use."""
        return sum(map(len, tuple(self._idle)))

    def empty_like(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the CPU of the same dense shape, strides and type, whatever it may hold."""
        if not LEAST_BYTES <= tensor.nbytes <= self.most_bytes:
            return torch.empty_like(tensor)
        block = self._take(tensor.nbytes)
        array = np.frombuffer(block, np.uint8)
        weakref.finalize(array, self._give_back, block).atexit = False
        storage = torch.from_numpy(array).untyped_storage()
        return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())

    def _take(self, size: int) -> mmap.mmap:
        for block in tuple(self._idle):
            if size <= len(block) <= 2 * size:
                try:
                    self._idle.remove(block)
                except ValueError:  # another thread was quicker
                    continue
                return block
        block = mmap.mmap(-1, -(-size // HUGE_PAGE) * HUGE_PAGE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _give_back(self, block: mmap.mmap) -> None:
        self._idle.append(block)
        while self.idle_bytes > self.most_bytes:
            try:
                self._idle.popleft()
            except IndexError:  # another thread was quicker
                return
