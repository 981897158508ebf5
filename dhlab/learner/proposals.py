"""Where to draw next: places that the classifier is unsure of and that do not look alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from dhlab.learner.coarse import spread
from dhlab.learner.pixels import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.learner.heat import HeatLevel

__all__ = ["PLACE", "choose_diverse", "doubt", "find_places"]

# Share of the places, the most doubtful, among which different ones are chosen.
DOUBTFUL = 0.1
# Side of a place in pixels, and in how many blocks places are looked for.
PLACE, MOST_BLOCKS = 32, 16


def doubt(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return how close the two best classes are: 0 where one is certain, 1 where both score alike.

    Parameters
    ----------
    scores
        ``(classes, ...)``, summing to 1.

    References
    ----------
    Scheffer, Decomain and Wrobel, "Active hidden Markov models for information extraction", 2001 (margin sampling);
    Settles, "Active learning literature survey", 2009.
    """
    best = np.partition(np.asarray(scores, np.float32), -2, axis=0)[-2:]
    difference: NDArray[np.float32] = 1 - np.abs(best[1] - best[0])
    return difference


def choose_diverse(features: Tensor, doubts: NDArray[np.float32], count: int) -> list[int]:
    """Choose places that are doubtful and differ: of the most doubtful ones, always that farthest from those chosen.

    Parameters
    ----------
    features
        ``(N, F)`` float32 of the places.
    doubts
        ``(N,)`` see `doubt`.
    count
        How many.

    Returns
    -------
    list of int
        Rows, the most doubtful first.

    References
    ----------
    Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018; Arthur and
    Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    most = max(count, int(DOUBTFUL * len(doubts)))
    rows = np.argsort(-doubts, kind="stable")[:most]
    spread, mean = torch.var_mean(features, dim=0, correction=0)
    points = (features[rows] - mean) * spread.clamp_min(1e-8).rsqrt()
    chosen, distance = [0], torch.full((len(rows),), torch.inf)
    while len(chosen) < min(count, len(rows)):
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
        chosen.append(int((distance * torch.from_numpy(doubts[rows])).argmax()))
    return rows[chosen].tolist()


def find_places(
    heat: HeatLevel,
    span: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    drawn: NDArray[np.int64],
    mask: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find squares to draw in next.

    Parameters
    ----------
    heat
        What is known so far.
    span
        First and last (excluded) pixel of where to look; in a large part, some blocks that are spread over it.
    drawn
        ``(N, 2)`` pixels that were drawn on: no square with one of them is proposed.
    mask
        Says of pixels ``(N, 2)`` whether they may be proposed.
    count
        How many squares, at most.

    Returns
    -------
    tuple
        First corners ``(count, 2)`` in pixels, and how doubtful each is.
    """
    low, high = span
    first, blocks = low // BLOCK, np.maximum(-(-high // BLOCK) - low // BLOCK, 0)
    chosen = np.argwhere(np.ones(blocks))
    if len(chosen) > MOST_BLOCKS:
        chosen = np.unique(spread(MOST_BLOCKS, (int(blocks[0]), int(blocks[1]))), axis=0)
    known = {tuple(place) for place in np.unique(drawn // PLACE, axis=0).tolist()}
    corners, features, doubts = [np.empty((0, 2), np.int64)], [], []
    for row, column in (chosen + first).tolist():
        rough = _pool(torch.from_numpy(doubt(heat.block(row, column) / np.float32(255)))[None])[0].numpy()
        places = np.argwhere(np.ones(rough.shape))
        corner = places * PLACE + np.array([row, column]) * BLOCK
        middle = corner + PLACE / 2
        keep = ((middle >= low) & (middle < high)).all(1) & mask(middle)
        keep &= np.array([tuple(place) not in known for place in (corner // PLACE).tolist()], bool)
        y, x = places[keep].T
        corners.append(corner[keep])
        doubts.append(rough[y, x])
        features.append(_pool(heat.features.of_block(row, column).float())[:, y, x].T)
    whole = np.concatenate(corners)
    if not len(whole):
        return whole, np.empty(0, np.float32)
    doubtful = np.concatenate(doubts)
    picks = choose_diverse(torch.cat(features), doubtful, count)
    return whole[picks], doubtful[picks]


def _pool(planes: Tensor) -> Tensor:
    """Return the mean of every place in ``(C, height, width)``; what is left over at the far edges is left out."""
    if min(planes.shape[1:]) < PLACE:
        return planes.new_empty(planes.shape[0], planes.shape[1] // PLACE, planes.shape[2] // PLACE)
    return functional.avg_pool2d(planes[None], PLACE)[0]
