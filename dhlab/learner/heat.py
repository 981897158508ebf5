"""The heat map of a classifier that is still being taught: computed where one looks, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dhlab.cache import ByteCache
from dhlab.io.tilelevel import read_key
from dhlab.learner.pixels import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dhlab.learner.pixels import LevelFeatures
    from dhlab.networks import Perceptron

__all__ = ["HeatLevel"]

# Scores of a view of 4096² pixels and three classes.
BUDGET = 48 << 20


class HeatLevel:
    """One level of a heat map, ``(classes, height, width)`` uint8: blocks are computed when they are read.

    Parameters
    ----------
    features
        Of the level of the scan that it lies on.
    classes
        How many there are.
    teach
        Returns the classifier; asked for at the first block.
    """

    def __init__(self, features: LevelFeatures, classes: int, teach: Callable[[], Perceptron]) -> None:
        self.features, self.classes, self._teach = features, classes, teach
        self._blocks = ByteCache(BUDGET)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Classes, height and width."""
        return (self.classes, *self.features.frame.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always uint8: 0 to 255 for a score of 0 to 1."""
        return np.dtype(np.uint8)

    def __getitem__(self, key: Any, /) -> NDArray[np.uint8]:
        return read_key(self.shape, key, self._read)

    def block(self, row: int, column: int) -> NDArray[np.uint8]:
        """Return the scores of a block, ``(classes, height, width)`` uint8."""
        return self._blocks.get_or_make((row, column), lambda: self._compute(row, column), lambda block: block.nbytes)

    def _compute(self, row: int, column: int) -> NDArray[np.uint8]:
        head = self._teach()
        features = self.features.of_block(row, column)
        with torch.inference_mode():
            scores = head.part_by_part(features.flatten(1)).softmax(0)
            quantised = scores.mul_(255).round_().to(torch.uint8)
        return quantised.reshape(-1, *features.shape[1:]).numpy()

    def _read(self, starts: Sequence[int], stops: Sequence[int]) -> NDArray[np.uint8]:
        (first, top, left), (last, bottom, right) = starts, stops
        out = np.empty((last - first, bottom - top, right - left), np.uint8)
        if not out.size:
            return out
        for row in range(top // BLOCK, -(-bottom // BLOCK)):
            for column in range(left // BLOCK, -(-right // BLOCK)):
                block = self.block(row, column)
                y, x = row * BLOCK, column * BLOCK
                low = (max(top, y), max(left, x))
                high = (min(bottom, y + block.shape[1]), min(right, x + block.shape[2]))
                out[:, low[0] - top : high[0] - top, low[1] - left : high[1] - left] = block[
                    first:last, low[0] - y : high[0] - y, low[1] - x : high[1] - x
                ]
        return out
