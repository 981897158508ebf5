"""`filter_bank` on the GPU: along the columns, then along the rows with everything that is local fused; so twice.

The planes between the passes are few enough to stay in the second-level cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["filter_bank_triton"]

BLOCK = 512
# Pixels of one round: the eight float32 planes between its passes take 32 MiB.
ROUND = 1 << 20


@triton.jit
def eigenvalues(xx, xy, yy):
    middle = (xx + yy) * 0.5
    half = (xx - yy) * 0.5
    spread = tl.sqrt(half * half + xy * xy)
    return middle + spread, middle - spread


@triton.jit
def place_of(blocks, pixels, width, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    if WIDE:  # else the division is of 32 bits, a quarter of the instructions
        block = block.to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    row = pixel // width
    return plane, row.to(tl.int64), (pixel - row * width).to(tl.int64), pixel < pixels


@triton.jit
def filter_columns_fwd_kernel(
    x_ptr,  # (B, C, H, W), any strides
    v_ptr,  # (3, N, H, W) float32: value, slope and bend along the columns
    weights_ptr,  # (radius + 1, 3) float32
    first,  # of the N planes among the B C
    channels,
    blocks,  # of a plane
    pixels,  # of a plane
    width,
    height,
    radius,
    between,  # from one plane of three to the next
    x_sample,
    x_channel,
    x_row,
    x_column,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    plane, row, column, inside = place_of(blocks, pixels, width, BLOCK, WIDE)
    x_ptr += (first + plane) // channels * x_sample + (first + plane) % channels * x_channel + column * x_column
    here = tl.load(x_ptr + row * x_row, mask=inside, other=0).to(tl.float32)
    value = here * tl.load(weights_ptr)
    bend = here * tl.load(weights_ptr + 2)
    slope = tl.zeros_like(value)
    for step in range(1, radius + 1):
        before = tl.load(x_ptr + tl.maximum(row - step, 0) * x_row, mask=inside, other=0).to(tl.float32)
        after = tl.load(x_ptr + tl.minimum(row + step, height - 1) * x_row, mask=inside, other=0).to(tl.float32)
        value += (after + before) * tl.load(weights_ptr + 3 * step)
        slope += (after - before) * tl.load(weights_ptr + 3 * step + 1)
        bend += (after + before) * tl.load(weights_ptr + 3 * step + 2)
    v_ptr += plane * pixels + row * width + column
    tl.store(v_ptr, value, mask=inside)
    tl.store(v_ptr + between, slope, mask=inside)
    tl.store(v_ptr + 2 * between, bend, mask=inside)


@triton.jit
def filter_rows_fwd_kernel(
    v_ptr,  # (3, N, H, W) float32
    g_ptr,  # (2, N, H, W) float32: gradient along x and y, for the structure tensor
    y_ptr,  # (B, F, H, W), any strides
    weights_ptr,  # (radius + 1, 3) float32
    first,
    channels,
    blocks,  # of a plane
    pixels,  # of a plane
    width,
    radius,
    between,  # from one plane of three to the next
    y_sample,
    y_plane,
    y_feature,
    y_row,
    y_column,
    GAUSSIAN: tl.constexpr,  # which feature of a plane it is; -1: not wanted
    GRADIENT: tl.constexpr,
    LAPLACIAN: tl.constexpr,
    STRUCTURE: tl.constexpr,
    HESSIAN: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    plane, row, column, inside = place_of(blocks, pixels, width, BLOCK, WIDE)
    at = plane * pixels + row * width
    y_ptr += (first + plane) // channels * y_sample + (first + plane) % channels * y_plane
    y_ptr += row * y_row + column * y_column
    kind = y_ptr.dtype.element_ty
    value = tl.load(v_ptr + at + column, mask=inside, other=0.0)
    slope = tl.load(v_ptr + between + at + column, mask=inside, other=0.0)
    bend = tl.load(v_ptr + 2 * between + at + column, mask=inside, other=0.0)
    middle = tl.load(weights_ptr)
    g, y, yy = value * middle, slope * middle, bend * middle
    xx = value * tl.load(weights_ptr + 2)
    x, xy = tl.zeros_like(g), tl.zeros_like(g)
    for step in range(1, radius + 1):
        w = tl.load(weights_ptr + 3 * step)
        w_slope = tl.load(weights_ptr + 3 * step + 1)
        left = at + tl.maximum(column - step, 0)
        right = at + tl.minimum(column + step, width - 1)
        before = tl.load(v_ptr + left, mask=inside, other=0.0)
        after = tl.load(v_ptr + right, mask=inside, other=0.0)
        g += (after + before) * w
        x += (after - before) * w_slope
        xx += (after + before) * tl.load(weights_ptr + 3 * step + 2)
        before = tl.load(v_ptr + between + left, mask=inside, other=0.0)
        after = tl.load(v_ptr + between + right, mask=inside, other=0.0)
        y += (after + before) * w
        if HESSIAN >= 0:
            xy += (after - before) * w_slope
        if (LAPLACIAN >= 0) or (HESSIAN >= 0):
            before = tl.load(v_ptr + 2 * between + left, mask=inside, other=0.0)
            after = tl.load(v_ptr + 2 * between + right, mask=inside, other=0.0)
            yy += (after + before) * w
    if GAUSSIAN >= 0:
        tl.store(y_ptr + GAUSSIAN * y_feature, g.to(kind), mask=inside)
    if GRADIENT >= 0:
        tl.store(y_ptr + GRADIENT * y_feature, tl.sqrt(x * x + y * y).to(kind), mask=inside)
    if LAPLACIAN >= 0:
        tl.store(y_ptr + LAPLACIAN * y_feature, (xx + yy).to(kind), mask=inside)
    if HESSIAN >= 0:
        larger, smaller = eigenvalues(xx, xy, yy)
        tl.store(y_ptr + HESSIAN * y_feature, larger.to(kind), mask=inside)
        tl.store(y_ptr + (HESSIAN + 1) * y_feature, smaller.to(kind), mask=inside)
    if STRUCTURE >= 0:
        g_ptr += at + column
        tl.store(g_ptr, x, mask=inside)
        tl.store(g_ptr + between, y, mask=inside)


@triton.jit
def structure_columns_fwd_kernel(
    g_ptr,  # (2, N, H, W) float32
    v_ptr,  # (3, N, H, W) float32: products of gradients, smoothed along the columns
    weights_ptr,  # (reach + 1,) float32
    blocks,  # of a plane
    pixels,  # of a plane
    width,
    height,
    reach,
    between,  # from one plane of three to the next
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    plane, row, column, inside = place_of(blocks, pixels, width, BLOCK, WIDE)
    at = plane * pixels
    pixel = row * width + column
    x = tl.load(g_ptr + at + pixel, mask=inside, other=0.0)
    y = tl.load(g_ptr + between + at + pixel, mask=inside, other=0.0)
    w = tl.load(weights_ptr)
    xx, xy, yy = x * x * w, x * y * w, y * y * w
    for step in range(1, reach + 1):
        w = tl.load(weights_ptr + step)
        up = at + tl.maximum(row - step, 0) * width + column
        down = at + tl.minimum(row + step, height - 1) * width + column
        x = tl.load(g_ptr + up, mask=inside, other=0.0)
        y = tl.load(g_ptr + between + up, mask=inside, other=0.0)
        x_down = tl.load(g_ptr + down, mask=inside, other=0.0)
        y_down = tl.load(g_ptr + between + down, mask=inside, other=0.0)
        xx += (x * x + x_down * x_down) * w
        xy += (x * y + x_down * y_down) * w
        yy += (y * y + y_down * y_down) * w
    v_ptr += at + pixel
    tl.store(v_ptr, xx, mask=inside)
    tl.store(v_ptr + between, xy, mask=inside)
    tl.store(v_ptr + 2 * between, yy, mask=inside)


@triton.jit
def structure_rows_fwd_kernel(
    v_ptr,  # (3, N, H, W) float32
    y_ptr,  # (B, F, H, W), any strides, from the larger eigenvalue's feature
    weights_ptr,  # (reach + 1,) float32
    first,
    channels,
    blocks,  # of a plane
    pixels,  # of a plane
    width,
    reach,
    between,  # from one plane of three to the next
    y_sample,
    y_plane,
    y_feature,
    y_row,
    y_column,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    plane, row, column, inside = place_of(blocks, pixels, width, BLOCK, WIDE)
    at = plane * pixels + row * width
    w = tl.load(weights_ptr)
    xx = tl.load(v_ptr + at + column, mask=inside, other=0.0) * w
    xy = tl.load(v_ptr + between + at + column, mask=inside, other=0.0) * w
    yy = tl.load(v_ptr + 2 * between + at + column, mask=inside, other=0.0) * w
    for step in range(1, reach + 1):
        w = tl.load(weights_ptr + step)
        left = v_ptr + at + tl.maximum(column - step, 0)
        right = v_ptr + at + tl.minimum(column + step, width - 1)
        xx += (tl.load(left, mask=inside, other=0.0) + tl.load(right, mask=inside, other=0.0)) * w
        left += between
        right += between
        xy += (tl.load(left, mask=inside, other=0.0) + tl.load(right, mask=inside, other=0.0)) * w
        left += between
        right += between
        yy += (tl.load(left, mask=inside, other=0.0) + tl.load(right, mask=inside, other=0.0)) * w
    larger, smaller = eigenvalues(xx, xy, yy)
    y_ptr += (first + plane) // channels * y_sample + (first + plane) % channels * y_plane
    y_ptr += row * y_row + column * y_column
    kind = y_ptr.dtype.element_ty
    tl.store(y_ptr, larger.to(kind), mask=inside)
    tl.store(y_ptr + y_feature, tl.maximum(smaller, 0.0).to(kind), mask=inside)


def filter_bank_triton(
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
        ``(B, C, H, W)`` of any integer or float, any strides.
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
    samples, channels, height, width = images.shape
    sample, feature, row, column = out.stride()
    strides = (sample, len(weights) * per_scale * feature, feature, row, column)
    pixels = height * width
    blocks, at_once = triton.cdiv(pixels, BLOCK), max(1, ROUND // pixels)
    along = torch.empty(3, min(at_once, samples * channels), height, width, device=images.device)
    gradient = torch.empty_like(along[:2]) if places[3] >= 0 else along
    between = along[0].numel()
    options = {"BLOCK": BLOCK, "WIDE": pixels + BLOCK > 2**31}
    for first in range(0, samples * channels, at_once):
        grid = (min(at_once, samples * channels - first) * blocks,)
        size = (first, channels, blocks, pixels, width)
        for number, (inner, outer) in enumerate(weights):
            radius, reach = len(inner) - 1, len(outer) - 1
            scale = out[:, number * per_scale :]
            filter_columns_fwd_kernel[grid](
                images, along, inner, *size, height, radius, between, *images.stride(), **options
            )
            filter_rows_fwd_kernel[grid](
                along, gradient, scale, inner, *size, radius, between, *strides, *places, **options
            )
            if places[3] >= 0:
                structure_columns_fwd_kernel[grid](gradient, along, outer, *size[2:], height, reach, between, **options)
                smoothed = scale[:, places[3] :]
                structure_rows_fwd_kernel[grid](along, smoothed, outer, *size, reach, between, *strides, **options)
    return out
