"""`calibrate`: make scores as sure as they are right, by one number learned from validation data."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from dhlab.errors import BadValueError, DHLabWarning
from dhlab.evaluation.judging import run_batches
from dhlab.models import Model
from dhlab.tasks import IGNORE, TASKS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.datasets import Dataset

__all__ = ["calibrate"]

# Temperatures beyond these mean that there was nothing to learn one from.
COLDEST, HOTTEST = 0.05, 20.0
# Pixels kept of each sample of a segmentation: neighbours say the same.
PIXELS = 2048


def calibrate(
    model: Model,
    dataset: Dataset,
    *,
    batch_size: int = 16,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Model:
    """Scale a model's logits so that its scores are probabilities that hold (temperature scaling).

    The order of scores stays the same, so that accuracy and AUC do not change; decisions of labels at 0.5 neither.

    Parameters
    ----------
    model
        A classification, segmentation or multilabel model that gives logits.
    dataset
        Validation samples: neither those that the model has learned from, nor those that it will be judged on.
    batch_size
        Samples at once.
    seed
        Seed of the pixels that are drawn from each sample of a segmentation.
    device
        ``"cpu"``, ``"cuda"`` …; None takes the one that the model is on.
    progress
        Show a bar.

    Returns
    -------
    Model
        The same network (weights are shared) with the temperature in its card; `export` keeps it.

    Warns
    -----
    DHLabWarning
        If the samples are too easy or too hard to learn a temperature from; the nearest sensible one is taken.

    Raises
    ------
    BadValueError
        If the model has no probabilities, is an ONNX graph that gives scores, or nothing is labelled.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.
    """
    card = model.card
    dataset.check_fits(card)
    if batch_size < 1:
        raise BadValueError(f"batch_size {batch_size}; expected at least 1.")
    if card.activation == "none":
        raise BadValueError(
            f"model {card.name!r} ({card.task}) has no activation, so its scores are no probabilities; expected "
            "softmax or sigmoid."
        )
    kept, truth = [], []
    random = np.random.default_rng(seed)
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "progress": progress, "verb": "calibrate"}
    for _, targets, logits in run_batches(model, dataset, model.logits, **options):
        for target, given in zip(targets, logits.cpu(), strict=True):
            aims, values = _pick(np.asarray(target), given, TASKS[card.task].dense, random)
            truth.append(aims)
            kept.append(values)
    aims, values = np.concatenate(truth), torch.cat(kept).double()
    if not (aims != IGNORE).any():
        raise BadValueError(f"dataset {dataset.name!r} has no label at all; every target is -1.")
    temperature = _fit(values, torch.from_numpy(aims), sigmoid=card.activation == "sigmoid")
    calibrated = Model(model.net, replace(card, temperature=temperature))
    calibrated.training = model.training
    return calibrated


def _pick(
    target: NDArray[Any], logits: Tensor, dense: bool, random: np.random.Generator
) -> tuple[NDArray[np.int64], Tensor]:
    """Return targets ``(M, …)`` and logits ``(M, classes)`` of one sample, of a mask some labelled pixels."""
    if not dense:
        return target[None].astype(np.int64), logits[None]
    places = np.flatnonzero(target != IGNORE)
    if len(places) > PIXELS:
        places = random.choice(places, PIXELS, replace=False, shuffle=False)
    return target.reshape(-1)[places], logits.flatten(1).T[torch.from_numpy(places)]


def _fit(logits: Tensor, truth: Tensor, *, sigmoid: bool) -> float:
    """Return the temperature with the smallest mean negative log-likelihood."""
    from scipy.optimize import minimize_scalar

    if sigmoid and truth.ndim == 1:
        truth = functional.one_hot(truth.clamp(min=0), logits.shape[1]).where(truth[:, None] != IGNORE, IGNORE)
    known = truth != IGNORE
    logits, truth = logits[known], truth[known]

    def loss(log_temperature: float) -> float:
        scaled = logits / float(np.exp(log_temperature))
        if sigmoid:
            return float(functional.binary_cross_entropy_with_logits(scaled, truth.double()))
        return float(functional.cross_entropy(scaled, truth))

    ends = float(np.log(COLDEST)), float(np.log(HOTTEST))
    best = float(minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-5}).x)
    if min(best - ends[0], ends[1] - best) < 1e-3:
        warnings.warn(
            f"the temperature ended at its limit, {np.exp(best):.3g}: the samples are all right, or right by chance "
            "only. Calibrate on more or other validation samples.",
            DHLabWarning,
            stacklevel=3,
        )
    return float(np.exp(best))
