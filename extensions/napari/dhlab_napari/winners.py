"""A heat map as one picture: every pixel in the colour of its likeliest class, computed where one looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.view.tiles import to_rgba
from dhlab_napari.pictures import LazyPicture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dhlab.scan import Scan

__all__ = ["WinnerLevel", "blank_levels", "winner_levels"]

# napari makes the thumbnail of a layer of its coarsest level; a blank one this small is never shown in the view.
THUMBNAIL_PX = 32


@dataclass(frozen=True, eq=False)
class WinnerLevel(LazyPicture):
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and four channels."""
        height, width = self.heat.shape_of(self.number)
        return height, width, 4

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
