"""What each task is trained on: plain losses with class weights, sample weights and targets that do not count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest
from dhlab.kernels.losses import dice_ce_loss, focal_tversky_loss
from dhlab.tasks import IGNORE, TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["SEGMENTATION_LOSSES", "check_loss", "class_weights_of", "segmentation_loss", "task_loss"]

SEGMENTATION_LOSSES = ("dice-ce", "focal-tversky")


def check_loss(name: str | None, task: str, label_smoothing: float) -> None:
    """Check that a loss chosen by name suits the task; None suits any.

    Raises
    ------
    BadValueError
        If a loss of segmentations is named for another task, or one that smooths no labels gets a share for it.
    """
    if name is not None and task != "segmentation":
        raise BadValueError(f"loss is {name!r}, which is for segmentation; expected None for {task}, its own loss.")
    if name == "focal-tversky" and label_smoothing:
        raise BadValueError(
            f"label_smoothing is {label_smoothing!r}; expected 0 with loss='focal-tversky', which smooths no labels: "
            "leave it out, or take loss='dice-ce'."
        )


def task_loss(
    logits: Tensor,
    targets: Tensor,
    task: str,
    *,
    class_weights: Tensor,
    sample_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    name: str | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the loss of a batch.

    Cross-entropy (classification), the same with soft Dice (segmentation), binary cross-entropy (multilabel), or
    Huber's loss (regression).

    Parameters
    ----------
    logits
        ``(B, classes, *space)`` or ``(B, classes)`` float32.
    targets
        As the task says (see `dhlab.tasks`); of a regression in units of its standard deviation.
    task
        Name of the task.
    class_weights
        ``(classes,)`` float32; of several labels the weight of what is there against what is not.
    sample_weights
        ``(B,)`` float32; None counts all alike.
    label_smoothing
        Share of the target that is spread over all classes.
    name
        One of ``SEGMENTATION_LOSSES``, for a segmentation; None is the task's own.
    total
        What sums over the batch pass through, with a gradient: adds those of other workers.

    Returns
    -------
    Tensor
        Scalar; 0 with a gradient of 0 if nothing is labelled.

    Raises
    ------
    BadValueError
        If a loss of segmentations is named for another task, or one that smooths no labels gets a share for it.
    """
    check_loss(name, task, label_smoothing)
    if task == "segmentation" and name == "focal-tversky":
        return _focal_tversky(logits, targets, class_weights, sample_weights, total)
    if task == "segmentation":
        return segmentation_loss(
            logits, targets, class_weights, sample_weights=sample_weights, label_smoothing=label_smoothing, total=total
        )
    if task == "classification":
        return _entropy(logits, targets, class_weights, sample_weights, label_smoothing, total)
    known = ~torch.isnan(targets) if task == "regression" else targets != IGNORE
    if task == "regression":
        each = functional.smooth_l1_loss(logits, targets.nan_to_num(), reduction="none") * class_weights
    else:
        truth = targets.clamp_min(0).to(logits.dtype)
        truth = truth * (1 - label_smoothing) + label_smoothing / 2
        each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none", pos_weight=class_weights)
    counted = known.to(each.dtype) if sample_weights is None else known * sample_weights[:, None]
    return _mean((each * counted).sum(), counted.sum(), total)


def segmentation_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    sample_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return weighted cross-entropy plus one minus the mean soft Dice of the classes in the batch.

    Parameters
    ----------
    logits
        ``(B, classes, *space)`` float32.
    targets
        ``(B, *space)`` int64; -1 does not count.
    weights
        ``(classes,)`` float32 weights of the cross-entropy.
    sample_weights
        ``(B,)`` float32; None counts all alike.
    label_smoothing
        Share of the target that is spread over all classes, in the cross-entropy.
    total
        What sums over the batch pass through.

    Returns
    -------
    Tensor
        Scalar; 0 with a gradient of 0 if no pixel is labelled.

    References
    ----------
    Milletari, Navab and Ahmadi, "V-Net: Fully convolutional neural networks for volumetric medical image
    segmentation", 3DV 2016.
    """
    return dice_ce_loss(
        logits,
        targets,
        ignore_index=IGNORE,
        class_weights=weights,
        sample_weights=sample_weights,
        label_smoothing=label_smoothing,
        per_sample=False,
        present_only=True,
        smooth=(0, 0),
        total=total,
    )


def _focal_tversky(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    sample_weights: Tensor | None,
    total: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Return focal Tversky over the classes in the batch plus weighted focal loss, with the usual constants."""
    return focal_tversky_loss(
        logits,
        targets,
        focal_weight=1,
        ignore_index=IGNORE,
        class_weights=weights,
        sample_weights=sample_weights,
        per_sample=False,
        present_only=True,
        smooth=(0, 0),
        total=total,
    )


def class_weights_of(
    kind: str | Sequence[float] | Mapping[str, float],
    counts: NDArray[np.int64],
    *,
    classes: Sequence[str],
    samples: int,
    task: str,
) -> Tensor:
    """Return the weight of each class.

    Parameters
    ----------
    kind
        ``"root"`` one over the root of the class's share: rare ones count more, without drowning the rest;
        ``"balanced"`` one over its share; ``"none"`` 1; or the weights themselves, of all classes or of some by name.
    counts
        ``(classes,)`` what is labelled per class.
    classes
        Their names.
    samples
        Number of samples, which several labels are counted against.
    task
        Name of the task; a regression has no shares, so that names mean 1.

    Returns
    -------
    Tensor
        ``(classes,)`` float32; of exclusive classes with mean 1.

    Raises
    ------
    BadShapeError
        If there is not a weight per class.
    UnknownNameError
        If a weight is for no class.
    BadValueError
        If a weight is negative or not finite, or all are 0.
    """
    if isinstance(kind, Mapping):
        for name in kind:
            if name not in classes:
                raise UnknownNameError(f"class_weights has no class {name!r}.{suggest(name, classes)}")
        kind = [kind.get(name, 1.0) for name in classes]
    if not isinstance(kind, str):
        weights = np.asarray(kind, np.float64)
        if weights.shape != counts.shape:
            raise BadShapeError(f"class_weights has shape {weights.shape}; expected {counts.shape}, one per class.")
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise BadValueError(f"class_weights {weights.tolist()}; expected numbers of at least 0, not all 0.")
    elif kind == "none" or task == "regression":
        weights = np.ones(len(counts))
    elif TASKS[task].exclusive:
        shares = np.maximum(counts, 1) / max(1, counts.sum())
        weights = 1 / (np.sqrt(shares) if kind == "root" else shares)
        weights = weights / weights.mean()
    else:
        odds = np.maximum(samples - counts, 1) / np.maximum(counts, 1)
        weights = np.sqrt(odds) if kind == "root" else odds
    return torch.from_numpy(weights.astype(np.float32))


def _entropy(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    sample_weights: Tensor | None,
    label_smoothing: float,
    total: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Return the mean cross-entropy over what is labelled, weighted by class and sample."""
    options: dict[str, Any] = {"ignore_index": IGNORE, "label_smoothing": label_smoothing}
    counted = weights[targets.clamp_min(0)] * (targets != IGNORE)
    if sample_weights is None:
        summed = functional.cross_entropy(logits, targets, weights, reduction="sum", **options)
    else:
        factor = _beside(sample_weights, targets)
        summed = (functional.cross_entropy(logits, targets, weights, reduction="none", **options) * factor).sum()
        counted = counted * factor
    return _mean(summed, counted.sum(), total)


def _mean(summed: Tensor, counted: Tensor, total: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Return a sum over a count, of which both pass through `total`."""
    if total is not None:
        summed, counted = total(torch.stack([summed, counted])).unbind()
    return summed / counted.clamp_min(1e-12)


def _beside(weights: Tensor, other: Tensor) -> Tensor:
    """Return ``(B,)`` weights with as many axes as `other`."""
    return weights.reshape(-1, *(1,) * (other.ndim - 1))
