"""`augment` on the CPU, see ``augment.c`` and ``augment_masks.c``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from dhlab.kernels._cpu import bind, pointer, threads_for
from dhlab.kernels._cpu.floats import FLOATS
from dhlab.kernels.plan import BORDERS, INTERPOLATIONS, STAGES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["augment_cpu", "augment_masks_cpu"]

TYPES = FLOATS | {torch.uint8: 3}
SPARE = 16  # floats beyond the memory for blur, of which the last vector reads some


def augment_cpu(
    images: Tensor,
    block: Tensor,
    *,
    keys: Tensor,
    large: dict[str, Tensor | None],
    stages: list[str],
    interpolation: str,
    border: str,
    supersample: int,
    switches: list[bool],
    logarithm: list[float],
    ending: Tensor,
    out: Tensor,
) -> Tensor:
    """Write ``(B, 3, H, W)`` uint8 of any strides to `out`, dense with channels first or last.

    `large` holds field, table, cutouts and the table of counts, as far as the plan has them.
    """
    parts = {name: None if value is None else value.contiguous() for name, value in large.items()}
    field, cutouts = parts["field"], parts["cutouts"]
    nodes = field.shape[2:] if field is not None else (0, 0)
    boxes = cutouts.shape[1] if cutouts is not None else 0
    size = (*images.shape[:1], *images.shape[2:], *images.stride(), *out.shape[2:], *nodes, boxes)
    blurs = "blur" in stages or "sharpen" in stages
    light = torch.empty(out[0].numel() + SPARE) if blurs else None
    found = sum(1 << STAGES.index(name) for name in stages)
    tensors = (images, out, block, keys, field, parts["table"], cutouts, parts["counts"], ending, light)
    bind("augment", "pppppppppppiiiiiiiffiii")(
        *map(pointer, tensors),
        (ctypes.c_int64 * len(size))(*size),
        found,
        INTERPOLATIONS.index(interpolation),
        BORDERS.index(border),
        supersample,
        *switches,
        *logarithm,
        TYPES[out.dtype],
        out.is_contiguous(),
        threads_for(out.numel() * 8),
    )
    return out


def augment_masks_cpu(
    masks: Tensor, block: Tensor, *, field: Tensor | None, border: str, fill: int, out: Tensor
) -> Tensor:
    """Write ``(B, K, H, W)`` of any integer type and strides to `out`, dense."""
    field = None if field is None else field.contiguous()
    element = masks.element_size()
    nodes = field.shape[2:] if field is not None else (0, 0)
    size = (*masks.shape, *(step * element for step in masks.stride()), *out.shape[2:], *nodes)
    value = torch.tensor(fill, dtype=masks.dtype)
    tensors = (masks, out, block, field)
    bind("augment_masks", "pppppplii")(
        *map(pointer, tensors),
        (ctypes.c_int64 * len(size))(*size),
        pointer(value),
        element,
        BORDERS.index(border),
        threads_for(out.numel() * 8),
    )
    return out
