"""What the four tasks have in common: figures as functions of how much each independent unit counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dhlab.report import Figure

__all__ = ["Curve", "Draws", "Evidence", "Worst", "count_pairs", "name_rare", "sum_by_unit"]

Draws = dict[str, "NDArray[np.float64]"]
Curve = tuple[str, "NDArray[Any]", "NDArray[np.float64]", float]
# Index of a sample, what to write above its picture, and its predicted mask if it has one.
Worst = tuple[int, str, "NDArray[np.int64] | None"]


class Evidence(Protocol):
    """Judged samples of one task.

    Every figure is a function of weights, one per unit: all one gives its value, the number of times that each unit
    was drawn gives a bootstrap draw. Samples can be picked without changing the units.
    """

    @property
    def place(self) -> NDArray[np.int64]:
        """Unit of each sample, ``(N,)``."""
        ...

    @property
    def units(self) -> int:
        """Number of units."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes, labels or numbers."""
        ...

    @property
    def unit(self) -> str:
        """What a unit is called."""
        ...

    def figures(self, weights: NDArray[np.float64]) -> Draws:
        """Return each figure for each row of ``weights``, ``(draws, units)``; NaN where it is not defined."""
        ...

    def prior(self) -> NDArray[np.float64]:
        """Return what the simplest rival says: the share of each class, or the mean of each number."""
        ...

    def simplest(self, prior: NDArray[np.float64]) -> Self:
        """Return the same samples as judged by the simplest rival, which says the same of each."""
        ...

    def pick(self, samples: NDArray[np.bool_]) -> Self:
        """Return some of the samples, of the same units."""
        ...

    def table(self) -> tuple[str, list[dict[str, Any]]]:
        """Return a caption and a row per class or number."""
        ...

    def pictures(self) -> list[Figure]:
        """Return the pictures that show what the figures sum up."""
        ...

    def worst(self) -> list[Worst]:
        """Return the samples with the greatest errors."""
        ...

    def notes(self) -> list[str]:
        """Return what must be read with the figures."""
        ...

    def labels(self) -> NDArray[np.float64]:
        """Return what is true per unit, ``(units, …)``: two evaluations of the same samples agree in it."""
        ...


def sum_by_unit(values: NDArray[Any], place: NDArray[np.int64], units: int) -> NDArray[np.float64]:
    """Return sums of the samples of each unit, ``(units, *rest)``, of values ``(N, *rest)``."""
    from scipy.sparse import csr_array

    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    chooser = csr_array((np.ones(len(place)), (place, np.arange(len(place)))), shape=(units, len(place)))
    return np.asarray(chooser @ flat).reshape(units, *values.shape[1:])


def count_pairs(
    truth: NDArray[Any], decision: NDArray[Any], place: NDArray[np.int64], *, units: int, classes: int
) -> NDArray[np.float64]:
    """Return the confusion matrix of each unit, ``(units, classes, classes)`` float64."""
    codes = (place * classes + truth.astype(np.int64)) * classes + decision.astype(np.int64)
    counts = np.bincount(codes, minlength=units * classes * classes)
    return counts.reshape(units, classes, classes).astype(np.float64)


def name_rare(classes: Sequence[str], per_unit: NDArray[Any], unit: str, *, least: int = 5) -> list[str]:
    """Return a note on the classes that few units have, from counts ``(units, classes)``."""
    held = (np.asarray(per_unit) > 0).sum(0)
    rare = [f"{name} ({count})" for name, count in zip(classes, held.tolist(), strict=True) if 0 < count < least]
    if not rare or len(per_unit) < least:
        return []
    return [f"Few {unit}s have {', '.join(rare)}: what is said of that stands on them alone."]
