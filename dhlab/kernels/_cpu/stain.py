"""Fits of stains and their application on the CPU, see ``stain.c``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from dhlab.kernels._cpu import bind, pointer, threads_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["can_change", "can_convert", "convert_cpu", "fit_cpu", "map_cpu"]

CHUNK, MOMENTS, PASSES, MOST_LANES = 16384, 10, 4, 16
# A pixel in so many is sampled, within bounds: choosing from more would cost, and fewer would make wide brackets.
SAMPLED, LEAST_SAMPLE, MOST_SAMPLE = 256, 1024, 16384
# A bracket keeps at most one key in so many; one that would keep more is narrowed, at the price of a pass.
KEPT, LEAST_KEPT = 32, 4096


def can_change(*images: Tensor | None) -> bool:
    """Return whether the C form covers these, all ``(B, 3, H, W)``: bytes, any strides."""
    return all(image is None or image.dtype == torch.uint8 for image in images)


def can_convert(images: Tensor, out: Tensor) -> bool:
    """Return whether the C form covers this pair, ``(B, C, H, W)``: bytes or floats in, dense channels out."""
    dense = out.stride(3) == 1 and (out.shape[2] == 1 or out.stride(2) == out.shape[3])
    return images.dtype in (torch.uint8, torch.float32) and (dense or out.numel() == 0)


def fit_cpu(
    images: Tensor,
    *,
    method: int,
    parameters: Sequence[float],
    group: int,
    fallback: Tensor,
    fits: Tensor,
    reference: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    """Write ``(9,)`` floats for each `group` of ``(B, 3, H, W)`` bytes; with `out`, change them too."""
    groups, pixels = len(fits), group * images.shape[2] * images.shape[3]
    if groups == 0 or pixels == 0:
        return
    sample = min(max(pixels // SAMPLED, LEAST_SAMPLE), MOST_SAMPLE)
    capacity = max(pixels // KEPT, LEAST_KEPT)
    workers, inner = _share(groups, threads_for(images.numel() * PASSES))
    floats = 2 * 3 * MOMENTS * (-(-pixels // CHUNK)) + 2 * (sample + capacity + MOST_LANES)  # doubles come first
    work = torch.empty(workers * floats, dtype=torch.float32)
    layouts = [_layouts(images), *([_layouts(images, out)] if out is not None else [])]
    bind("fit_stain", "pppllippppp" + "llii")(
        *(pointer(images), pointer(out), _join(*layouts), groups, group, method),
        (ctypes.c_double * 5)(*parameters),
        *(pointer(reference), pointer(fallback), pointer(fits), pointer(work)),
        *(sample, capacity, workers, inner),
    )


def map_cpu(
    images: Tensor, *, maps: Tensor, fitted: Tensor, around: bool, constants: Sequence[float], out: Tensor
) -> None:
    """Send ``(B, 3, H, W)`` bytes through ``(B, 45)`` packed maps; samples that were not `fitted` are copied."""
    if images.numel() == 0:
        return
    workers, inner = _share(len(images), threads_for(2 * images.numel()))
    bind("map_stain", "ppplppifffii")(
        *(pointer(images), pointer(out), _join(_layouts(images, out)), len(images)),
        *(pointer(maps), pointer(fitted), around, *constants, workers, inner),
    )


def convert_cpu(images: Tensor, *, matrices: Tensor, separates: bool, constants: Sequence[float], out: Tensor) -> None:
    """Write amounts of light, or light of amounts, ``(B, C, H, W)`` both."""
    if images.numel() == 0:
        return
    is_float, threads = images.dtype == torch.float32, threads_for(4 * (images.numel() + out.numel()))
    bind("convert_stain", "ppiipllilpiffi")(
        *(pointer(images), _join(_layouts(images)), is_float, images.shape[1]),
        *(pointer(out), out.stride(0), out.stride(1), out.shape[1], len(images)),
        *(pointer(matrices), separates, *constants, threads),
    )


def _share(groups: int, threads: int) -> tuple[int, int]:
    """Return how many threads take a group each, and how many share one group's pixels."""
    return (threads, 1) if groups % threads == 0 or groups >= 4 * threads else (1, threads)


def _layouts(*images: Tensor) -> list[int]:
    """Return height, width and bytes between samples, rows, pixels and channels of each; rows in a row become one."""
    height, width = images[0].shape[2:]
    if all(height == 1 or image.stride(2) == width * image.stride(3) for image in images):
        height, width = 1, height * width
    sizes = [[image.stride(axis) * image.element_size() for axis in (0, 2, 3, 1)] for image in images]
    return [number for size in sizes for number in (height, width, *size)]


def _join(*layouts: Sequence[int]) -> ctypes.Array[ctypes.c_long]:
    numbers = [number for layout in layouts for number in layout]
    return (ctypes.c_long * len(numbers))(*numbers)
