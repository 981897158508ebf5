"""Whether a score means what it says: calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["brier_score", "expected_calibration_error", "reliability_bins"]


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
    count, confidence, share = reliability_bins(chance.max(1), chance.argmax(1) == true, bins=bins)
    filled = count > 0
    return float((count[filled] * np.abs(share[filled] - confidence[filled])).sum() / len(true))


def reliability_bins(
    confidence: ArrayLike, right: ArrayLike, *, bins: int = 15
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Compare how sure a model is with how often it is right, in equal bins of confidence.

    Parameters
    ----------
    confidence
        ``(N,)`` probabilities: of the class that was chosen, or that a label applies.
    right
        ``(N,)`` whether it was right, or the label applies.
    bins
        Number of bins over 0 to 1, closed on the right.

    Returns
    -------
    tuple of ndarray
        Samples, mean confidence and share that is right, ``(bins,)`` each; the latter two NaN for an empty bin.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If there is no bin, or a confidence is not between 0 and 1.
    """
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if sure.ndim != 1 or sure.shape != hit.shape:
        raise BadShapeError(f"confidence has shape {sure.shape}, right {hit.shape}; expected the same, 1-D.")
    # Sums of float32 probabilities end a little above 1.
    if bins < 1 or not ((sure >= 0) & (sure <= 1 + 1e-4)).all():
        raise BadValueError(f"{bins} bins, confidences that are not all from 0 to 1; expected at least 1, and that.")
    place = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (sure, hit)]
    means = [np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums]
    return count, means[0], means[1]


def brier_score(truth: ArrayLike, probability: ArrayLike) -> float:
    """Return the mean squared error of probabilities: small if they are both sharp and calibrated.

    Parameters
    ----------
    truth
        ``(N,)``: 1 and 0 for one probability per sample, class indices for several.
    probability
        ``(N,)`` probability of 1, or ``(N, classes)`` probabilities, whose errors are summed.

    Returns
    -------
    float
        0 (perfect) to 1, or to 2 for several classes; NaN if there are no samples.

    Raises
    ------
    BadShapeError
        If the shapes do not fit.

    References
    ----------
    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.
    """
    true, chance = np.asarray(truth), np.asarray(probability, np.float64)
    if chance.ndim not in (1, 2) or true.shape != chance.shape[:1]:
        raise BadShapeError(
            f"truth has shape {true.shape}, probability {chance.shape}; expected (N,), and (N,) or (N, classes)."
        )
    if not len(true):
        return float("nan")
    aim = true if chance.ndim == 1 else true[:, None] == np.arange(chance.shape[1])
    error = (chance - aim) ** 2
    return float(error.mean() if chance.ndim == 1 else error.sum(1).mean())
