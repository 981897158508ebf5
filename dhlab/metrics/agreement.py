"""How far people agree beyond chance: Cohen's kappa of two, Fleiss' kappa of any number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from dhlab.errors import BadShapeError, BadValueError
from dhlab.metrics.confusion import divide

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["cohen_kappa", "fleiss_kappa"]


def cohen_kappa(
    confusion: ArrayLike, *, weighting: Literal["none", "linear", "quadratic"] = "none"
) -> NDArray[np.float64]:
    """Return the agreement of two raters beyond chance, ``(…)``: 1 for full agreement, 0 for what chance would give.

    Parameters
    ----------
    confusion
        ``(…, classes, classes)`` how often one said the row's class and the other the column's.
    weighting
        How much a disagreement counts: ``"none"`` as much as any other, ``"linear"`` or ``"quadratic"`` in the
        distance of the classes, which are then ordered (grades).

    Returns
    -------
    ndarray
        ``(…)`` float64; NaN where both used one and the same class throughout.

    Raises
    ------
    BadShapeError
        If the matrix is not square.
    BadValueError
        If there is no such weighting.

    References
    ----------
    Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20, 1960.
    Cohen, "Weighted kappa", Psychological Bulletin 70, 1968.
    """
    matrix = np.asarray(confusion, np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise BadShapeError(f"confusion matrix has shape {matrix.shape}; expected (classes, classes).")
    powers = {"none": 0, "linear": 1, "quadratic": 2}
    if weighting not in powers:
        raise BadValueError(f"weighting {weighting!r}; expected one of {', '.join(powers)}.")
    classes = np.arange(matrix.shape[-1])
    distance = np.abs(classes[:, None] - classes)
    cost = np.where(distance > 0, distance ** powers[weighting], 0)
    total = matrix.sum((-2, -1))
    by_chance = matrix.sum(-1)[..., :, None] * matrix.sum(-2)[..., None, :]
    return 1 - divide((matrix * cost).sum((-2, -1)) * total, (by_chance * cost).sum((-2, -1)))


def fleiss_kappa(counts: ArrayLike, *, weights: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return the agreement of several raters beyond chance, each item judged by the same number of them.

    Parameters
    ----------
    counts
        ``(items, classes)`` how many raters chose each class.
    weights
        ``(…, items)`` how often each row stands; None counts each once.

    Returns
    -------
    ndarray
        ``(…)`` float64; NaN where all used one and the same class throughout.

    Raises
    ------
    BadShapeError
        If the shapes do not fit.
    BadValueError
        If items have different numbers of raters, or fewer than two.

    References
    ----------
    Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76, 1971.
    """
    table = np.asarray(counts, np.float64)
    if table.ndim != 2 or not len(table):
        raise BadShapeError(f"counts have shape {table.shape}; expected (items, classes), at least one item.")
    times = np.ones(len(table)) if weights is None else np.asarray(weights, np.float64)
    if not times.ndim or times.shape[-1] != len(table):
        raise BadShapeError(f"weights have shape {times.shape}; expected (…, {len(table)}).")
    raters = table.sum(1)
    if (raters != raters[0]).any() or raters[0] < 2:
        raise BadValueError(
            f"items judged by {raters.min():g} to {raters.max():g} raters; expected the same number of each, two or "
            "more. Leave out what not all have judged."
        )
    total = times.sum(-1)
    agreed = divide(times @ ((table**2).sum(1) - raters), total * raters[0] * (raters[0] - 1))
    chance = (divide(times @ table, (total * raters[0])[..., None]) ** 2).sum(-1)
    return divide(agreed - chance, 1 - chance)
