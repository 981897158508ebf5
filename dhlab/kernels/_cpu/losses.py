"""Segmentation losses in two passes on the CPU, see ``losses.c``."""

from __future__ import annotations

from ctypes import c_double, c_float, c_long
from typing import TYPE_CHECKING

import torch

from dhlab.kernels._cpu import bind, pointer, threads_for
from dhlab.kernels._cpu.floats import FLOATS
from dhlab.kernels._cpu.memory import Pool

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.kernels.losses import LossTerms

__all__ = ["can_compute_loss", "loss_cpu", "loss_gradient_cpu"]

TARGET_TYPES = {torch.uint8: 0, torch.int16: 1, torch.int32: 2, torch.int64: 3}
MOST_CLASSES = 64
CHUNK = 8192
# A larger gradient does not stay in the caches until somebody reads it.
STREAMED_BYTES = 1 << 23
GRADIENTS = Pool()


def can_compute_loss(logits: Tensor, targets: Tensor) -> bool:
    """Return whether the C form covers logits ``(B, C, *space)`` and targets of these types."""
    return logits.dtype in FLOATS and targets.dtype in TARGET_TYPES and logits.shape[1] <= MOST_CLASSES


def loss_cpu(
    logits: Tensor,
    targets: Tensor,
    terms: LossTerms,
    *,
    class_weights: Tensor | None,
    sample_weights: Tensor | None,
    overlap_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the loss, a scalar, and its slopes, ``(B, 2 C + 1)`` float32; see `loss_gradient_cpu`."""
    samples, classes = logits.shape[:2]
    chunks = -(-logits[0, 0].numel() // CHUNK)
    partial = torch.empty((samples, chunks, 3 * classes + 3), dtype=torch.float64)
    class_weights = torch.ones(classes) if class_weights is None else class_weights
    sizes, numbers = _describe(logits, targets, terms)
    bind("add_loss", "ppppppi")(
        *map(pointer, (logits, targets, class_weights, partial)), sizes, numbers, threads_for(logits.nbytes)
    )
    sums = torch.empty((samples + 1, 3 * classes + 3), dtype=torch.float64)
    slopes, loss = torch.zeros(samples, 2 * classes + 1), torch.empty(())
    weights = (terms.alpha, terms.beta, terms.exponent, terms.smooth_above, terms.smooth_below)
    strays = bind("finish_loss", "ppppppppllliiii", result="d")(
        *map(pointer, (partial, class_weights, sample_weights, overlap_weights, sums, slopes, loss)),
        (c_double * 7)(*weights, terms.overlap, terms.entropy),
        *(samples, chunks, classes, terms.multilabel, terms.per_sample, terms.present_only, terms.first),
    )
    if strays:
        from dhlab.kernels.losses import stray_targets

        raise stray_targets(int(strays), terms, classes)
    return loss, slopes


def loss_gradient_cpu(
    logits: Tensor, targets: Tensor, terms: LossTerms, *, class_weights: Tensor | None, slopes: Tensor
) -> Tensor:
    """Return the gradient, as the logits.

    `slopes` are those of the loss by the sums of each sample: target * chance per class, chance per class, entropy.
    """
    gradient = GRADIENTS.empty_like(logits)
    class_weights = torch.ones(logits.shape[1]) if class_weights is None else class_weights
    sizes, numbers = _describe(logits, targets, terms)
    bind("differ_loss", "pppppppii")(
        *map(pointer, (logits, targets, class_weights, slopes, gradient)),
        *(sizes, numbers, gradient.nbytes >= STREAMED_BYTES, threads_for(2 * logits.nbytes)),
    )
    return gradient


def _describe(logits: Tensor, targets: Tensor, terms: LossTerms) -> tuple[object, object]:
    samples, classes = logits.shape[:2]
    interleaved = not logits.is_contiguous()
    ignored = 0 if terms.ignore_index is None else terms.ignore_index
    sizes = (samples, classes, logits[0, 0].numel(), FLOATS[logits.dtype], interleaved, TARGET_TYPES[targets.dtype])
    rest = (terms.multilabel, terms.ignore_index is not None, max(min(ignored, 2**31 - 1), -(2**31)))
    return (c_long * 9)(*sizes, *rest), (c_float * 2)(terms.label_smoothing, terms.gamma)
