"""`blend_windows` in one pass on the CPU, see ``blend.c``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from dhlab.kernels._cpu import bind, pointer, threads_for
from dhlab.kernels._cpu.floats import FLOATS

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.kernels._windows import Layout

__all__ = ["blend_cpu", "can_blend"]

RESULTS = ("scores", "quantised", "classes", "mask")
ACTIVATIONS = ("none", "softmax", "sigmoid")
MOST_CHANNELS = 64


def can_blend(scores: Tensor) -> bool:
    """Return whether the C form covers scores ``(B, C, h, w)``, any strides."""
    return scores.dtype in FLOATS and scores.shape[1] <= MOST_CHANNELS


def blend_cpu(
    scores: Tensor,
    layout: Layout,
    *,
    offsets: Tensor,
    weights: Tensor,
    result: str,
    activation: str,
    threshold: float,
    out: Tensor,
) -> None:
    """Write the picture.

    Parameters
    ----------
    scores
        ``(B, C, h, w)`` float32, bfloat16 or float16, any strides; further batches lie elsewhere.
    layout
        Which windows cover which part of `out`.
    offsets
        ``(N,)`` int64: elements from the first of `scores` to the first of each window, as `layout` orders them.
    weights
        ``(h, w)`` float32, contiguous.
    result, activation, threshold
        As for `dhlab.kernels.blend_windows`.
    out
        ``(C, H, W)`` float32 or uint8, or ``(1, H, W)`` uint8 for classes; columns next to one another.
    """
    threads = threads_for(len(offsets) * scores.shape[1:].numel() * scores.element_size())
    sizes = [*scores.shape[1:], *out.shape[1:], *layout.cell, *scores.stride()[1:], *out.stride()[:2]]
    sizes += [FLOATS[scores.dtype], RESULTS.index(result), ACTIVATIONS.index(activation), threads]
    tensors = (scores, offsets, layout.rows, layout.columns, layout.starts, layout.members, weights, out)
    bind("blend", "pppppppppf")(*map(pointer, tensors), (ctypes.c_long * len(sizes))(*sizes), threshold)
