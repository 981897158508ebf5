"""A heat map as one picture: every pixel in the colour of its likeliest class, computed where one looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.io.tilelevel import read_key
from dhlab.view.tiles import to_rgba

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dhlab.scan import Scan

__all__ = ["WinnerLevel", "blank_levels", "winner_levels"]

UINT8 = np.dtype(np.uint8)
# napari makes the thumbnail of a layer of its coarsest level; a blank one this small is never shown in the view.
THUMBNAIL_PX = 32


@dataclass(frozen=True, eq=False)
class WinnerLevel:
    """One level of a heat map ``cyx`` as RGBA, with the attributes that napari asks an array for.

    Parameters
    ----------
    heat
        The heat map.
    number
        Its level.
    """

    heat: Scan
    number: int
    ndim: int = 3
    dtype: np.dtype[np.uint8] = UINT8

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and four channels."""
        height, width = self.heat.shape_of(self.number)
        return height, width, 4

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

    def _read(self, starts: Sequence[int], stops: Sequence[int]) -> NDArray[np.uint8]:
        (top, left, first), (bottom, right, last) = starts, stops
        scores = np.asarray(self.heat.levels[self.number][:, top:bottom, left:right])
        rgba: NDArray[np.uint8] = to_rgba(np.moveaxis(scores, 0, -1), self.heat)[..., first:last]
        return rgba


def winner_levels(heat: Scan) -> list[Any]:
    """Return the levels that napari shows of a heat map, and a blank one for its thumbnail: nothing is computed."""
    return [*(WinnerLevel(heat, number) for number in range(len(heat.levels))), _blank(heat, len(heat.levels))]


def blank_levels(heat: Scan) -> list[NDArray[np.uint8]]:
    """Return transparent levels of the shapes of `winner_levels`, which take no memory."""
    return [_blank(heat, number) for number in range(len(heat.levels) + 1)]


def _blank(heat: Scan, number: int) -> NDArray[np.uint8]:
    height, width = heat.shape_of(min(number, len(heat.levels) - 1))
    if number == len(heat.levels):
        factor = max(2, -(-max(height, width) // THUMBNAIL_PX))
        height, width = -(-height // factor), -(-width // factor)
    return np.broadcast_to(np.zeros((), np.uint8), (height, width, 4))
