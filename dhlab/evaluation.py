"""`evaluate`: how good a model is on samples it has not seen, with intervals and the simplest rival beside it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from dhlab.datasets import draw_sample
from dhlab.errors import BadShapeError, BadValueError
from dhlab.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    bootstrap_interval,
    confusion_matrix,
    dice,
    expected_calibration_error,
    iou,
    macro_f1,
    mean_defined,
    sensitivity,
    specificity,
)
from dhlab.progress import progress_bar
from dhlab.report import Figure, Report, software_versions
from dhlab.timeline import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dhlab.datasets import Dataset
    from dhlab.models import Model

__all__ = ["evaluate"]

WORST = 6


def evaluate(
    model: Model,
    dataset: Dataset,
    *,
    batch_size: int = 16,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Report:
    """Judge a model on labelled samples.

    Segmentation counts labelled pixels, each once, also where windows overlap. Intervals come from drawing whole
    groups (patients where they are known) again with replacement. The baseline always says the commonest class.

    Parameters
    ----------
    model
        The model; any that gives a score per class, ONNX too.
    dataset
        Samples that the model has not learned from.
    batch_size
        Samples at once.
    groups
        Independent unit of each sample; None takes the dataset's.
    resamples
        Draws for the intervals.
    seed
        Seed of the draws.
    device
        ``"cpu"``, ``"cuda"`` …; None takes the one that the model is on.
    progress
        Show a bar.

    Returns
    -------
    Report
        Figures with 95 % intervals and baselines, a table per class, the confusion matrix, and the worst samples.

    Raises
    ------
    BadValueError
        If classes or task of model and data differ, nothing is labelled, or a score is not finite.
    BadShapeError
        If the windows do not fit the model, or `groups` has another length.
    """
    card = model.card
    dataset.check_fits(card)
    names = tuple(dataset.groups if groups is None else map(str, groups))
    if len(names) != len(dataset):
        raise BadShapeError(f"{len(names)} groups for {len(dataset)} samples; expected one each.")
    if batch_size < 1:
        raise BadValueError(f"batch_size {batch_size}; expected at least 1.")
    if not dataset.class_counts.sum():
        raise BadValueError(f"dataset {dataset.name!r} has no label at all; every target is -1.")
    with stage("validated", verb="evaluate", model=card.name, samples=len(dataset)):
        judged = _predict(model, dataset, batch_size, device, progress)
        unit = dataset.unit_name if groups is None else "group"
        return _report(model, dataset, judged, np.asarray(names), unit, resamples, seed)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Confusion of each sample ``(N, classes, classes)``; of classification also truth ``(N,)`` and scores."""

    confusion: NDArray[np.int64]
    truth: NDArray[np.int64]
    scores: NDArray[np.float64]
    worst: list[tuple[float, int, NDArray[np.int64]]]


def _predict(model: Model, dataset: Dataset, batch_size: int, device: str | None, progress: bool) -> _Judged:
    first = next(model.parameters(), None)
    where = torch.device(device) if device else (first.device if first is not None else torch.device("cpu"))
    count, segments = len(dataset.classes), dataset.task == "segmentation"
    confusion = np.zeros((len(dataset), count, count), np.int64)
    truth, scores = np.full(len(dataset), -1, np.int64), np.zeros((len(dataset), count))
    worst: list[tuple[float, int, NDArray[np.int64]]] = []
    was = model.training
    model.eval()
    if device:
        model.to(where)
    try:
        with torch.inference_mode(), progress_bar(len(dataset), "evaluate", shown=progress, unit="sample") as bar:
            for begin in range(0, len(dataset), batch_size):
                indices = np.arange(begin, min(begin + batch_size, len(dataset)), dtype=np.int64)
                images, targets = dataset.batch(indices)
                given = model(torch.from_numpy(images).to(where)).float()
                if segments and given.shape[2:] != targets.shape[1:]:
                    given = functional.interpolate(given, targets.shape[1:])
                if not torch.isfinite(given).all():
                    raise BadValueError(
                        f"model {model.card.name!r} gives scores that are not finite for samples {indices[0]} to "
                        f"{indices[-1]}; its weights or these samples hold NaN."
                    )
                chosen = given.argmax(1).cpu().numpy()
                if not segments:
                    truth[indices], scores[indices] = targets, given.cpu().numpy()
                for index, target, choice in zip(indices.tolist(), targets, chosen, strict=True):
                    new = dataset.samples.fresh(index) if segments else None
                    counted = target if new is None else np.where(new, target, -1)
                    confusion[index] = confusion_matrix(counted, choice, count)
                    whole = confusion_matrix(target, choice, count)
                    if whole.sum():
                        chance = given[index - begin]
                        merit = accuracy(whole) if segments else float(chance[int(target)] - chance.max())
                        worst.append((merit, index, choice if segments else np.asarray(choice, np.int64)))
                        worst = sorted(worst, key=lambda entry: entry[:2])[:WORST]
                bar.update(len(indices))
    finally:
        model.train(was)
    return _Judged(confusion, truth, scores, worst)


def _report(
    model: Model, dataset: Dataset, judged: _Judged, groups: NDArray[Any], unit: str, resamples: int, seed: int
) -> Report:
    counted = np.flatnonzero(judged.confusion.sum((1, 2)))
    groups, total = groups[counted], judged.confusion.sum(0)
    simple = np.zeros_like(total)
    simple[:, int(total.sum(1).argmax())] = total.sum(1)
    values, intervals = {}, {}
    for name, statistic in _figures(dataset, judged).items():
        value = statistic(counted)
        if math.isnan(value):
            continue
        values[name] = value
        low, high = _interval(statistic, counted, groups, resamples, seed)
        if not math.isnan(low):
            intervals[name] = (low, high)
    baseline = {name: value for name, value in _baseline(dataset, simple).items() if name in values}
    units = len(set(groups.tolist()))
    return Report(
        title=f"{model.card.name} on {dataset.name}",
        summary=_summary(dataset, values, intervals, units, unit),
        values=values,
        intervals=intervals,
        baseline=baseline,
        n=dict.fromkeys(values, units),
        tables={"Per class": _per_class(dataset, total)},
        figures=(
            Figure(_draw_confusion(total, dataset.classes), "Confusion matrix: share of each true class (rows)."),
            *_draw_worst(dataset, judged),
        ),
        notes=_notes(dataset, units, unit, total),
        provenance={
            "model": repr(model),
            "data": repr(dataset),
            "samples": len(dataset),
            "labelled": int(total.sum()),
            "baseline": f"always {dataset.classes[int(total.sum(1).argmax())]}",
            "intervals": f"percentile bootstrap over {units} {unit}s, {resamples} draws, seed {seed}",
            **software_versions(),
        },
    )


def _interval(
    statistic: Callable[[NDArray[np.int64]], float],
    counted: NDArray[np.int64],
    groups: NDArray[Any],
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    return bootstrap_interval(lambda drawn: statistic(counted[drawn]), groups, resamples=resamples, rng=seed)


def _figures(dataset: Dataset, judged: _Judged) -> dict[str, Callable[[NDArray[np.int64]], float]]:
    """Return what is reported, each as a function of the samples that count (with repeats)."""

    def summed(formula: Callable[[NDArray[np.int64]], float]) -> Callable[[NDArray[np.int64]], float]:
        return lambda drawn: formula(judged.confusion[drawn].sum(0))

    def area(drawn: NDArray[np.int64]) -> float:
        classes = range(1, 2) if len(dataset.classes) == 2 else range(len(dataset.classes))
        return mean_defined([auc(judged.truth[drawn] == c, judged.scores[drawn, c]) for c in classes])

    found = {"balanced accuracy": summed(balanced_accuracy), "accuracy": summed(accuracy)}
    if dataset.task == "classification":
        found |= {"macro F1": summed(macro_f1), "AUC": area}
        if np.allclose(judged.scores.sum(1), 1, atol=1e-3):
            found["calibration error"] = lambda drawn: expected_calibration_error(
                judged.truth[drawn], judged.scores[drawn]
            )
        return found
    found = {"mean Dice": summed(macro_f1), "mean IoU": summed(lambda c: mean_defined(iou(c)))} | found

    def of_class(index: int) -> Callable[[NDArray[np.int64]], float]:
        return summed(lambda c: float(dice(c)[index]))

    return found | {f"Dice {name}": of_class(index) for index, name in enumerate(dataset.classes)}


def _baseline(dataset: Dataset, simple: NDArray[np.int64]) -> dict[str, float]:
    values = {"balanced accuracy": balanced_accuracy(simple), "accuracy": accuracy(simple)}
    if dataset.task == "classification":
        return values | {"macro F1": macro_f1(simple), "AUC": 0.5}
    each = dict(zip([f"Dice {name}" for name in dataset.classes], dice(simple).tolist(), strict=True))
    return values | {"mean Dice": macro_f1(simple), "mean IoU": mean_defined(iou(simple))} | each


def _per_class(dataset: Dataset, total: NDArray[np.int64]) -> list[dict[str, Any]]:
    noun = "pixels" if dataset.task == "segmentation" else "samples"
    columns = {
        "Dice" if dataset.task == "segmentation" else "F1": dice(total),
        "IoU": iou(total),
        "sensitivity": sensitivity(total),
        "specificity": specificity(total),
    }
    return [
        {"class": name, noun: int(total[i].sum()), **{key: float(column[i]) for key, column in columns.items()}}
        for i, name in enumerate(dataset.classes)
    ]


def _summary(
    dataset: Dataset, values: dict[str, float], intervals: dict[str, tuple[float, float]], units: int, unit: str
) -> str:
    name = "mean Dice" if dataset.task == "segmentation" else "balanced accuracy"
    spread = f" (95 % interval {intervals[name][0]:.3f} to {intervals[name][1]:.3f})" if name in intervals else ""
    return f"{name[0].upper()}{name[1:]} {values[name]:.3f}{spread} on {units} {unit}{'s' if units != 1 else ''}."


def _notes(dataset: Dataset, units: int, unit: str, total: NDArray[np.int64]) -> list[str]:
    notes = []
    if unit == "block":
        notes.append(
            f"The {units} blocks lie on the same slide or slides: the intervals say how much the figures vary over "
            "them, not over patients."
        )
    elif unit == "sample":
        notes.append(
            "No patients are known: each sample counts as independent, which makes intervals too narrow if not."
        )
    if units < 2:
        notes.append(f"One {unit} only: no interval can be given.")
    elif units < 20:
        notes.append(f"Only {units} {unit}s: the intervals are rough.")
    absent = [name for name, row in zip(dataset.classes, total, strict=True) if not row.sum()]
    if absent:
        notes.append(f"Not in these data: {', '.join(absent)}. Means are over the classes that occur or are predicted.")
    return notes


def _draw_confusion(total: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    from matplotlib.figure import Figure as Canvas

    share = total / np.maximum(total.sum(1, keepdims=True), 1)
    side = 1.8 + 0.6 * len(classes)
    figure = Canvas(figsize=(side + 1.2, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for row, column in np.ndindex(*share.shape):
        shade = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{share[row, column]:.2f}", ha="center", va="center", color=shade, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, ax=axes, fraction=0.046)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_worst(dataset: Dataset, judged: _Judged, side: int = 144) -> list[Figure]:
    """Draw the samples with most errors: window, truth and prediction below each other."""
    from PIL import Image

    wrong = [entry for entry in judged.worst if entry[0] < (1 if dataset.task == "segmentation" else 0)]
    if not wrong or not {"y", "x"} <= set(dataset.axes):
        return []
    columns, texts = [], []
    for merit, index, choice in wrong:
        image, target = dataset[index]
        column = draw_sample(image, target, dataset.axes, side)
        if dataset.task == "segmentation":
            column = np.concatenate([column, draw_sample(image, choice, dataset.axes, side)[side:]])
            texts.append(f"{merit:.0%}")
        else:
            texts.append(f"{dataset.classes[int(target)]} taken for {dataset.classes[int(choice)]}")
        columns.append(column)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(columns, axis=1)).save(buffer, "PNG")
    what = (
        "window, truth and prediction (white: not labelled); labelled pixels that are right: "
        if dataset.task == "segmentation"
        else ""
    )
    return [Figure(buffer.getvalue(), f"Worst samples: {what}{', '.join(texts)}.")]
