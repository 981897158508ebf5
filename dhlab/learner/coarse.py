"""What a coarse level learns from the next finer one, so that an overview costs no more than any other view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from dhlab.learner.head import teach
from dhlab.learner.strokes import CELL, MOST_ROWS, thin_strokes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.learner.pixels import LevelFeatures
    from dhlab.networks import Perceptron

__all__ = ["Lesson", "spread"]

PLACES, PER_PLACE = 48, 64
# How much strokes count beside what the finer level says of places that nobody drew on.
SHARE_OF_STROKES = 0.3
# Where in a coarse pixel the finer level is asked, as shares of its side.
PARTS = ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))


class Lesson:
    """Places on a scan as two neighbouring levels see them: the finer one's scores are what the coarser one learns.

    Parameters
    ----------
    fine, coarse
        Features of the two levels.

    References
    ----------
    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
    """

    def __init__(self, fine: LevelFeatures, coarse: LevelFeatures) -> None:
        self.coarse = coarse
        ratio = np.asarray(coarse.frame.scale) / np.asarray(fine.frame.scale)
        pixels = _choose_pixels(fine.frame.shape, coarse.frame.shape, ratio)
        self.rows = coarse.of_pixels(pixels).half()
        parts = ((pixels[:, None] + np.asarray(PARTS)) * ratio).astype(np.int64).reshape(-1, 2)
        self.finer = fine.of_pixels(np.minimum(parts, np.asarray(fine.frame.shape) - 1)).half()

    def learn(self, teacher: Perceptron, strokes: Sequence[NDArray[np.int64]], labels: Sequence[int]) -> Perceptron:
        """Return the classifier of the coarser level.

        Parameters
        ----------
        teacher
            That of the finer level.
        strokes
            Pixels of the coarser level that each stroke covers, ``(N, 2)``.
        labels
            Class of each stroke.
        """
        classes = teacher.last.out_features
        with torch.inference_mode():
            said = teacher(self.finer.T.float()).softmax(0).T
        soft = said.reshape(-1, len(PARTS), classes).mean(1)
        chosen, kinds = thin_strokes(labels, [len(pixels) for pixels in strokes], most=MOST_ROWS - len(soft))
        drawn = np.concatenate([pixels[rows] for pixels, rows in zip(strokes, chosen, strict=True)])
        hard = functional.one_hot(torch.from_numpy(kinds), classes).float()
        weights = torch.cat([torch.full((len(soft),), 1 / len(soft)), balance(hard) * SHARE_OF_STROKES])
        head = self.coarse.new_head(classes)
        features = torch.cat([self.rows.float(), self.coarse.of_pixels(drawn)])
        targets = torch.cat([soft, hard]).clone()
        teach(head, features, targets, weights=weights, emphasis=self.coarse.net.emphasis)
        return head


def balance(targets: Tensor) -> Tensor:
    """Return weights of rows ``(N, classes)`` with which all classes count alike, ``(N,)``, summing to 1."""
    each = (targets / targets.sum(0).clamp_min(1e-6)).sum(1)
    return each / each.sum()


def spread(count: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return places that cover a plane evenly, ``(count, 2)`` rows and columns, the first ones too.

    References
    ----------
    Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018.
    """
    plastic = 1.32471795724474602596
    steps = np.arange(1, count + 1)[:, None] / np.array([plastic, plastic**2])
    return ((0.5 + steps) % 1 * shape).astype(np.int64)


def _choose_pixels(fine: tuple[int, int], coarse: tuple[int, int], ratio: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return pixels of the coarse level in squares spread over the fine one, ``(N, 2)``."""
    chosen = []
    for corner in np.unique(spread(PLACES, fine) // CELL, axis=0) * CELL:
        first = np.ceil(corner / ratio).astype(np.int64)
        last = np.maximum(np.floor((corner + CELL) / ratio).astype(np.int64), first + 1)
        inside = np.argwhere(np.ones(last - first)) + first
        inside = inside[(inside < coarse).all(1)]
        if len(inside):
            chosen.append(inside[np.linspace(0, len(inside) - 1, min(PER_PLACE, len(inside))).astype(int)])
    return np.concatenate(chosen)
