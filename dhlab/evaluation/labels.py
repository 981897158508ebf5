"""Evidence of several labels: any number of them may be right for a sample, and some may not be known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dhlab.evaluation import drawing
from dhlab.evaluation.evidence import Draws, Worst, count_pairs, name_rare, sum_by_unit
from dhlab.evaluation.judging import BINS
from dhlab.metrics import (
    auc,
    average_precision,
    dice,
    mean_defined,
    reliability_bins,
    sensitivity,
    weighted_auc,
    weighted_average_precision,
)
from dhlab.metrics.confusion import divide
from dhlab.tasks import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.report import Figure

__all__ = ["LabelEvidence"]

# More labels than this are shown in the table only.
MOST_FIGURES = 20


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """Samples with the scores of their labels.

    Parameters
    ----------
    classes
        Names of the labels.
    truth
        ``(N, labels)``: 1 there, 0 not there, -1 not known.
    scores
        ``(N, labels)``.
    place
        Unit of each sample, ``(N,)``.
    units
        Number of units.
    unit
        What a unit is called.
    thresholds
        Score from which on a label is given, ``(labels,)``.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int64]
    scores: NDArray[np.float64]
    place: NDArray[np.int64]
    units: int
    unit: str
    thresholds: NDArray[np.float64]

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Whether a label is known, ``(N, labels)``."""
        return self.truth != IGNORE

    @cached_property
    def decision(self) -> NDArray[np.bool_]:
        """Whether a label is given, ``(N, labels)``."""
        return self.scores >= self.thresholds

    @cached_property
    def probable(self) -> bool:
        """Whether scores are probabilities."""
        return bool(((self.scores >= 0) & (self.scores <= 1 + 1e-4)).all())

    @cached_property
    def confusion(self) -> NDArray[np.float64]:
        """Confusion of each unit and label, ``(units, labels, 2, 2)``."""
        each = []
        for truth, decision, known in zip(self.truth.T, self.decision.T, self.known.T, strict=True):
            places = self.place[known]
            each.append(count_pairs(truth[known], decision[known], places, units=self.units, classes=2))
        return np.stack(each, axis=1)

    def figures(self, weights: NDArray[np.float64]) -> Draws:
        """Return each figure for each row of ``weights``, ``(draws, units)``."""
        areas, precisions = [], []
        for truth, score, known in zip(self.truth.T, self.scores.T, self.known.T, strict=True):
            each = weights[:, self.place[known]]
            areas.append(weighted_auc(truth[known], score[known], each))
            precisions.append(weighted_average_precision(truth[known], score[known], each))
        counts = (weights @ self.confusion.reshape(self.units, -1)).reshape(len(weights), -1, 2, 2)
        rates = sensitivity(counts)
        found = {
            "mean AUC": mean_defined(np.stack(areas), axis=0),
            "mean average precision": mean_defined(np.stack(precisions), axis=0),
            "macro F1": mean_defined(dice(counts)[..., 1], axis=-1),
            "mean sensitivity": mean_defined(rates[..., 1], axis=-1),
            "mean specificity": mean_defined(rates[..., 0], axis=-1),
        }
        if self.probable:
            errors = np.where(self.known, (self.scores - self.truth) ** 2, 0).sum(1)
            whole = weights @ sum_by_unit(self.known.sum(1), self.place, self.units)
            gaps = np.abs(weights @ sum_by_unit(self._gaps(), self.place, self.units)).sum(1)
            found["calibration error"] = divide(gaps, whole)
            found["Brier score"] = divide(weights @ sum_by_unit(errors, self.place, self.units), whole)
        if len(self.classes) <= MOST_FIGURES:
            found |= {f"AUC {name}": area for name, area in zip(self.classes, areas, strict=True)}
        return found

    def _gaps(self) -> NDArray[np.float64]:
        """Return truth minus score of each sample's labels, summed in bins of score, ``(N, BINS)``."""
        bins = np.clip(np.ceil(self.scores * BINS).astype(np.int64) - 1, 0, BINS - 1)
        rows = np.broadcast_to(np.arange(len(bins))[:, None], bins.shape)
        gap = np.where(self.known, self.truth - self.scores, 0)
        flat = np.bincount((rows * BINS + bins).reshape(-1), weights=gap.reshape(-1), minlength=len(bins) * BINS)
        return np.asarray(flat.reshape(len(bins), BINS), np.float64)

    def prior(self) -> NDArray[np.float64]:
        """Return the share of the known samples that have each label; 0 where none is known."""
        return (self.truth == 1).sum(0) / np.maximum(self.known.sum(0), 1)

    def simplest(self, prior: NDArray[np.float64]) -> Self:
        """Return the same samples, each with the share of each label as its scores."""
        scores, half = np.broadcast_to(prior, self.scores.shape), np.full(len(self.classes), 0.5)
        return replace(self, scores=scores, thresholds=half)

    def pick(self, samples: NDArray[np.bool_]) -> Self:
        """Return some of the samples, of the same units."""
        picked = {name: getattr(self, name)[samples] for name in ("truth", "scores", "place")}
        return replace(self, **picked)

    def table(self) -> tuple[str, list[dict[str, Any]]]:
        """Return a row per label."""
        total = self.confusion.sum(0)
        rows = []
        for k, name in enumerate(self.classes):
            known = self.known[:, k]
            truth, score = self.truth[known, k], self.scores[known, k]
            found, spared = sensitivity(total[k])[::-1].tolist()
            rows.append(
                {
                    "label": name,
                    "samples": int((truth == 1).sum()),
                    "of": int(known.sum()),
                    "AUC": auc(truth, score),
                    "average precision": average_precision(truth, score),
                    "threshold": float(self.thresholds[k]),
                    "sensitivity": found,
                    "specificity": spared,
                    "F1": float(dice(total[k])[1]),
                }
            )
        return "Per label", rows

    def pictures(self) -> list[Figure]:
        """Return curves and reliability."""
        kinds = [
            (name, self.truth[self.known[:, k], k] == 1, self.scores[self.known[:, k], k])
            for k, name in enumerate(self.classes)
        ]
        drawn = drawing.draw_curves(kinds)
        if self.probable:
            bins = reliability_bins(self.scores[self.known], self.truth[self.known] == 1, bins=BINS)
            drawn.append(drawing.draw_reliability(*bins, noun="label", labels=True))
        return drawn

    def worst(self) -> list[Worst]:
        """Return the samples whose worst label is farthest from what is true."""
        error = np.where(self.known, np.abs(self.truth - self.scores), 0)
        wrong = self.known & (self.decision != (self.truth == 1))
        farthest = np.where(wrong, error, 0).max(1)
        order = np.argsort(-farthest, kind="stable")[: drawing.GALLERY]
        found: list[Worst] = []
        for i in order.tolist():
            k = int(np.where(wrong[i], error[i], -1).argmax())
            if wrong[i, k]:
                said = "missed" if self.truth[i, k] else "not there"
                found.append((i, f"{drawing.shorten(self.classes[k])}\n{said} (score {self.scores[i, k]:.2f})", None))
        return found

    def notes(self) -> list[str]:
        """Return which labels never or always occur, and which are rare."""
        notes = []
        there, absent = (self.truth == 1).sum(0), (self.truth == 0).sum(0)
        if one := [n for n, a, b in zip(self.classes, there, absent, strict=True) if not (a and b)]:
            notes.append(
                f"One kind only is known of {', '.join(one)}: no AUC, and the means are over the other labels."
            )
        return notes + name_rare(self.classes, self.confusion[:, :, 1].sum(-1), self.unit)

    def labels(self) -> NDArray[np.float64]:
        """Return what is known per unit and label."""
        return self.confusion.sum(-1)
