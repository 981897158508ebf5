"""Figures of predicted numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadShapeError, BadValueError
from dhlab.metrics.confusion import mean_defined

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

__all__ = ["mean_absolute_error", "r_squared", "root_mean_squared_error"]


def mean_absolute_error(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Return how far predictions lie from the truth on average.

    Parameters
    ----------
    truth
        ``(N,)`` or ``(N, K)`` numbers, NaN where not known.
    prediction
        Numbers of the same shape, finite wherever truth is known.

    Returns
    -------
    float
        At least 0, in the unit of the numbers. Columns count equally; one with no known value is left out, and NaN is
        returned if that leaves none.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If a prediction is not finite.
    """
    return _mean_over_columns(truth, prediction, lambda t, p: float(np.abs(t - p).mean()) if len(t) else np.nan)


def root_mean_squared_error(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Return the root of the mean squared error, which large errors dominate.

    Parameters
    ----------
    truth
        ``(N,)`` or ``(N, K)`` numbers, NaN where not known.
    prediction
        Numbers of the same shape, finite wherever truth is known.

    Returns
    -------
    float
        At least 0, in the unit of the numbers. Columns count equally; one with no known value is left out, and NaN is
        returned if that leaves none.

    Raises
    ------
    BadShapeError
        If the shapes differ.
    BadValueError
        If a prediction is not finite.
    """
    return _mean_over_columns(truth, prediction, lambda t, p: float(((t - p) ** 2).mean() ** 0.5) if len(t) else np.nan)


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

    def explained(t: NDArray[np.float64], p: NDArray[np.float64]) -> float:
        spread = float(((t - t.mean()) ** 2).sum()) if len(t) else 0.0
        return 1 - float(((t - p) ** 2).sum()) / spread if spread else np.nan

    return _mean_over_columns(truth, prediction, explained)


def _mean_over_columns(
    truth: ArrayLike,
    prediction: ArrayLike,
    formula: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
) -> float:
    true, given = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    if true.ndim not in (1, 2) or true.shape != given.shape:
        raise BadShapeError(f"truth has shape {true.shape}, prediction {given.shape}; expected the same, 1-D or 2-D.")
    known = ~np.isnan(true)
    if not np.isfinite(given[known]).all():
        raise BadValueError("prediction holds NaN or infinity; expected finite numbers.")
    columns = zip(np.atleast_2d(true.T), np.atleast_2d(given.T), np.atleast_2d(known.T), strict=True)
    return mean_defined([formula(t[k], p[k]) for t, p, k in columns])
