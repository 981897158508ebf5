"""Evidence of a regression: numbers, some of which may not be known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dhlab.evaluation import drawing
from dhlab.evaluation.evidence import Draws, Worst, sum_by_unit
from dhlab.metrics import mean_absolute_error, mean_defined, r_squared, root_mean_squared_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.report import Figure

__all__ = ["AmountEvidence"]

# More numbers than this are shown in the table only.
MOST_FIGURES, MOST_PICTURES = 12, 4


@dataclass(frozen=True, eq=False)
class AmountEvidence:
    """Samples with true and predicted numbers.

    Parameters
    ----------
    classes
        Names of the numbers.
    truth
        ``(N, numbers)``, NaN where not known.
    scores
        ``(N, numbers)`` predicted.
    place
        Unit of each sample, ``(N,)``.
    units
        Number of units.
    unit
        What a unit is called.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.float64]
    scores: NDArray[np.float64]
    place: NDArray[np.int64]
    units: int
    unit: str

    def figures(self, weights: NDArray[np.float64]) -> Draws:
        """Return each figure for each row of ``weights``, ``(draws, units)``."""
        known = ~np.isnan(self.truth)
        # Sums about the mean lose no digits where numbers are large and close together.
        centred = np.where(known, self.truth - self.prior(), 0)
        error = np.where(known, self.scores - self.truth, 0)
        terms = np.stack([known, centred, centred**2, error, np.abs(error), error**2], axis=1)
        sums = sum_by_unit(terms, self.place, self.units)
        total = (weights @ sums.reshape(self.units, -1)).reshape(len(weights), *sums.shape[1:])
        count, first, second, signed, absolute, squared = np.moveaxis(total, 1, 0)
        count = np.where(count > 0, count, np.nan)
        spread = second - first**2 / count
        # What rounding leaves of a spread of nothing is no spread.
        spread = np.where(spread > 1e-12 * np.maximum(second, 1e-300), spread, np.nan)
        explained = 1 - squared / spread
        found = {"R²": mean_defined(explained, axis=-1)}
        single = len(self.classes) == 1
        if len(self.classes) > MOST_FIGURES:
            return found
        for k, name in enumerate(self.classes):
            of = "" if single else f" {name}"
            found[f"MAE{of}"] = absolute[:, k] / count[:, k]
            found[f"RMSE{of}"] = np.sqrt(squared[:, k] / count[:, k])
            found[f"mean error{of}"] = signed[:, k] / count[:, k]
            if not single:
                found[f"R²{of}"] = explained[:, k]
        return found

    def prior(self) -> NDArray[np.float64]:
        """Return the mean of each number; 0 where none is known."""
        known = ~np.isnan(self.truth)
        return np.where(known, self.truth, 0).sum(0) / np.maximum(known.sum(0), 1)

    def simplest(self, prior: NDArray[np.float64]) -> Self:
        """Return the same samples, each predicted to be the mean."""
        return replace(self, scores=np.broadcast_to(prior, self.scores.shape))

    def pick(self, samples: NDArray[np.bool_]) -> Self:
        """Return some of the samples, of the same units."""
        picked = {name: getattr(self, name)[samples] for name in ("truth", "scores", "place")}
        return replace(self, **picked)

    def table(self) -> tuple[str, list[dict[str, Any]]]:
        """Return a row per number."""
        rows = []
        for k, name in enumerate(self.classes):
            truth, said = self._known(k)
            error = said - truth
            spread = 1.96 * float(error.std(ddof=1)) if len(error) > 1 else float("nan")
            middle = float(error.mean()) if len(error) else float("nan")
            rows.append(
                {
                    "number": name,
                    "samples": len(truth),
                    "R²": r_squared(truth, said),
                    "MAE": mean_absolute_error(truth, said),
                    "RMSE": root_mean_squared_error(truth, said),
                    "mean error": middle,
                    "95 % of errors from": middle - spread,
                    "to": middle + spread,
                }
            )
        return "Per number (errors are predicted minus true)", rows

    def pictures(self) -> list[Figure]:
        """Return predicted against true, and differences, of the first numbers."""
        drawn = []
        for k, name in list(enumerate(self.classes))[:MOST_PICTURES]:
            truth, said = self._known(k)
            if len(truth):
                drawn.append(drawing.draw_agreement(truth, said, name))
        return drawn

    def worst(self) -> list[Worst]:
        """Return the samples with the greatest error, in units of each number's spread."""
        error = np.abs(self.scores - self.truth)
        spread = np.array([float(t[~np.isnan(t)].std()) if (~np.isnan(t)).any() else 1.0 for t in self.truth.T])
        farness = np.nan_to_num(error / np.where(spread > 0, spread, 1), nan=-1.0)
        order = np.argsort(-farness.max(1), kind="stable")[: drawing.GALLERY]
        found: list[Worst] = []
        for i in order.tolist():
            k = int(farness[i].argmax())
            if farness[i, k] > 0:
                name = f"{drawing.shorten(self.classes[k])} "
                found.append((i, f"{name}{self.truth[i, k]:.3g}\npredicted {self.scores[i, k]:.3g}", None))
        return found

    def notes(self) -> list[str]:
        """Return which numbers are not known."""
        known = (~np.isnan(self.truth)).sum(0)
        notes = []
        if absent := [n for n, count in zip(self.classes, known, strict=True) if not count]:
            notes.append(f"Not known in these data: {', '.join(absent)}. R² is the mean over the other numbers.")
        if len(self.classes) > MOST_PICTURES:
            notes.append(f"Of {len(self.classes)} numbers, the first {MOST_PICTURES} are drawn.")
        return notes

    def labels(self) -> NDArray[np.float64]:
        """Return sums of the known numbers per unit."""
        known = ~np.isnan(self.truth)
        sums = sum_by_unit(np.stack([known, np.where(known, self.truth, 0)], axis=1), self.place, self.units)
        return np.round(sums, 4)

    def _known(self, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        known = ~np.isnan(self.truth[:, number])
        return self.truth[known, number], self.scores[known, number]
