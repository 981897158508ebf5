"""`measure_objects` in one pass on the CPU, see ``objects.c``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dhlab.kernels._cpu import bind, pointer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["can_measure", "measure_cpu"]

TYPES = {torch.uint8: 1, torch.float32: 2}


def can_measure(image: Tensor | None) -> bool:
    """Return whether the C form covers images of this type."""
    return image is None or image.dtype in TYPES


def measure_cpu(labels: Tensor, image: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return area ``(n,)``, sums of coordinates ``(n, 2)``, first and last pixels ``(n, 4)``, intensities ``(n, C)``.

    Labels are ``(H, W)`` int32, the image ``(C, H, W)`` with any strides.
    """
    channels = 0 if image is None else image.shape[0]
    area, sums, box = (torch.zeros(count, *size, dtype=torch.int64) for size in ((), (2,), (4,)))
    intensity = torch.zeros(count, channels, dtype=torch.float64)
    steps = (0, 0, 0) if image is None else (image.stride(1), image.stride(2), image.stride(0))
    kind = 0 if image is None else TYPES[image.dtype]
    labels = labels.contiguous()
    tensors = [pointer(tensor) for tensor in (labels, image, area, sums, box, intensity)]
    bind("objects_measure", "p" * 6 + "lllllli")(*tensors, *labels.shape, channels, *steps, kind)
    return area, sums, box, intensity
