"""Features of a stored level, block by block: kept for the part that is looked at."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from dhlab.cache import ByteCache
from dhlab.cards import RANGES
from dhlab.errors import BadShapeError, BadValueError
from dhlab.inference import arrange_axes
from dhlab.learner.describer import describe_by_filters
from dhlab.learner.strokes import CELL, Frame
from dhlab.networks import Perceptron

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.learner.describer import Describer
    from dhlab.scan import Scan

__all__ = ["BLOCK", "LevelFeatures", "count_channels", "value_range_of"]

# Side of the blocks in pixels: a quarter of a viewer's tile, and what fits the caches of a processor.
BLOCK = 256
# Of all levels of a scan: about four views of 1024² pixels in half precision.
BUDGET = 768 << 20


class LevelFeatures:
    """The features of one stored level of a scan.

    Parameters
    ----------
    scan
        A plane, with channels or without.
    level
        Which of its levels.
    describer
        What describes pixels; None takes Gaussian features.
    cache
        Where blocks are kept, perhaps together with those of other levels.

    Raises
    ------
    BadShapeError
        If the scan is no plane.
    """

    def __init__(
        self, scan: Scan, level: int, *, describer: Describer | None = None, cache: ByteCache | None = None
    ) -> None:
        if scan.window_axes != "yx":
            raise BadShapeError(
                f"{scan.name!r} has axes {scan.axes!r}; live learning takes planes, axes 'yxc', 'cyx' or 'yx'."
            )
        self.scan, self.level = scan, level
        height, width = scan.shape_of(level)
        down, across = scan.scales[level]
        self.frame = Frame((height, width), (down, across))
        self.describer = describer or describe_by_filters(count_channels(scan))
        self.net = self.describer.net
        self.cache = ByteCache(BUDGET) if cache is None else cache
        low, high = value_range_of(scan)
        self._scale, self._low = 255 / (high - low), low

    def new_head(self, classes: int) -> Perceptron:
        """Return an untrained perceptron on these features."""
        return Perceptron(self.net.features, classes).eval()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        height, width = self.frame.shape
        return -(-height // BLOCK), -(-width // BLOCK)

    def of_block(self, row: int, column: int) -> Tensor:
        """Return the features of a block, ``(F, height, width)`` float16, at the border of the scan a smaller one."""
        return self.cache.get_or_make(
            (self.level, row, column),
            lambda: self._of_window((row * BLOCK, column * BLOCK), (BLOCK, BLOCK)).half(),
            lambda kept: kept.numel() * kept.element_size(),
        )

    def of_pixels(self, pixels: NDArray[np.int64]) -> Tensor:
        """Return the features of pixels ``(N, 2)`` (row, column), ``(N, F)`` float32.

        Blocks that are kept are used; else only the surroundings of the pixels are computed.
        """
        cells = pixels // CELL
        order = np.lexsort((cells[:, 1], cells[:, 0]))
        found = torch.empty(len(pixels), self.net.features)
        for cell, members in groupby(order.tolist(), key=lambda i: (int(cells[i, 0]), int(cells[i, 1]))):
            rows = np.array(list(members))
            place = (cell[0] * CELL // BLOCK, cell[1] * CELL // BLOCK)
            # What depends on where a window is cut is always taken from whole blocks.
            block = self.cache.get((self.level, *place)) if self.net.local else self.of_block(*place)
            if block is None:
                corner = (cell[0] * CELL, cell[1] * CELL)
                local, source = pixels[rows] - corner, self._of_window(corner, (CELL, CELL))
            else:
                local, source = pixels[rows] % BLOCK, block
            y, x = torch.from_numpy(local).unbind(1)
            # Whether a block is kept makes no difference: half precision in both cases.
            found[torch.from_numpy(rows)] = source[:, y, x].T.half().float()
        return found

    def _of_window(self, start: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return the features of a window, cut at the border of the scan: ``(F, height, width)`` float32, for now."""
        reach, shape = self.net.reach, self.frame.shape
        low = [max(0, first - reach) for first in start]
        high = [min(n, first + length + reach) for first, length, n in zip(start, size, shape, strict=True)]
        window = self.read((low[0], low[1]), (high[0] - low[0], high[1] - low[1]))
        inner = [
            slice(first - begin, min(first + length, n) - begin)
            for first, length, begin, n in zip(start, size, low, shape, strict=True)
        ]
        return self.describer.describe(window)[:, inner[0], inner[1]]

    def read(self, start: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return pixels of the level, ``(C, height, width)`` float32 from 0 to 255."""
        corner = [first * scale for first, scale in zip(start, self.frame.scale, strict=True)]
        pixels = np.empty((1, *self.scan.window_shape(size)), self.scan.dtype)
        self.scan.read_many(np.array([corner]), size, self.level, out=pixels)
        window = arrange_axes(torch.from_numpy(pixels), self.scan.axes, "cyx" if "c" in self.scan.axes else "yx")
        planes = window[0] if "c" in self.scan.axes else window
        if self._scale == 1 and self._low == 0:
            return planes.to(torch.float32)
        return (planes.to(torch.float32) - self._low) * self._scale


def count_channels(scan: Scan) -> int:
    """Return the number of channels of a scan, 1 without a channel axis."""
    return scan.levels[0].shape[scan.axes.index("c")] if "c" in scan.axes else 1


def value_range_of(scan: Scan) -> tuple[float, float]:
    """Return the stored values that count as darkest and brightest.

    Raises
    ------
    BadValueError
        If the type of the pixels has no range.
    """
    if scan.dtype.name not in RANGES:
        raise BadValueError(f"{scan.name!r} holds {scan.dtype}; expected one of {', '.join(RANGES)}.")
    if scan.dtype == np.uint8:
        return 0.0, 255.0
    from dhlab.display import default_display

    display = default_display(scan)
    return display.low, display.high
