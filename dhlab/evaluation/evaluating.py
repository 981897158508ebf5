"""`evaluate`: how good a model is on samples it has not seen, with intervals and the simplest rival beside it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest
from dhlab.evaluation.amounts import AmountEvidence
from dhlab.evaluation.classes import ClassEvidence
from dhlab.evaluation.drawing import draw_gallery
from dhlab.evaluation.judging import judge_pixels, judge_samples
from dhlab.evaluation.labels import LabelEvidence
from dhlab.evaluation.operating import OperatingPoint, check_point, choose_point
from dhlab.evaluation.pixels import PixelEvidence
from dhlab.evaluation.subgroups import check_subgroups, compare_subgroups
from dhlab.metrics import draw_weights, percentile_interval
from dhlab.report import Report, format_number, software_versions
from dhlab.tasks import IGNORE, TASKS
from dhlab.timeline import stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dhlab.datasets import Dataset
    from dhlab.evaluation.evidence import Draws, Evidence
    from dhlab.models import Model

__all__ = ["evaluate"]

# Classes of these names are what is left over: they have no outline of their own.
REST = ("background", "other", "rest")
# With fewer samples, what is measured in bins is mostly chance.
FEW = 1000
GALLERIES = {
    "segmentation": "Worst samples by the share of labelled pixels that are right.",
    "classification": "Worst samples: the true class, what it was taken for, and with what score.",
    "multilabel": "Worst samples: the label that is farthest from what is true.",
    "regression": "Worst samples: the true number and what was predicted.",
}


def evaluate(
    model: Model,
    dataset: Dataset,
    *,
    operating_point: float | str | Mapping[str, float] | None = None,
    operating_on: Dataset | None = None,
    baseline_from: Dataset | None = None,
    subgroups: Sequence[str] = (),
    surfaces: bool = True,
    objects: Sequence[str] = (),
    groups: Sequence[str] | None = None,
    pictures: bool = True,
    batch_size: int = 16,
    resamples: int = 1000,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Report:
    """Judge a model on labelled samples.

    Segmentation counts labelled pixels, each once, also where windows overlap. Intervals come from drawing whole
    groups (patients where they are known) again with replacement. The baseline says the same of every sample: the
    commonest class, the share of each label, the mean number. What is not known does not count.

    Parameters
    ----------
    model
        The model; any that gives a score per class, ONNX too.
    dataset
        Samples that the model has not learned from.
    operating_point
        Score from which on the second of two classes, or a label, is given: a number; ``"youden"`` (sensitivity plus
        specificity greatest); ``{"sensitivity": 0.95}`` (specificity greatest among those that find as many), or
        ``{"specificity": …}``. None takes the class with the greatest score, and labels from 0.5.
    operating_on
        Samples to choose the operating point on, best the validation set; None chooses on `dataset` itself, which
        flatters the model, as the report then says.
    baseline_from
        What the baseline knows, best the training set; None takes `dataset` itself.
    subgroups
        Features of the dataset whose values are compared, each with all other samples.
    surfaces
        Measure how far outlines lie apart (segmentation; not where pixels are without label or windows are cut from a
        scan).
    objects
        Classes of which connected parts are counted as objects (segmentation).
    groups
        Independent unit of each sample; None takes the dataset's.
    pictures
        Draw curves, matrices and the worst samples, which takes about a second.
    batch_size
        Samples at once.
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
        Figures with 95 % intervals, draws and baselines, tables, pictures, and the worst samples.

    Raises
    ------
    BadValueError
        If classes or task of model and data differ, nothing is labelled, a score is not finite, or the operating
        point does not suit the task.
    BadShapeError
        If the windows do not fit the model, or `groups` has another length.
    UnknownNameError
        If a subgroup is not a feature of the dataset, or an object not one of its classes.
    """
    card = model.card
    dataset.check_fits(card)
    if operating_on is not None:
        operating_on.check_fits(card)
    names = np.asarray(dataset.groups if groups is None else [str(group) for group in groups])
    if len(names) != len(dataset):
        raise BadShapeError(f"{len(names)} groups for {len(dataset)} samples; expected one each.")
    if batch_size < 1 or resamples < 1:
        raise BadValueError(f"batch_size {batch_size}, resamples {resamples}; expected at least 1 each.")
    if baseline_from is not None and (baseline_from.task, baseline_from.classes) != (card.task, card.classes):
        raise BadValueError(
            f"baseline_from is {baseline_from.task} of {', '.join(baseline_from.classes)}; expected {card.task} of "
            f"{', '.join(card.classes)}."
        )
    check_point(operating_point, operating_on, dataset)
    check_subgroups(dataset, subgroups)
    counted = [_index_of(name, dataset) for name in objects]
    unit = dataset.unit_name if groups is None else "group"
    run = {"batch_size": batch_size, "device": device, "progress": progress}
    with stage("validated", verb="evaluate", model=card.name, samples=len(dataset)):
        found = _judge(model, dataset, names, unit=unit, surfaces=surfaces, objects=counted, run=run)
        point = choose_point(operating_point, _judge_other(model, operating_on, run) or found.evidence, operating_on)
        found = replace(found, evidence=point.apply(found.evidence))
        measured = _measure(found.evidence, resamples, seed)
        features = {name: [dataset.features[name][i] for i in found.indices.tolist()] for name in subgroups}
        prior = found.evidence.prior() if baseline_from is None else _prior_of(baseline_from)
        report = _report(model, dataset, found, measured, prior=prior, point=point, resamples=resamples, seed=seed)
        if pictures:
            worst = [(int(found.indices[place]), text, mask) for place, text, mask in found.evidence.worst()]
            gallery = draw_gallery(dataset, worst, GALLERIES[dataset.task])
            report = report.replace(figures=(*found.evidence.pictures(), *gallery))
        if baseline_from is None:
            report = report.replace(notes=[*report.notes, "The baseline is computed on these data themselves."])
        if features and measured.values:
            rows, notes = compare_subgroups(
                found.evidence, features, _headline(dataset, measured), resamples=resamples, seed=seed
            )
            report = report.replace(tables={**report.tables, "Subgroups": rows}, notes=[*report.notes, *notes])
        return report


@dataclass(frozen=True, eq=False)
class _Found:
    """Evidence of the samples that count, their indices in the dataset, and the names of the units."""

    evidence: Evidence
    indices: NDArray[np.int64]
    names: NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Measured:
    """Figures that are defined, their draws, and the names of the others."""

    values: dict[str, float]
    draws: Draws
    undefined: list[str]


def _judge(
    model: Model,
    dataset: Dataset,
    groups: NDArray[Any],
    *,
    unit: str,
    surfaces: bool,
    objects: Sequence[int],
    run: Mapping[str, Any],
) -> _Found:
    task, classes = TASKS[dataset.task], dataset.classes
    if task.dense:
        outlines = [k for k, name in enumerate(classes) if surfaces and name.lower() not in REST]
        pixels = judge_pixels(model, dataset, outlines=outlines, objects=objects, **run)
        labelled = pixels.confusion.sum((1, 2)) > 0
    else:
        samples = judge_samples(model, dataset, **run)
        known = ~np.isnan(samples.truth) if task.name == "regression" else samples.truth != IGNORE
        labelled = known.reshape(len(dataset), -1).any(1)
    if not labelled.any():
        raise BadValueError(f"dataset {dataset.name!r} has no label at all; every target is -1 or NaN.")
    indices = np.flatnonzero(labelled)
    names, place = np.unique(groups[indices], return_inverse=True)
    common: dict[str, Any] = {"classes": classes, "place": place, "units": len(names), "unit": unit}
    evidence: Evidence
    if task.dense:
        where = {index: number for number, index in enumerate(indices.tolist())}
        evidence = PixelEvidence(
            confusion=pixels.confusion[indices],
            bins=pixels.bins[indices] if pixels.probable else None,
            distances=pixels.distances[indices] if outlines else None,
            objects=pixels.objects[indices],
            counted=tuple(objects),
            cut=pixels.cut[indices],
            masks=[(merit, where[index], mask) for merit, index, mask in pixels.worst],
            length=dataset.unit if dataset.spacing else "px",
            **common,
        )
        return _Found(evidence, indices, names)
    truth, scores = samples.truth[indices], samples.scores[indices]
    if task.exclusive:
        evidence = ClassEvidence(truth=truth, scores=scores, **common)
    elif task.name == "multilabel":
        evidence = LabelEvidence(truth=truth, scores=scores, thresholds=np.full(len(classes), 0.5), **common)
    else:
        evidence = AmountEvidence(truth=truth.astype(np.float64), scores=scores, **common)
    return _Found(evidence, indices, names)


def _judge_other(model: Model, dataset: Dataset | None, run: Mapping[str, Any]) -> Evidence | None:
    if dataset is None:
        return None
    names = np.asarray(dataset.groups)
    return _judge(model, dataset, names, unit=dataset.unit_name, surfaces=False, objects=(), run=run).evidence


def _measure(evidence: Evidence, resamples: int, seed: int) -> _Measured:
    values = {name: float(value[0]) for name, value in evidence.figures(np.ones((1, evidence.units))).items()}
    undefined = [name for name, value in values.items() if not math.isfinite(value)]
    values = {name: value for name, value in values.items() if name not in undefined}
    if evidence.units < 2:
        return _Measured(values, {}, undefined)
    # Numbers per draw: a weight of each sample, or a confusion matrix.
    width = max(len(evidence.place), len(evidence.classes) ** 2)
    blocks = [evidence.figures(w) for w in draw_weights(evidence.units, resamples=resamples, rng=seed, width=width)]
    return _Measured(values, {name: np.concatenate([block[name] for block in blocks]) for name in values}, undefined)


def _report(
    model: Model,
    dataset: Dataset,
    found: _Found,
    measured: _Measured,
    *,
    prior: NDArray[np.float64],
    point: OperatingPoint,
    resamples: int,
    seed: int,
) -> Report:
    evidence, unit, units = found.evidence, found.evidence.unit, found.evidence.units
    intervals = {}
    for name, draws in measured.draws.items():
        low, high = percentile_interval(draws)
        if not math.isnan(low):
            intervals[name] = (low, high)
    rival = evidence.simplest(prior).figures(np.ones((1, units)))
    # A rival that says the same of all is calibrated without knowing anything: no yardstick.
    baseline = {n: float(rival[n][0]) for n in measured.values if n in rival and n != "calibration error"}
    baseline = {name: value for name, value in baseline.items() if math.isfinite(value)}
    caption, rows = evidence.table()
    headline = _headline(dataset, measured) if measured.values else ""
    return Report(
        title=f"{model.card.name} on {dataset.name}",
        summary=_summary(headline, measured.values, intervals, baseline, f"{units} {unit}{'s' if units != 1 else ''}"),
        values=measured.values,
        intervals=intervals,
        baseline=baseline,
        n=dict.fromkeys(measured.values, units),
        tables={caption: rows},
        notes=[*_notes(evidence, measured), *point.notes, *evidence.notes()],
        provenance={
            "model": repr(model),
            "data": repr(dataset),
            "samples": len(dataset),
            "labelled": _count_labels(evidence),
            "unit": unit,
            "baseline": _name_baseline(dataset, prior),
            **({"operating point": point.text} if point.text else {}),
            "intervals": f"percentile bootstrap over {units} {unit}s, {resamples} draws, seed {seed}",
            **software_versions(),
        },
        draws={name: tuple(values.tolist()) for name, values in measured.draws.items()},
        units=_digest(found, resamples, seed) if measured.draws else "",
    )


def _headline(dataset: Dataset, measured: _Measured) -> str:
    chosen = TASKS[dataset.task].score
    return chosen if chosen in measured.values else next(iter(measured.values))


def _summary(
    name: str,
    values: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    baseline: Mapping[str, float],
    units: str,
) -> str:
    if not name:
        return f"No figure is defined on {units}."
    text = f"{name[0].upper()}{name[1:]} {format_number(values[name])}"
    if name in intervals:
        text += f" (95 % interval {' to '.join(map(format_number, intervals[name]))})"
    text += f" on {units}"
    return f"{text}; baseline {format_number(baseline[name])}." if name in baseline else f"{text}."


def _notes(evidence: Evidence, measured: _Measured) -> list[str]:
    unit, units, samples = evidence.unit, evidence.units, len(evidence.place)
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
    if "calibration error" in measured.values and samples < FEW and not isinstance(evidence, PixelEvidence):
        notes.append("Calibration error cannot fall below zero: with few samples, it and its interval lie too high.")
    if measured.undefined:
        notes.append(f"Not defined on these data, and left out: {', '.join(measured.undefined)}.")
    holes = [name for name, draws in measured.draws.items() if np.isnan(draws).mean() > 0.05]
    if holes:
        notes.append(
            f"More than one draw in twenty lacks what {', '.join(holes)} needs and is left out: such intervals are too "
            "narrow."
        )
    return notes


def _prior_of(dataset: Dataset) -> NDArray[np.float64]:
    """Return the share of each class or label, or the mean of each number, of what is known in a dataset."""
    count = len(dataset.classes)
    total, whole = np.zeros(count), np.zeros(count)
    for first in range(0, len(dataset), 64):
        targets = dataset.samples.targets(np.arange(first, min(first + 64, len(dataset)), dtype=np.int64))
        if TASKS[dataset.task].exclusive:
            total += np.bincount(targets[targets != IGNORE], minlength=count)
            continue
        known = ~np.isnan(targets) if dataset.task == "regression" else targets != IGNORE
        total += np.where(known, targets, 0).sum(0)
        whole += known.sum(0)
    if TASKS[dataset.task].exclusive:
        whole[:] = total.sum()
    if not whole.all():
        raise BadValueError(f"baseline_from={dataset.name!r} lacks labels of some class; expected some of each.")
    return total / whole


def _name_baseline(dataset: Dataset, prior: NDArray[np.float64]) -> str:
    if TASKS[dataset.task].exclusive:
        return f"always {dataset.classes[int(prior.argmax())]}"
    return "the share of each label" if dataset.task == "multilabel" else "the mean of each number"


def _count_labels(evidence: Evidence) -> int:
    labels = evidence.labels()
    return int(labels[:, 0].sum() if isinstance(evidence, AmountEvidence) else labels.sum())


def _digest(found: _Found, resamples: int, seed: int) -> str:
    """Return a digest of what makes draws comparable: units, what is true of them, draws and seed."""
    hashed = hashlib.sha256(repr((found.names.tolist(), resamples, seed)).encode())
    hashed.update(np.ascontiguousarray(found.evidence.labels()).tobytes())
    return hashed.hexdigest()[:16]


def _index_of(name: str, dataset: Dataset) -> int:
    if name not in dataset.classes:
        raise UnknownNameError(f"no class {name!r} to count objects of.{suggest(name, dataset.classes)}")
    if not TASKS[dataset.task].dense:
        raise BadValueError(f"objects={name!r} with a {dataset.task}; expected a segmentation.")
    return dataset.classes.index(name)
