"""Evidence of a segmentation: counts over labelled pixels, distances of outlines, objects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dhlab.evaluation import drawing
from dhlab.evaluation.evidence import Draws, Worst, name_rare, sum_by_unit
from dhlab.metrics import dice, iou, mean_defined, precision, sensitivity, specificity
from dhlab.metrics.confusion import divide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.report import Figure

__all__ = ["PixelEvidence"]


@dataclass(frozen=True, eq=False)
class PixelEvidence:
    """Counts of each sample.

    Parameters
    ----------
    classes
        Class names.
    confusion
        ``(N, classes, classes)``, rows true, columns predicted.
    bins
        ``(N, bins, 3)``: pixels per bin of confidence, sum of confidences, pixels that are right; None if scores are
        no probabilities.
    distances
        ``(N, classes, 2)``: HD95 and mean surface distance; infinite where one outline is absent, NaN where not
        measured.
    objects
        ``(N, classes, 5)``: objects found, their summed overlap, missed, wrong, and the aggregated Jaccard index.
    counted
        Classes whose objects were counted.
    cut
        ``(N,)`` whether outlines could not be measured.
    masks
        Share of labelled pixels that are right, index and predicted mask of the worst samples.
    place
        Unit of each sample, ``(N,)``.
    units
        Number of units.
    unit
        What a unit is called.
    length
        Unit of distances.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    bins: NDArray[np.float64] | None
    distances: NDArray[np.float64] | None
    objects: NDArray[np.float64]
    counted: tuple[int, ...]
    cut: NDArray[np.bool_]
    masks: list[tuple[float, int, NDArray[np.int64]]]
    place: NDArray[np.int64]
    units: int
    unit: str
    length: str

    @cached_property
    def by_unit(self) -> NDArray[np.float64]:
        """Confusion matrix of each unit, ``(units, classes, classes)``."""
        return sum_by_unit(self.confusion, self.place, self.units)

    def figures(self, weights: NDArray[np.float64]) -> Draws:
        """Return each figure for each row of ``weights``, ``(draws, units)``."""
        count = len(self.classes)
        counts = (weights @ self.by_unit.reshape(self.units, -1)).reshape(-1, count, count)
        each, whole = dice(counts), counts.sum((1, 2))
        found = {
            "mean Dice": mean_defined(each, axis=-1),
            f"mean Dice per {self.unit}": self._average(mean_defined(dice(self.by_unit), axis=-1)[:, None], weights)[
                :, 0
            ],
            "mean IoU": mean_defined(iou(counts), axis=-1),
            "balanced accuracy": mean_defined(sensitivity(counts), axis=-1),
            "accuracy": divide(counts.trace(axis1=1, axis2=2), whole),
        }
        if self.bins is not None:
            sums = sum_by_unit(self.bins[..., 2] - self.bins[..., 1], self.place, self.units)
            found["calibration error"] = divide(np.abs(weights @ sums).sum(1), whole)
        if self.distances is not None:
            for number, name in enumerate(("HD95", "surface distance")):
                means = self._average_samples(self.distances[..., number], weights)
                found[f"{name} ({self.length})"] = mean_defined(means, axis=-1)
        for k in self.counted:
            found |= {f"{figure} {self.classes[k]}": v for figure, v in self._count(k, weights).items()}
        return found | {f"Dice {name}": each[:, k] for k, name in enumerate(self.classes)}

    def _average(self, values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return weighted means of what units ``(units, K)`` have, NaN left out, ``(draws, K)``."""
        known = np.isfinite(values)
        return divide(weights @ np.where(known, values, 0), weights @ known.astype(np.float64))

    def _average_samples(self, values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return weighted means of what samples ``(N, K)`` have, those not finite left out, ``(draws, K)``."""
        known = np.isfinite(values)
        sums = sum_by_unit(np.where(known, values, 0), self.place, self.units)
        return divide(weights @ sums, weights @ sum_by_unit(known, self.place, self.units))

    def _count(self, number: int, weights: NDArray[np.float64]) -> Draws:
        own = self.objects[:, number]
        found, overlap, missed, wrong = (weights @ sum_by_unit(own[:, :4], self.place, self.units)).T
        whole = found + (missed + wrong) / 2
        return {
            "AJI": self._average_samples(own[:, 4:], weights)[:, 0],
            "detection F1": divide(found, whole),
            "PQ": divide(overlap, whole),
        }

    def prior(self) -> NDArray[np.float64]:
        """Return the share of each class among the labelled pixels."""
        counts = self.confusion.sum((0, 2))
        return counts / counts.sum()

    def simplest(self, prior: NDArray[np.float64]) -> Self:
        """Return the same samples, every pixel of the commonest class; nothing has an outline then."""
        confusion = np.zeros_like(self.confusion)
        confusion[:, :, int(prior.argmax())] = self.confusion.sum(2)
        return replace(self, confusion=confusion, bins=None, distances=None, counted=())

    def pick(self, samples: NDArray[np.bool_]) -> Self:
        """Return some of the samples, of the same units."""
        names = ["confusion", "objects", "cut", "place"]
        names += [name for name in ("bins", "distances") if getattr(self, name) is not None]
        picked: dict[str, Any] = {name: getattr(self, name)[samples] for name in names}
        return replace(self, masks=[], **picked)

    def table(self) -> tuple[str, list[dict[str, Any]]]:
        """Return a row per class."""
        total = self.confusion.sum(0)
        columns = {
            "Dice": dice(total),
            "IoU": iou(total),
            "sensitivity": sensitivity(total),
            "specificity": specificity(total),
            "precision": precision(total),
        }
        if self.distances is not None:
            means = self._average_samples(self.distances.reshape(len(self.confusion), -1), np.ones((1, self.units)))
            columns |= {f"HD95 ({self.length})": means[0, 0::2], f"surface distance ({self.length})": means[0, 1::2]}
        rows: list[dict[str, Any]] = [
            {"class": name, "pixels": int(total[k].sum()), **{key: float(v[k]) for key, v in columns.items()}}
            for k, name in enumerate(self.classes)
        ]
        if self.distances is not None:
            for k in np.flatnonzero(np.isnan(self.distances).all((0, 2))).tolist():
                rows[k] |= dict.fromkeys([name for name in rows[k] if name.endswith(f"({self.length})")])
        return "Per class", rows

    def pictures(self) -> list[Figure]:
        """Return confusion matrix and reliability."""
        drawn = [drawing.draw_confusion(self.confusion.sum(0), self.classes)]
        if self.bins is not None:
            count, sure, right = self.bins.sum(0).T
            drawn.append(
                drawing.draw_reliability(
                    count.astype(np.int64), divide(sure, count), divide(right, count), noun="pixel"
                )
            )
        return drawn

    def worst(self) -> list[Worst]:
        """Return the samples with the smallest share of pixels that are right."""
        return [(index, f"{merit:.0%} right", mask) for merit, index, mask in self.masks if merit < 1]

    def notes(self) -> list[str]:
        """Return which classes are absent or rare, and what could not be measured."""
        notes = []
        per_unit = self.by_unit.sum(2)
        if absent := [name for name, count in zip(self.classes, per_unit.sum(0), strict=True) if not count]:
            notes.append(
                f"Not in these data: {', '.join(absent)}. Means are over the classes that occur or are predicted."
            )
        notes += name_rare(self.classes, per_unit, self.unit)
        if self.distances is not None:
            notes += self._distance_notes()
        if self.counted:
            notes.append("Objects are connected parts: what touches counts as one, in the truth too.")
        return notes

    def _distance_notes(self) -> list[str]:
        assert self.distances is not None
        notes = []
        if self.cut.all():
            notes.append("Outlines are not measured: every sample is a window of a scan or has pixels without label.")
        elif self.cut.any():
            notes.append(
                f"Outlines are measured in {(~self.cut).sum()} of {len(self.cut)} samples; the others have pixels "
                "without label or are windows of a scan."
            )
        if lost := int(np.isinf(self.distances[..., 0]).sum()):
            notes.append(
                f"In {lost} cases a class is missed altogether, or found where it is not: they have no distance, "
                "and are left out of the means, which therefore look better than they are."
            )
        if self.length == "px" and not self.cut.all():
            notes.append("The pixel size is not known: distances are in pixels.")
        return notes

    def labels(self) -> NDArray[np.float64]:
        """Return pixels per unit and class."""
        return self.by_unit.sum(2)
