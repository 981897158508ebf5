"""`filter_bank` in one pass on the CPU, see ``filters.c``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from dhlab.kernels._cpu import bind, pointer, threads_for
from dhlab.kernels._cpu.floats import FLOATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["can_filter", "filter_bank_cpu"]

MOST_RADIUS = 1024


def can_filter(images: Tensor, out: Tensor, *, radius: int) -> bool:
    """Return whether the C form covers this case: ``(B, C, H, W)`` bytes or floats in, any strides."""
    return images.dtype in (torch.uint8, torch.float32) and out.dtype in FLOATS and radius <= MOST_RADIUS


def filter_bank_cpu(
    images: Tensor,
    *,
    weights: Sequence[tuple[Tensor, Tensor]],
    places: Sequence[int],
    per_scale: int,
    out: Tensor,
) -> Tensor:
    """Write the features of all scales.

    Parameters
    ----------
    images
        ``(B, C, H, W)`` uint8 or float32, any strides.
    weights
        Per scale ``(radius + 1, 3)`` float32, the weights of the value, the first and the second derivative from the
        centre on, and ``(reach + 1,)``, those that smooth the structure tensor.
    places
        Which feature of a scale is the first of each kind, -1 for a kind that is not wanted.
    per_scale
        How many features a scale has.
    out
        ``(B, C * scales * per_scale, H, W)``, any strides.
    """
    sample, feature, row, column = out.stride()
    threads = threads_for(out.numel() * out.element_size())
    sizes = [*images.shape, *images.stride(), sample, len(weights) * per_scale * feature, feature, row, column, *places]
    sizes += [len(weights), per_scale, images.dtype == torch.float32, FLOATS[out.dtype], threads]
    packed = _pack(sizes)
    reaches = _pack([len(part) - 1 for pair in weights for part in pair])
    inner, outer = (torch.cat(parts) for parts in zip(*weights, strict=True))
    scratch = torch.empty(threads * bind("filter_bank_scratch", "pp", result="l")(packed, reaches))
    bind("filter_bank", "ppppppp")(*map(pointer, (images, inner, outer, out, scratch)), packed, reaches)
    return out


def _pack(numbers: list[int]) -> ctypes.Array[ctypes.c_long]:
    return (ctypes.c_long * len(numbers))(*numbers)
