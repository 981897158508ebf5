"""A picture that is made where napari looks at it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.io.tilelevel import read_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["LazyPicture"]


class LazyPicture(ABC):
    """RGBA pixels with the attributes that napari asks an array for; nothing is made before it is read."""

    ndim = 3
    dtype = np.dtype(np.uint8)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Height, width and four channels."""

    @abstractmethod
    def _read(self, starts: Sequence[int], stops: Sequence[int]) -> NDArray[np.uint8]:
        """Make the block from first to last (excluded) indices per axis."""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        return read_key(self.shape, key, self._read)
