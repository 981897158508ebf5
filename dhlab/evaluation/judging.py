"""Run a model over a dataset and keep what its figures need: scores of samples, counts of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from dhlab.errors import BadValueError
from dhlab.metrics import (
    accuracy,
    aggregated_jaccard,
    confusion_matrix,
    label_objects,
    match_objects,
    surface_distances,
)
from dhlab.progress import progress_bar
from dhlab.tasks import IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.datasets import Dataset
    from dhlab.models import Model

__all__ = ["BINS", "JudgedPixels", "JudgedSamples", "judge_pixels", "judge_samples", "run_batches"]

# Bins of confidence, and how many of the worst samples are kept for the gallery.
BINS, WORST = 15, 4
Run = tuple["NDArray[np.int64]", "NDArray[Any]", "Tensor"]


@dataclass(frozen=True, eq=False)
class JudgedSamples:
    """Targets and scores of whole samples.

    Parameters
    ----------
    truth
        Targets, ``(N,)`` or ``(N, classes)``.
    scores
        ``(N, classes)`` float64.
    """

    truth: NDArray[Any]
    scores: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class JudgedPixels:
    """Counts over the labelled pixels of each sample.

    Parameters
    ----------
    confusion
        ``(N, classes, classes)``, rows true, columns predicted; pixels that an earlier window shows do not count.
    bins
        ``(N, BINS, 3)``: pixels per bin of confidence, sum of confidences, pixels that are right.
    distances
        ``(N, classes, 2)``: HD95 and mean surface distance; infinite where one outline is absent, NaN where both are
        or where it was not measured.
    objects
        ``(N, classes, 5)``: objects found, their summed overlap, missed, wrong, and the aggregated Jaccard index.
    cut
        ``(N,)`` whether outlines cannot be measured: pixels without label, or windows cut from a scan.
    probable
        Whether scores are probabilities.
    worst
        Share of labelled pixels that are right, index and predicted mask of the worst samples.
    """

    confusion: NDArray[np.int64]
    bins: NDArray[np.float64]
    distances: NDArray[np.float64]
    objects: NDArray[np.float64]
    cut: NDArray[np.bool_]
    probable: bool
    worst: list[tuple[float, int, NDArray[np.int64]]]


def run_batches(
    model: Model,
    dataset: Dataset,
    function: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    device: str | None,
    progress: bool,
    verb: str = "evaluate",
) -> Iterator[Run]:
    """Yield indices, targets and what a function of the model gives, float32 on its device, batch by batch.

    The model is in evaluation mode meanwhile, on `device` if one is given, and afterwards as it was.
    """
    first = next(model.parameters(), None)
    home = first.device if first is not None else torch.device("cpu")
    where, was = torch.device(device) if device else home, model.training
    model.eval()
    try:
        if where != home:
            model.to(where)
        with torch.inference_mode(), progress_bar(len(dataset), verb, shown=progress, unit="sample") as bar:
            for begin in range(0, len(dataset), batch_size):
                indices = np.arange(begin, min(begin + batch_size, len(dataset)), dtype=np.int64)
                images, targets = dataset.batch(indices)
                given = function(torch.from_numpy(images).to(where)).float()
                if not torch.isfinite(given).all():
                    raise BadValueError(
                        f"model {model.card.name!r} gives scores that are not finite for samples {indices[0]} to "
                        f"{indices[-1]}; its weights or these samples hold NaN."
                    )
                if targets.ndim > 1 and given.ndim == targets.ndim + 1 and given.shape[2:] != targets.shape[1:]:
                    given = functional.interpolate(given, targets.shape[1:])
                yield indices, targets, given
                bar.update(len(indices))
    finally:
        if where != home:
            model.to(home)
        model.train(was)


def judge_samples(model: Model, dataset: Dataset, **options: Any) -> JudgedSamples:
    """Return targets and scores of every sample; `options` are those of `run_batches`."""
    truth, scores = [], []
    for _, targets, given in run_batches(model, dataset, model, **options):
        truth.append(targets)
        scores.append(given.cpu().numpy().astype(np.float64))
    return JudgedSamples(np.concatenate(truth), np.concatenate(scores))


def judge_pixels(
    model: Model, dataset: Dataset, *, outlines: Sequence[int], objects: Sequence[int], **options: Any
) -> JudgedPixels:
    """Return counts over the pixels of every sample.

    Parameters
    ----------
    model
        The model.
    dataset
        Segmentation samples.
    outlines
        Classes whose outlines are measured.
    objects
        Classes whose connected parts are counted.
    **options
        Those of `run_batches`.
    """
    many, count = len(dataset), len(dataset.classes)
    confusion, bins = np.zeros((many, count, count), np.int64), np.zeros((many, BINS, 3))
    distances, found = np.full((many, count, 2), np.nan), np.zeros((many, count, 5))
    cut, probable = np.zeros(many, bool), True
    worst: list[tuple[float, int, NDArray[np.int64]]] = []
    for indices, targets, given in run_batches(model, dataset, model, **options):
        sure, chosen = (part.cpu().numpy() for part in given.max(1))
        probable &= count > 1 and bool((given.sum(1) - 1).abs().max() < 1e-3 and given.min() >= 0)
        for index, target, choice, confidence in zip(indices.tolist(), targets, chosen, sure, strict=True):
            new = dataset.samples.fresh(index)
            counted = target if new is None else np.where(new, target, IGNORE)
            confusion[index] = confusion_matrix(counted, choice, count)
            if probable:
                bins[index] = _count_bins(counted, choice, confidence)
            cut[index] = new is not None or (target == IGNORE).any()
            if not cut[index]:
                for number in outlines:
                    distances[index, number] = _measure(target == number, choice == number, dataset.spacing)
            labelled = target != IGNORE
            for number in objects:
                found[index, number] = _count_objects(target == number, (choice == number) & labelled)
            whole = confusion[index] if new is None else confusion_matrix(target, choice, count)
            if whole.sum():
                worst = sorted([*worst, (accuracy(whole), index, choice)], key=lambda entry: entry[:2])[:WORST]
    return JudgedPixels(confusion, bins, distances, found, cut, probable, worst)


def _count_bins(target: NDArray[np.int64], choice: NDArray[Any], sure: NDArray[Any]) -> NDArray[np.float64]:
    counted = target != IGNORE
    confidence, right = sure[counted], target[counted] == choice[counted]
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return np.stack([np.bincount(place, weights=w, minlength=BINS) for w in (None, confidence, right)], axis=1)


def _measure(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[float, float]:
    ways = surface_distances(truth, prediction, spacing=spacing)
    both = np.concatenate(ways)
    if not len(both) or np.isinf(both[0]):
        return (float("inf"),) * 2 if len(both) else (float("nan"),) * 2
    return max(float(np.quantile(way, 0.95)) for way in ways), float(both.mean())


def _count_objects(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> tuple[float, ...]:
    maps = label_objects(truth), label_objects(prediction)
    matches = match_objects(*maps)
    return matches.found, matches.overlap, matches.missed, matches.wrong, aggregated_jaccard(*maps)
