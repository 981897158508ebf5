"""`normalize` in one pass on the CPU, see ``normalize.c``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dhlab.kernels._cpu import bind, pointer, prepare, threads_for
from dhlab.kernels._cpu.floats import FLOATS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["can_normalize", "normalize_cpu"]

MOST_CHANNELS = 64


def can_normalize(images: Tensor, out: Tensor) -> bool:
    """Return whether the C form covers this pair, both ``(B, C, *space)``: bytes in, and no channels to interleave."""
    channels = images.shape[1]
    if images.dtype != torch.uint8 or out.dtype not in FLOATS or channels > MOST_CHANNELS:
        return False
    return _is_planar(images) == _is_planar(out) or (channels == 3 and _is_planar(out))


def normalize_cpu(images: Tensor, *, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """Write ``images * scale + shift`` to `out`, both ``(B, C, *space)``, each dense with channels first or last."""
    if images.numel():
        samples, channels = images.shape[:2]
        size = (samples, channels, images[0, 0].numel(), not _is_planar(images), _is_planar(out))
        arguments = [pointer(tensor) for tensor in (images, prepare(out), scale, shift)]
        threads = threads_for(images.numel() * (1 + out.element_size()))
        bind("normalize", "ppppllliiii")(*arguments, *size, FLOATS[out.dtype], threads)
    return out


def _is_planar(tensor: Tensor) -> bool:
    return tensor.is_contiguous()
