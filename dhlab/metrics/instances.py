"""Figures of objects that are counted, such as nuclei: found, missed, invented, and how well outlined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Matches", "aggregated_jaccard", "detection_f1", "label_objects", "match_objects", "panoptic_quality"]


@dataclass(frozen=True)
class Matches:
    """Objects of two label maps that are the same.

    Parameters
    ----------
    found
        Pairs of a true and a predicted object.
    overlap
        Sum of their intersections over union.
    missed
        True objects without a partner.
    wrong
        Predicted objects without a partner.
    """

    found: int
    overlap: float
    missed: int
    wrong: int


def label_objects(mask: ArrayLike) -> NDArray[np.int32]:
    """Give each connected part of a mask a number; parts that touch, also at a corner, are one object.

    Parameters
    ----------
    mask
        Mask, any number of axes, true inside.

    Returns
    -------
    ndarray
        Label map of the same shape, int32: 0 outside, objects from 1.
    """
    from scipy.ndimage import generate_binary_structure, label

    inside = np.asarray(mask).astype(bool)
    labels, _ = label(inside, generate_binary_structure(inside.ndim, inside.ndim), output=np.int32)
    return labels


def match_objects(truth: ArrayLike, prediction: ArrayLike, *, threshold: float = 0.5) -> Matches:
    """Pair true and predicted objects whose intersection over union exceeds a threshold.

    Parameters
    ----------
    truth
        Label map, any shape, integer: 0 outside, another number per object.
    prediction
        Label map of the same shape; its numbers need not agree with those of `truth`.
    threshold
        At least 0.5, so that no object has two partners.

    Returns
    -------
    Matches
        What is found, missed and wrong.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If the threshold is below 0.5 or not below 1.
    """
    if not 0.5 <= threshold < 1:
        raise BadValueError(f"threshold {threshold}; expected 0.5 or more, and less than 1.")
    true, given, _, _, common, union = _overlaps(truth, prediction)
    shares = common / union
    shares = shares[shares > threshold]
    return Matches(len(shares), float(shares.sum()), len(true) - len(shares), len(given) - len(shares))


def detection_f1(truth: ArrayLike, prediction: ArrayLike, *, threshold: float = 0.5) -> float:
    """Return the F1 score of finding objects, 2 TP / (2 TP + FP + FN).

    Parameters
    ----------
    truth
        Label map, any shape, integer: 0 outside, another number per object.
    prediction
        Label map of the same shape.
    threshold
        Intersection over union above which an object is found, at least 0.5.

    Returns
    -------
    float
        0 to 1; NaN if there are no objects at all.
    """
    matches = match_objects(truth, prediction, threshold=threshold)
    whole = 2 * matches.found + matches.missed + matches.wrong
    return 2 * matches.found / whole if whole else float("nan")


def panoptic_quality(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Return the panoptic quality: detection F1 times the mean intersection over union of what is found.

    Parameters
    ----------
    truth
        Label map, any shape, integer: 0 outside, another number per object.
    prediction
        Label map of the same shape.

    Returns
    -------
    float
        0 to 1; NaN if there are no objects at all.

    References
    ----------
    Kirillov et al., "Panoptic segmentation", CVPR 2019.
    """
    matches = match_objects(truth, prediction)
    whole = matches.found + (matches.missed + matches.wrong) / 2
    return matches.overlap / whole if whole else float("nan")


def aggregated_jaccard(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Return the aggregated Jaccard index (AJI): common pixels of partners over all pixels of partners and the rest.

    Each true object takes the predicted one with the greatest intersection over union as its partner; predicted
    objects that nobody takes count in full below the line.

    Parameters
    ----------
    truth
        Label map, any shape, integer: 0 outside, another number per object.
    prediction
        Label map of the same shape.

    Returns
    -------
    float
        0 to 1; NaN if there are no objects at all.

    References
    ----------
    Kumar et al., "A dataset and a technique for generalized nuclear segmentation for computational pathology", TMI 36,
    2017.
    """
    true, given, rows, columns, common, union = _overlaps(truth, prediction)
    if not len(true) and not len(given):
        return float("nan")
    # Best partner last in each row, the lower number where two are as good.
    order = np.lexsort((-columns, common / union, rows))
    best = order[np.flatnonzero(np.diff(rows[order], append=-1))]
    alone = np.setdiff1d(np.arange(len(true)), rows)
    untaken = np.setdiff1d(np.arange(len(given)), columns[best])
    return float(common[best].sum() / (union[best].sum() + true[alone].sum() + given[untaken].sum()))


def _overlaps(truth: ArrayLike, prediction: ArrayLike) -> tuple[NDArray[np.int64], ...]:
    """Return pixels per true and per predicted object, and of each overlapping pair: both places, common, union."""
    maps = [np.asarray(labels) for labels in (truth, prediction)]
    if maps[0].shape != maps[1].shape:
        raise BadShapeError(f"truth has shape {maps[0].shape}, prediction {maps[1].shape}; expected the same.")
    sizes, places, inside = [], [], []
    for labels in maps:
        numbers, place = np.unique(labels, return_inverse=True)
        place = place.reshape(-1)
        keep = numbers != 0
        renumbered = np.cumsum(keep) - 1
        sizes.append(np.bincount(place, minlength=len(numbers))[keep])
        places.append(renumbered[place])
        inside.append(keep[place])
    both = inside[0] & inside[1]
    width = max(len(sizes[1]), 1)
    pairs, common = np.unique(places[0][both] * width + places[1][both], return_counts=True)
    rows, columns = np.divmod(pairs, width)
    return sizes[0], sizes[1], rows, columns, common, sizes[0][rows] + sizes[1][columns] - common
