"""`filter_bank` in one pass on the CPU, see ``filters.c``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from dhlab.kernels._cpu import bind, pointer, threads_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["can_filter", "filter_bank_cpu"]

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MOST_RADIUS = 1024


def can_filter(images: Tensor, out: Tensor, *, radius: int) -> bool:
    """Return whether the C form covers this case: ``(B, C, H, W)`` bytes or floats in, any strides."""
    return images.dtype in (torch.uint8, torch.float32) and out.dtype in TYPES and radius <= MOST_RADIUS


def filter_bank_cpu(
    images: Tensor, *, inner: Tensor, outer: Tensor, places: Sequence[int], to_plane: int, out: Tensor
) -> Tensor:
    """Write the features of one scale.

    Parameters
    ----------
    images
        ``(B, C, H, W)`` uint8 or float32, any strides.
    inner
        ``(radius + 1, 3)`` float32: weights of the value, the first and the second derivative, from the centre on.
    outer
        ``(reach + 1,)`` float32: weights that smooth the structure tensor.
    places
        Which feature of a plane is the first of each kind, -1 for a kind that is not wanted.
    to_plane
        Features from one channel to the next.
    out
        ``(B, F, H, W)``, any strides, from the first feature of this scale.
    """
    sample, feature, row, column = out.stride()
    threads = threads_for(images.numel() * (sum(place >= 0 for place in places)) * out.element_size())
    sizes = [*images.shape, *images.stride(), sample, to_plane * feature, feature, row, column, *places]
    sizes += [len(inner) - 1, len(outer) - 1, images.dtype == torch.float32, TYPES[out.dtype], threads]
    packed = (ctypes.c_long * len(sizes))(*sizes)
    scratch = torch.empty(threads * bind("filter_bank_scratch", "p", result="l")(packed))
    bind("filter_bank", "pppppp")(*map(pointer, (images, inner, outer, out, scratch)), packed)
    return out
