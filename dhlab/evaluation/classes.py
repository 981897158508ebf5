"""Evidence of a classification: one class is right for each sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dhlab.evaluation import drawing
from dhlab.evaluation.evidence import Draws, Worst, name_rare, sum_by_unit
from dhlab.evaluation.judging import BINS
from dhlab.metrics import (
    auc,
    confusion_matrix,
    dice,
    mean_defined,
    precision,
    reliability_bins,
    sensitivity,
    specificity,
    weighted_auc,
    weighted_average_precision,
)
from dhlab.metrics.confusion import divide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.report import Figure

__all__ = ["ClassEvidence"]


@dataclass(frozen=True, eq=False)
class ClassEvidence:
    """Labelled samples with the scores of their classes.

    Parameters
    ----------
    classes
        Class names; of two, the second is what is looked for.
    truth
        Class indices, ``(N,)``.
    scores
        ``(N, classes)``.
    place
        Unit of each sample, ``(N,)``.
    units
        Number of units.
    unit
        What a unit is called.
    threshold
        Score from which on the second of two classes is chosen; None chooses the class with the greatest score.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int64]
    scores: NDArray[np.float64]
    place: NDArray[np.int64]
    units: int
    unit: str
    threshold: float | None = None

    @cached_property
    def decision(self) -> NDArray[np.int64]:
        """Class that is chosen, ``(N,)``."""
        if self.threshold is None:
            return self.scores.argmax(1)
        return (self.scores[:, 1] >= self.threshold).astype(np.int64)

    @cached_property
    def probable(self) -> bool:
        """Whether scores are probabilities of exclusive classes."""
        return bool((self.scores >= 0).all() and np.allclose(self.scores.sum(1), 1, atol=1e-3))

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix, ``(classes, classes)``."""
        return confusion_matrix(self.truth, self.decision, len(self.classes))

    @cached_property
    def tallies(self) -> NDArray[np.float64]:
        """Samples of each unit and class that are true, predicted, and both, ``(units, 3, classes)``.

        They suffice for every rate, and stay small where a confusion matrix per unit would not.
        """
        count = len(self.classes)
        both = self.truth == self.decision
        kinds = ((self.place, self.truth), (self.place, self.decision), (self.place[both], self.truth[both]))
        counts = [np.bincount(p * count + k, minlength=self.units * count) for p, k in kinds]
        return np.stack([c.reshape(self.units, count) for c in counts], axis=1).astype(np.float64)

    @cached_property
    def looked_for(self) -> tuple[int, ...]:
        """Classes that are told from all others: the second of two, else each."""
        return (1,) if len(self.classes) == 2 else tuple(range(len(self.classes)))

    def figures(self, weights: NDArray[np.float64]) -> Draws:
        """Return each figure for each row of ``weights``, ``(draws, units)``."""
        count = len(self.classes)
        true, said, both = np.moveaxis((weights @ self.tallies.reshape(self.units, -1)).reshape(-1, 3, count), 1, 0)
        whole, rates = true.sum(1), divide(both, true)
        found = {
            "balanced accuracy": mean_defined(rates, axis=-1),
            "accuracy": divide(both.sum(1), whole),
            "macro F1": mean_defined(divide(2 * both, true + said), axis=-1),
        }
        each = weights[:, self.place]
        kinds = [(self.truth == k, self.scores[:, k]) for k in self.looked_for]
        found["AUC"] = mean_defined(np.stack([weighted_auc(*kind, each) for kind in kinds]), axis=0)
        if count == 2:
            found["average precision"] = weighted_average_precision(*kinds[0], each)
            found["sensitivity"], found["specificity"] = rates[:, 1], rates[:, 0]
        if self.probable:
            gaps = sum_by_unit(self._gaps(), self.place, self.units)
            found["calibration error"] = divide(np.abs(weights @ gaps).sum(1), whole)
            found["Brier score"] = divide(weights @ sum_by_unit(self._errors(), self.place, self.units), whole)
        return found

    def _gaps(self) -> NDArray[np.float64]:
        """Return right minus confidence of each sample in its bin of confidence, ``(N, BINS)``."""
        sure = self.scores.max(1)
        bins = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
        gaps = np.zeros((len(sure), BINS))
        gaps[np.arange(len(sure)), bins] = (self.scores.argmax(1) == self.truth) - sure
        return gaps

    def _errors(self) -> NDArray[np.float64]:
        """Return the squared error of each sample's probabilities, of two classes that of the second alone."""
        error = (self.scores - (self.truth[:, None] == np.arange(len(self.classes)))) ** 2
        return error[:, 1] if len(self.classes) == 2 else error.sum(1)

    def prior(self) -> NDArray[np.float64]:
        """Return the share of each class."""
        return np.bincount(self.truth, minlength=len(self.classes)) / len(self.truth)

    def simplest(self, prior: NDArray[np.float64]) -> Self:
        """Return the same samples, each with the share of each class as its scores."""
        return replace(self, scores=np.broadcast_to(prior, self.scores.shape), threshold=None)

    def pick(self, samples: NDArray[np.bool_]) -> Self:
        """Return some of the samples, of the same units."""
        picked = {name: getattr(self, name)[samples] for name in ("truth", "scores", "place")}
        return replace(self, **picked)

    def table(self) -> tuple[str, list[dict[str, Any]]]:
        """Return a row per class."""
        total = self.confusion
        rows = []
        for k, name in enumerate(self.classes):
            row: dict[str, Any] = {"class": name, "samples": int(total[k].sum()), "F1": float(dice(total)[k])}
            row |= {"sensitivity": float(sensitivity(total)[k]), "specificity": float(specificity(total)[k])}
            row["precision"] = float(precision(total)[k])
            if len(self.classes) > 2:
                row["AUC against the rest"] = auc(self.truth == k, self.scores[:, k])
            rows.append(row)
        return "Per class", rows

    def pictures(self) -> list[Figure]:
        """Return confusion matrix, curves and reliability."""
        drawn = [drawing.draw_confusion(self.confusion, self.classes)]
        if self.probable:
            bins = reliability_bins(self.scores.max(1), self.scores.argmax(1) == self.truth, bins=BINS)
            drawn.append(drawing.draw_reliability(*bins, noun="sample"))
        kinds = [(self.classes[k], self.truth == k, self.scores[:, k]) for k in self.looked_for]
        return drawn + drawing.draw_curves(kinds, threshold=self.threshold)

    def worst(self) -> list[Worst]:
        """Return the wrong decisions that the model was surest of."""
        everyone = np.arange(len(self.truth))
        margin = self.scores[everyone, self.truth] - self.scores[everyone, self.decision]
        wrong = np.flatnonzero(self.decision != self.truth)
        order = wrong[np.argsort(margin[wrong], kind="stable")]
        names = [drawing.shorten(name) for name in self.classes]
        found: list[Worst] = []
        for i in order[: drawing.GALLERY].tolist():
            chosen = int(self.decision[i])
            found.append((i, f"{names[self.truth[i]]}\ntaken for {names[chosen]} ({self.scores[i, chosen]:.2f})", None))
        return found

    def notes(self) -> list[str]:
        """Return which classes are absent or rare, and what a decision stands on."""
        notes = []
        counts = self.labels()
        if absent := [name for name, count in zip(self.classes, counts.sum(0), strict=True) if not count]:
            notes.append(
                f"Not in these data: {', '.join(absent)}. Means are over the classes that occur or are predicted."
            )
        return notes + name_rare(self.classes, counts, self.unit)

    def labels(self) -> NDArray[np.float64]:
        """Return samples per unit and class."""
        return self.tallies[:, 0]
