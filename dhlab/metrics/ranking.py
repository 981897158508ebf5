"""How well scores tell two kinds apart, over all thresholds and at one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadShapeError, BadValueError
from dhlab.metrics.confusion import mean_defined
from dhlab.tasks import IGNORE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "auc",
    "average_precision",
    "check_rule",
    "choose_threshold",
    "mean_auc",
    "precision_recall_curve",
    "roc_curve",
    "weighted_auc",
    "weighted_average_precision",
]

Curve = tuple["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.float64]"]
RULES = ("sensitivity", "specificity")


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
    positive, scores = _checked(truth, score)
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


def roc_curve(truth: ArrayLike, score: ArrayLike) -> Curve:
    """Return the receiver operating characteristic: what is found against what is falsely found, per threshold.

    Parameters
    ----------
    truth
        ``(N,)`` 1 for positive and 0 for negative.
    score
        ``(N,)`` finite numbers.

    Returns
    -------
    tuple of ndarray
        1 - specificity, sensitivity, and falling thresholds (positive is what scores at least that), ``(T + 1,)``
        each; the first threshold is infinite. A rate whose kind is absent is NaN.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If a score is not finite.
    """
    positive, scores = _checked(truth, score)
    thresholds, found, wrong = _count_above(positive, scores)
    rates = []
    for counted, whole in ((wrong, (~positive).sum()), (found, positive.sum())):
        rates.append(np.r_[0.0, counted] / whole if whole else np.full(len(counted) + 1, np.nan))
    return rates[0], rates[1], np.r_[np.inf, thresholds]


def precision_recall_curve(truth: ArrayLike, score: ArrayLike) -> Curve:
    """Return precision against recall, per threshold.

    Parameters
    ----------
    truth
        ``(N,)`` 1 for positive and 0 for negative.
    score
        ``(N,)`` finite numbers.

    Returns
    -------
    tuple of ndarray
        Precision, recall and falling thresholds (positive is what scores at least that), ``(T,)`` each. Recall is NaN
        without positives.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If a score is not finite.
    """
    positive, scores = _checked(truth, score)
    thresholds, found, wrong = _count_above(positive, scores)
    whole = positive.sum()
    recall = found / whole if whole else np.full(len(found), np.nan)
    return found / np.maximum(found + wrong, 1), recall, thresholds


def average_precision(truth: ArrayLike, score: ArrayLike) -> float:
    """Return precision averaged over the steps of recall, which a rare positive class does not flatter.

    Parameters
    ----------
    truth
        ``(N,)`` 1 for positive and 0 for negative.
    score
        ``(N,)`` finite numbers.

    Returns
    -------
    float
        0 to 1, on average the share of positives for scores without meaning; NaN if there is no positive.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If a score is not finite.

    References
    ----------
    Davis and Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006.
    """
    precision, recall, _ = precision_recall_curve(truth, score)
    if not len(recall) or np.isnan(recall).any():
        return float("nan")
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def weighted_auc(truth: ArrayLike, score: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Return the area under the ROC curve for many weightings of the same samples at once.

    Parameters
    ----------
    truth
        ``(N,)`` 1 for positive and 0 for negative.
    score
        ``(N,)`` finite numbers.
    weights
        ``(draws, N)`` how much each sample counts, such as how often it was drawn.

    Returns
    -------
    ndarray
        ``(draws,)`` float64; NaN where one of the two kinds has no weight.

    Raises
    ------
    BadShapeError
        If the shapes do not fit.
    BadValueError
        If a score is not finite.
    """
    positive, negative = _weights_per_score(truth, score, weights)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return np.divide((positive * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def weighted_average_precision(truth: ArrayLike, score: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Return the average precision for many weightings of the same samples at once.

    Parameters
    ----------
    truth
        ``(N,)`` 1 for positive and 0 for negative.
    score
        ``(N,)`` finite numbers.
    weights
        ``(draws, N)`` how much each sample counts, such as how often it was drawn.

    Returns
    -------
    ndarray
        ``(draws,)`` float64; NaN where no positive has weight.

    Raises
    ------
    BadShapeError
        If the shapes do not fit.
    BadValueError
        If a score is not finite.
    """
    positive, negative = (part[:, ::-1] for part in _weights_per_score(truth, score, weights))
    found, taken = np.cumsum(positive, axis=1), np.cumsum(positive + negative, axis=1)
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    whole = positive.sum(1)
    return np.divide((positive * precision).sum(1), whole, out=np.full(len(whole), np.nan), where=whole > 0)


def choose_threshold(truth: ArrayLike, score: ArrayLike, rule: str | Mapping[str, float] = "youden") -> float:
    """Return the threshold that suits a purpose; positive is what scores at least that.

    Parameters
    ----------
    truth
        ``(N,)`` 1 for positive and 0 for negative: samples that the threshold will not be judged on.
    score
        ``(N,)`` finite numbers.
    rule
        ``"youden"`` makes sensitivity plus specificity greatest; ``{"sensitivity": 0.95}`` specificity greatest among
        thresholds that find at least that share; ``{"specificity": 0.9}`` the other way round.

    Returns
    -------
    float
        One of the scores; the highest where several are as good.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If the rule is unknown, a score is not finite, or positives or negatives are absent.

    References
    ----------
    Youden, "Index for rating diagnostic tests", Cancer 3, 1950.
    """
    check_rule(rule)
    wrong, found, thresholds = roc_curve(truth, score)
    if np.isnan(wrong).any() or np.isnan(found).any():
        raise BadValueError("an operating point needs positives and negatives; the samples hold one kind only.")
    if not isinstance(rule, Mapping):
        return float(thresholds[1 + int(np.argmax(found[1:] - wrong[1:]))])
    name, share = next(iter(rule.items()))
    if name == "sensitivity":
        return float(thresholds[1 + int(np.argmax(found[1:] >= share - 1e-12))])
    fitting = np.flatnonzero(1 - wrong >= share - 1e-12)
    # Where no score is specific enough, the least number above all of them is.
    return float(thresholds[fitting[-1]]) if fitting[-1] else float(np.nextafter(thresholds[1], np.inf))


def check_rule(rule: str | Mapping[str, float]) -> None:
    """Raise `BadValueError` unless ``rule`` is one that `choose_threshold` knows."""
    if isinstance(rule, Mapping):
        good = len(rule) == 1 and all(
            name in RULES and type(share) in (int, float) and 0 < share <= 1 for name, share in rule.items()
        )
    else:
        good = rule == "youden"
    if not good:
        raise BadValueError(
            f"operating point {rule!r}; expected 'youden', or {{'sensitivity': share}} or {{'specificity': share}} "
            "with a share above 0 and up to 1."
        )


def _checked(truth: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    positive, scores = np.asarray(truth).astype(bool), np.asarray(score, np.float64)
    if positive.shape != scores.shape or scores.ndim != 1:
        raise BadShapeError(f"truth has shape {positive.shape}, score {scores.shape}; expected the same, 1-D.")
    if not np.isfinite(scores).all():
        raise BadValueError("score holds NaN or infinity; expected finite numbers.")
    return positive, scores


def _count_above(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> Curve:
    """Return the distinct scores, falling, and how many positives and negatives score at least each."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    found = np.cumsum(positive[order], dtype=np.float64)[last]
    return scores[order][last], found, last + 1 - found


def _weights_per_score(
    truth: ArrayLike, score: ArrayLike, weights: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weight of positives and of negatives at each distinct score, rising, ``(draws, T)``."""
    positive, scores = _checked(truth, score)
    weight = np.asarray(weights, np.float64)
    if weight.ndim != 2 or weight.shape[1] != len(scores):
        raise BadShapeError(f"weights have shape {weight.shape}; expected (draws, {len(scores)}).")
    if not len(scores):
        return np.zeros((len(weight), 0)), np.zeros((len(weight), 0))
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    weight, kind = weight[:, order], positive[order]
    found = weight * kind
    if len(first) == len(scores):
        return found, weight - found
    return np.add.reduceat(found, first, axis=1), np.add.reduceat(weight - found, first, axis=1)
