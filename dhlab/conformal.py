"""Conformal prediction: sets of classes, and intervals of numbers, that hold the truth as often as promised."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dhlab.errors import BadShapeError, BadValueError, DHLabWarning
from dhlab.inference import lend_model

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dhlab.datasets import Dataset
    from dhlab.models import Model

__all__ = ["ConformalPredictor", "conform"]

METHODS = {"classification": ("lac", "aps"), "regression": ("residual",)}
# Sums of 1 / (n + 1) fall short of a share by rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ConformalPredictor:
    """Prediction sets, or intervals, that hold the truth with a chosen probability, whatever the model.

    The promise holds on average for a new patient (group) drawn as those of the calibration were, and a sample drawn
    from that patient; not for each class, not for each patient, and not after a change of scanner or population.

    Parameters
    ----------
    method
        ``"lac"`` (smallest sets on average), ``"aps"`` (sets that grow where the model is unsure) or ``"residual"``
        (intervals of numbers).
    alpha
        Share of misses that is allowed.
    thresholds
        Largest score of non-conformity that is kept: one, or one for each number of a regression.
    groups
        Independent units of the calibration.

    References
    ----------
    Angelopoulos and Bates, "A gentle introduction to conformal prediction and distribution-free uncertainty
    quantification", arXiv 2107.07511, 2021; Lee, Barber and Willett, "Distribution-free inference with hierarchical
    data", arXiv 2306.06342, 2023.
    """

    method: str
    alpha: float
    thresholds: tuple[float, ...]
    groups: int

    @classmethod
    def fit(
        cls,
        scores: ArrayLike,
        truth: ArrayLike,
        *,
        alpha: float = 0.1,
        method: str = "lac",
        groups: ArrayLike | None = None,
    ) -> ConformalPredictor:
        """Choose thresholds on samples that the model has not learned from.

        Parameters
        ----------
        scores
            ``(N, classes)`` probabilities, or predicted numbers ``(N, numbers)``.
        truth
            ``(N,)`` class indices, -1 unknown; or ``(N, numbers)``, NaN unknown.
        alpha
            Share of misses to allow, between 0 and 1.
        method
            ``"lac"``, ``"aps"`` or ``"residual"``.
        groups
            ``(N,)`` patient of each sample: each patient counts once, however many samples it has. None takes each
            sample for its own.

        Returns
        -------
        ConformalPredictor
            With thresholds; infinite ones, and a warning, where there are too few groups for `alpha`.

        Raises
        ------
        BadShapeError
            If the shapes do not fit.
        BadValueError
            If a number is out of range or nothing is labelled.
        """
        if not 0 < alpha < 1:
            raise BadValueError(f"alpha {alpha}; expected a share between 0 and 1.")
        misfit = _misfit(method, scores, truth)
        names = np.arange(len(misfit)) if groups is None else np.asarray(groups)
        if names.shape != misfit.shape[:1]:
            raise BadShapeError(f"groups {names.shape} for {len(misfit)} samples; expected one each.")
        labelled = ~np.isnan(misfit)
        if not labelled.any(0).all():
            raise BadValueError("nothing is labelled; expected targets to calibrate with.")
        pairs = [(column[known], names[known]) for column, known in zip(misfit.T, labelled.T, strict=True)]
        thresholds = tuple(_threshold(values, owners, alpha) for values, owners in pairs)
        count = min(len(np.unique(owners)) for _, owners in pairs)
        if math.inf in thresholds:
            warnings.warn(
                f"{count} independent groups are too few for {alpha:g} misses: every set holds everything. Give at "
                f"least {math.ceil(1 / alpha) - 1}, or a larger alpha.",
                DHLabWarning,
                stacklevel=2,
            )
        return cls(method, float(alpha), thresholds, count)

    def sets(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Return which classes belong to each sample's set.

        Parameters
        ----------
        scores
            ``(N, classes)`` probabilities.

        Returns
        -------
        ndarray
            ``(N, classes)`` bool. LAC may leave a set empty: no class is likely enough.

        Raises
        ------
        BadValueError
            If the predictor is one of numbers.
        BadShapeError
            If the shape does not fit.
        """
        if self.method == "residual":
            raise BadValueError("this predictor is of numbers; ask for intervals.")
        chance = _probabilities(scores)
        if self.method == "lac":
            return 1 - chance <= self.thresholds[0]
        order, sums = _ranked(chance)
        before = sums - np.take_along_axis(chance, order, 1)
        chosen = np.zeros(chance.shape, bool)
        # The class that crosses the threshold belongs to the set.
        np.put_along_axis(chosen, order, (before < self.thresholds[0]) | (sums <= self.thresholds[0]), 1)
        return chosen

    def intervals(self, predictions: ArrayLike) -> NDArray[np.float64]:
        """Return low and high of each number.

        Parameters
        ----------
        predictions
            ``(N, numbers)``.

        Returns
        -------
        ndarray
            ``(N, numbers, 2)`` float64, in the numbers' units; each number has its own promise.

        Raises
        ------
        BadValueError
            If the predictor is one of classes.
        BadShapeError
            If the shape does not fit.
        """
        if self.method != "residual":
            raise BadValueError("this predictor is of classes; ask for sets.")
        middle = np.asarray(predictions, np.float64)
        if middle.ndim != 2 or middle.shape[1] != len(self.thresholds):
            raise BadShapeError(f"predictions {middle.shape}; expected (N, {len(self.thresholds)}).")
        width = np.asarray(self.thresholds)
        return np.stack([middle - width, middle + width], axis=-1)

    def coverage(self, scores: ArrayLike, truth: ArrayLike) -> float:
        """Return how often the truth is in its set or interval; NaN if nothing is labelled.

        Parameters
        ----------
        scores
            ``(N, classes)`` probabilities, or ``(N, numbers)``.
        truth
            ``(N,)`` class indices, -1 unknown; or ``(N, numbers)``, NaN unknown.

        Raises
        ------
        BadShapeError
            If the shapes do not fit.
        """
        known = ~np.isnan(_misfit(self.method, scores, truth))
        if self.method == "residual":
            low, high = np.moveaxis(self.intervals(scores), -1, 0)
            held = (low <= np.asarray(truth)) & (np.asarray(truth) <= high)
        else:
            held = np.take_along_axis(self.sets(scores), np.maximum(np.asarray(truth), 0)[:, None], 1)
        return float(held[known].mean()) if known.any() else math.nan


def conform(
    model: Model, dataset: Dataset, *, alpha: float = 0.1, method: str | None = None, batch_size: int = 16
) -> ConformalPredictor:
    """Calibrate prediction sets, or intervals, of a model on a dataset; patients count once each.

    Parameters
    ----------
    model
        Classification or regression.
    dataset
        Samples that the model has not learned from, best its validation part.
    alpha
        Share of misses to allow.
    method
        ``"lac"`` or ``"aps"`` for classes, ``"residual"`` for numbers; None is the first of the task.
    batch_size
        Samples at once.

    Returns
    -------
    ConformalPredictor
        Judge it with `ConformalPredictor.coverage` on test data.

    Raises
    ------
    BadValueError
        If the task has no such method, model and data do not fit, or nothing is labelled.
    """
    card = model.card
    known = METHODS.get(card.task)
    if known is None:
        raise BadValueError(f"{card.name!r} does {card.task}; sets are made for {' and '.join(METHODS)}.")
    if method not in (None, *known):
        raise BadValueError(f"method {method!r} for {card.task}; expected {' or '.join(known)}.")
    if batch_size < 1:
        raise BadValueError(f"batch_size {batch_size}; expected at least 1.")
    dataset.check_fits(card)
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    scores, targets = [], []
    with lend_model(model, home), torch.inference_mode():
        for begin in range(0, len(dataset), batch_size):
            images, truth = dataset.batch(np.arange(begin, min(begin + batch_size, len(dataset))))
            scores.append(model(torch.from_numpy(images).to(home)).float().cpu().numpy())
            targets.append(truth)
    return ConformalPredictor.fit(
        np.concatenate(scores),
        np.concatenate(targets),
        alpha=alpha,
        method=method or known[0],
        groups=np.asarray(dataset.groups),
    )


def _probabilities(scores: ArrayLike) -> NDArray[np.float64]:
    chance = np.asarray(scores, np.float64)
    if chance.ndim != 2 or not np.isfinite(chance).all():
        raise BadShapeError(f"scores {chance.shape}; expected (N, classes), finite.")
    return chance


def _ranked(chance: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return classes from most to least likely, ``(N, classes)``, and the sums of their probabilities so far."""
    order = np.argsort(-chance, axis=1, kind="stable")
    return order, np.cumsum(np.take_along_axis(chance, order, 1), axis=1)


def _misfit(method: str, scores: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return how badly each truth fits, ``(N, 1)`` or ``(N, numbers)``; NaN where it is unknown."""
    if method not in {name for names in METHODS.values() for name in names}:
        raise BadValueError(f"method {method!r}; expected 'lac', 'aps' or 'residual'.")
    if method == "residual":
        given, true = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
        if given.shape != true.shape or given.ndim != 2:
            raise BadShapeError(f"predictions {given.shape}, truth {true.shape}; expected (N, numbers) both.")
        if not np.isfinite(given).all():
            raise BadValueError("a predicted number is not finite.")
        return np.abs(given - true)
    chance, labels = _probabilities(scores), np.asarray(truth)
    if labels.shape != chance.shape[:1]:
        raise BadShapeError(f"truth {labels.shape} for scores {chance.shape}; expected (N,) class indices.")
    if labels.size and not -1 <= labels.min() <= labels.max() < chance.shape[1]:
        raise BadValueError(f"truth holds {labels.min()} to {labels.max()}; expected -1 to {chance.shape[1] - 1}.")
    place = np.maximum(labels, 0)[:, None]
    if method == "lac":
        misfit = 1 - np.take_along_axis(chance, place, 1)
    else:
        order, sums = _ranked(chance)
        misfit = sums[order == place][:, None]
    return np.where(labels[:, None] < 0, np.nan, misfit)


def _threshold(values: NDArray[np.float64], groups: NDArray[Any], alpha: float) -> float:
    """Return the least value below which lie 1 - alpha of all groups, one unseen among them that may be anything."""
    _, owner, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1 / (len(sizes) + 1) / sizes[owner]
    order = np.argsort(values, kind="stable")
    enough = np.flatnonzero(np.cumsum(weights[order]) >= 1 - alpha - ROUNDING)
    return float(values[order[enough[0]]]) if len(enough) else math.inf
