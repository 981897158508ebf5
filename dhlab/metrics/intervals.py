"""How much a figure would vary over other patients: the bootstrap over whole units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_interval", "draw_weights", "percentile_interval"]

# Numbers held at once while drawing: 32 MiB of float64.
LARGEST_BLOCK = 1 << 22


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
    return percentile_interval(values, level=level)


def draw_weights(
    units: int, *, resamples: int = 1000, rng: int | np.random.Generator = 0, width: int = 0
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each unit is drawn, in blocks of draws that fit into memory.

    A figure of sums per unit is then a matrix product, and draws with the same seed are the same for every figure and
    every model: differences are paired. They are the draws of `bootstrap_interval`.

    Parameters
    ----------
    units
        Number of independent units.
    resamples
        Number of draws.
    rng
        Seed or generator.
    width
        Numbers that the caller needs per draw, if more than one per unit; decides the size of the blocks only.

    Yields
    ------
    ndarray
        ``(draws, units)`` float64 whole numbers, each row with sum `units`.

    Raises
    ------
    BadValueError
        If `units` or `resamples` is less than 1.
    """
    if units < 1 or resamples < 1:
        raise BadValueError(f"{units} units, {resamples} resamples; expected at least 1 each.")
    random = np.random.default_rng(rng)
    rows = max(1, LARGEST_BLOCK // max(units, width))
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        drawn = random.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=count * units).reshape(count, units).astype(np.float64)


def percentile_interval(draws: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the middle share of the draws; NaN draws are left out.

    Parameters
    ----------
    draws
        ``(resamples,)`` values of a figure.
    level
        Share of draws inside the interval.

    Returns
    -------
    tuple of float
        Low and high; NaN if no draw is defined.
    """
    values = np.asarray(draws, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
