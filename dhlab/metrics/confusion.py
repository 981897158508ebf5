"""Figures of a confusion matrix: what was taken for what, counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np

from dhlab.errors import BadShapeError, BadValueError
from dhlab.tasks import IGNORE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "accuracy",
    "balanced_accuracy",
    "confusion_matrix",
    "dice",
    "iou",
    "macro_f1",
    "mean_defined",
    "precision",
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
    """Return Dice's coefficient per class, 2 TP / (2 TP + FP + FN), ``(…, classes)``.

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
    return divide(2 * hits, 2 * hits + missed + wrong)


def iou(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return intersection over union (Jaccard) per class, ``(…, classes)``; NaN where neither true nor predicted.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)``, rows true, columns predicted.
    """
    hits, missed, wrong = _counts(confusion)
    return divide(hits, hits + missed + wrong)


def sensitivity(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each true class that is found (recall), ``(…, classes)``; NaN for an absent class.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)``, rows true, columns predicted.
    """
    hits, missed, _ = _counts(confusion)
    return divide(hits, hits + missed)


def specificity(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return the share of all else that is not taken for a class, ``(…, classes)``; NaN if there is nothing else.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)``, rows true, columns predicted.
    """
    hits, missed, wrong = _counts(confusion)
    rest = np.asarray(confusion, np.float64).sum((-2, -1))[..., None] - hits - missed
    return divide(rest - wrong, rest)


def precision(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return the share of what is taken for a class that is right, ``(…, classes)``; NaN if nothing is taken for it.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)``, rows true, columns predicted.
    """
    hits, _, wrong = _counts(confusion)
    return divide(hits, hits + wrong)


def accuracy(confusion: ArrayLike) -> float:
    """Return the share of what is right; NaN for an empty matrix.

    Parameters
    ----------
    confusion
        ``(classes, classes)``, rows true, columns predicted.
    """
    matrix = np.asarray(confusion, np.float64)
    return float(divide(np.trace(matrix), matrix.sum()))


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


@overload
def mean_defined(values: ArrayLike) -> float: ...
@overload
def mean_defined(values: ArrayLike, *, axis: int) -> NDArray[np.float64]: ...
def mean_defined(values: ArrayLike, *, axis: int | None = None) -> Any:
    """Return the mean of what is not NaN; NaN if nothing is.

    Parameters
    ----------
    values
        Numbers, any shape.
    axis
        Axis to average along; None averages all and returns one number.
    """
    array = np.asarray(values, np.float64)
    known = ~np.isnan(array)
    mean = divide(np.where(known, array, 0).sum(axis), known.sum(axis))
    return float(mean) if axis is None else mean


def _counts(confusion: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return true positives, false negatives and false positives per class."""
    matrix = np.asarray(confusion, np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise BadShapeError(f"confusion matrix has shape {matrix.shape}; expected (classes, classes).")
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return hits, matrix.sum(-1) - hits, matrix.sum(-2) - hits


def divide(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Return ``part / whole``, NaN where there is nothing."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    share = np.full(np.broadcast(part, whole).shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
