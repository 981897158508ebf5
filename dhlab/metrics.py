"""Figures of merit on NumPy arrays, each a plain formula, and the interval that belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadShapeError, BadValueError
from dhlab.tasks import IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "accuracy",
    "auc",
    "balanced_accuracy",
    "bootstrap_interval",
    "confusion_matrix",
    "dice",
    "expected_calibration_error",
    "iou",
    "macro_f1",
    "mean_auc",
    "mean_defined",
    "r_squared",
    "sensitivity",
    "specificity",
]


def confusion_matrix(
    truth: ArrayLike, prediction: ArrayLike, classes: int, *, ignore: int = IGNORE
) -> NDArray[np.int64]:
    """Count pairs of true and predicted class.

    Parameters
    ----------
    truth
        Class indices, any shape, integer.
    prediction
        Class indices, same shape.
    classes
        Number of classes.
    ignore
        Value of `truth` that does not count.

    Returns
    -------
    ndarray
        ``(classes, classes)`` int64, rows true, columns predicted.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If an index lies outside the classes.
    """
    true, predicted = np.asarray(truth), np.asarray(prediction)
    if true.shape != predicted.shape:
        raise BadShapeError(f"truth has shape {true.shape}, prediction {predicted.shape}; expected the same.")
    counted = true != ignore
    true, predicted = true[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for name, values in (("truth", true), ("prediction", predicted)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise BadValueError(f"{name} holds {values.min()} to {values.max()}; expected 0 to {classes - 1}.")
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def dice(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return Dice's coefficient per class, 2 TP / (2 TP + FP + FN), ``(classes,)``.

    For whole samples this is the F1 score. A class that is neither true nor predicted anywhere is NaN.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)``, rows true, columns predicted.

    Returns
    -------
    ndarray
        ``(…, classes)`` float64.
    """
    hits, missed, wrong = _counts(confusion)
    return _divide(2 * hits, 2 * hits + missed + wrong)


def iou(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return intersection over union (Jaccard) per class, ``(…, classes)``; NaN where neither true nor predicted.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)``, rows true, columns predicted.
    """
    hits, missed, wrong = _counts(confusion)
    return _divide(hits, hits + missed + wrong)


def sensitivity(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each true class that is found (recall), ``(…, classes)``; NaN for an absent class.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)``, rows true, columns predicted.
    """
    hits, missed, _ = _counts(confusion)
    return _divide(hits, hits + missed)


def specificity(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return the share of all else that is not taken for a class, ``(…, classes)``; NaN if there is nothing else.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)``, rows true, columns predicted.
    """
    hits, missed, wrong = _counts(confusion)
    rest = np.asarray(confusion, np.float64).sum((-2, -1))[..., None] - hits - missed
    return _divide(rest - wrong, rest)


def accuracy(confusion: ArrayLike) -> float:
    """Return the share of what is right; NaN for an empty matrix.

    Parameters
    ----------
    confusion
        ``(classes, classes)``, rows true, columns predicted.
    """
    matrix = np.asarray(confusion, np.float64)
    return float(_divide(np.trace(matrix), matrix.sum()))


def balanced_accuracy(confusion: ArrayLike) -> float:
    """Return the mean sensitivity over the classes that occur; NaN for an empty matrix.

    Parameters
    ----------
    confusion
        ``(classes, classes)``, rows true, columns predicted.
    """
    return mean_defined(sensitivity(confusion))


def macro_f1(confusion: ArrayLike) -> float:
    """Return the mean F1 (Dice) over the classes that are true or predicted; NaN for an empty matrix.

    Parameters
    ----------
    confusion
        ``(classes, classes)``, rows true, columns predicted.
    """
    return mean_defined(dice(confusion))


def mean_defined(values: ArrayLike) -> float:
    """Return the mean of what is not NaN; NaN if nothing is.

    Parameters
    ----------
    values
        Numbers, any shape.
    """
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else float("nan")


def auc(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Parameters
    ----------
    truth
        ``(N,)`` 1 for positive and 0 for negative.
    score
        ``(N,)`` finite numbers.

    Returns
    -------
    float
        0 to 1; NaN if one of the two kinds is absent.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If a score is not finite.

    References
    ----------
    Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 143, 1982.
    """
    positive, scores = np.asarray(truth).astype(bool), np.asarray(score, np.float64)
    if positive.shape != scores.shape or scores.ndim != 1:
        raise BadShapeError(f"truth has shape {positive.shape}, score {scores.shape}; expected the same, 1-D.")
    if not np.isfinite(scores).all():
        raise BadValueError("score holds NaN or infinity; expected finite numbers.")
    count = int(positive.sum())
    if count in (0, len(scores)):
        return float("nan")
    _, place, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def mean_auc(truth: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean over classes of the area under the ROC curve; NaN if it is defined for none.

    Parameters
    ----------
    truth
        ``(N, K)`` 1 where a class applies, 0 where it does not, -1 where it is not known.
    scores
        ``(N, K)`` numbers, finite wherever truth is known.

    Returns
    -------
    float
        0 to 1. A class of which one kind is absent is left out.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If a score is not finite.
    """
    true, given = np.asarray(truth), np.asarray(scores, np.float64)
    if true.ndim != 2 or true.shape != given.shape:
        raise BadShapeError(f"truth has shape {true.shape}, scores {given.shape}; expected the same, (N, classes).")
    known = true != IGNORE
    return mean_defined([auc(t[k] == 1, s[k]) for t, s, k in zip(true.T, given.T, known.T, strict=True)])


def r_squared(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Return the share of variance explained, 1 - (sum of squared errors) / (sum of squares about the mean).

    Parameters
    ----------
    truth
        ``(N,)`` or ``(N, K)`` numbers, NaN where not known.
    prediction
        Numbers of the same shape, finite wherever truth is known.

    Returns
    -------
    float
        At most 1; 0 for the mean of the truth. Several columns count equally; one with fewer than two known values,
        or whose values are all the same, is left out, and NaN is returned if that leaves none.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If a prediction is not finite.
    """
    true, given = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    if true.ndim not in (1, 2) or true.shape != given.shape:
        raise BadShapeError(f"truth has shape {true.shape}, prediction {given.shape}; expected the same, 1-D or 2-D.")
    known = ~np.isnan(true)
    if not np.isfinite(given[known]).all():
        raise BadValueError("prediction holds NaN or infinity; expected finite numbers.")
    explained = []
    for t, p, k in zip(np.atleast_2d(true.T), np.atleast_2d(given.T), np.atleast_2d(known.T), strict=True):
        spread = float(((t[k] - t[k].mean()) ** 2).sum()) if k.any() else 0.0
        explained.append(1 - float(((t[k] - p[k]) ** 2).sum()) / spread if spread else np.nan)
    return mean_defined(explained)


def expected_calibration_error(truth: ArrayLike, probability: ArrayLike, *, bins: int = 15) -> float:
    """Return how far confidence and accuracy lie apart, averaged over equal bins of confidence.

    Parameters
    ----------
    truth
        ``(N,)`` class indices.
    probability
        ``(N, classes)`` probabilities.
    bins
        Number of bins over 0 to 1, closed on the right.

    Returns
    -------
    float
        0 (calibrated) to 1; NaN if there are no samples.

    Raises
    ------
    BadShapeError
        If the shapes do not fit.

    References
    ----------
    Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    true, chance = np.asarray(truth), np.asarray(probability, np.float64)
    if chance.ndim != 2 or true.shape != chance.shape[:1]:
        raise BadShapeError(f"truth has shape {true.shape}, probability {chance.shape}; expected (N,), (N, classes).")
    if not len(true):
        return float("nan")
    sure, right = chance.max(1), chance.argmax(1) == true
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    total = np.zeros(bins)
    np.add.at(total, place, right - sure)
    return float(np.abs(total).sum() / len(true))


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: ArrayLike,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    rng: int | np.random.Generator = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a figure when whole groups are drawn again with replacement.

    Parameters
    ----------
    statistic
        Takes indices of samples, ``(M,)`` int64 with repeats, and returns the figure (NaN draws are left out).
    groups
        ``(N,)`` names or numbers: the independent unit of each sample, usually the patient.
    resamples
        Number of draws.
    level
        Share of draws inside the interval.
    rng
        Seed or generator.

    Returns
    -------
    tuple of float
        Low and high; NaN with fewer than two groups, since one unit says nothing of the spread between units.

    Raises
    ------
    BadValueError
        If there are no samples, or `level` is not between 0 and 1.

    References
    ----------
    Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if not len(names) or not 0 < level < 1 or resamples < 1:
        raise BadValueError(f"{len(names)} groups, level {level}, {resamples} resamples; expected > 0, in (0, 1), > 0.")
    if len(names) < 2:
        return float("nan"), float("nan")
    members = [np.flatnonzero(place == g) for g in range(len(names))]
    random = np.random.default_rng(rng)
    drawn = random.integers(0, len(names), (resamples, len(names)))
    values = np.array([statistic(np.concatenate([members[g] for g in row])) for row in drawn])
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _counts(confusion: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return true positives, false negatives and false positives per class."""
    matrix = np.asarray(confusion, np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise BadShapeError(f"confusion matrix has shape {matrix.shape}; expected (classes, classes).")
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return hits, matrix.sum(-1) - hits, matrix.sum(-2) - hits


def _divide(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    share = np.full(np.broadcast(part, whole).shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
