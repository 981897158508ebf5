"""`normalize` in one pass: read a stored pixel once, write a normalised one once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["normalize_triton"]

BLOCK = 1024


@triton.jit
def normalize_fwd_kernel(
    x_ptr,  # (B, P, C) or (B, C, P), any integer or float
    y_ptr,  # (B, C, P) or (B, P, C), float
    scale_ptr,  # (C,) float32
    shift_ptr,  # (C,) float32
    pixels,
    channels,
    chunks,
    x_pixel,
    x_channel,
    y_pixel,
    y_channel,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)  # the only axis of a grid that may be longer than 65,535
    sample = (program // chunks).to(tl.int64) * pixels * channels
    pixel = (program % chunks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    for channel in range(channels):
        stored = tl.load(x_ptr + sample + pixel * x_pixel + channel * x_channel, mask=inside, other=0)
        value = stored.to(tl.float32) * tl.load(scale_ptr + channel) + tl.load(shift_ptr + channel)
        value = value.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + sample + pixel * y_pixel + channel * y_channel, value, mask=inside)


def normalize_triton(images: Tensor, *, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """Write ``images * scale + shift`` to `out`, both ``(B, C, *space)``, each dense with channels first or last."""
    samples, channels = images.shape[:2]
    if images.numel() == 0:
        return out
    pixels = images[0, 0].numel()
    steps = [(1, pixels) if t.is_contiguous() else (channels, 1) for t in (images, out)]
    chunks = triton.cdiv(pixels, BLOCK)
    sizes = (pixels, channels, chunks, *steps[0], *steps[1])
    normalize_fwd_kernel[samples * chunks,](images, out, scale, shift, *sizes, BLOCK=BLOCK)
    return out
