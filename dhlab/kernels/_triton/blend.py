"""`blend_windows` on the GPU: each program gathers a piece of one row from the windows that cover it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from dhlab.kernels._triton.arithmetic import ex2

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.kernels._windows import Layout

__all__ = ["blend_triton"]

# Sums of one program: 16 registers of each thread.
SUMS = 2048
LOG2E = tl.constexpr(1.4426950408889634)
# Adding 1.5 * 2^23 leaves the nearest even whole number.
WHOLE = tl.constexpr(12582912.0)


@triton.jit
def blend_fwd_kernel(
    x_ptr,  # windows of (C, h, w), any strides, float
    offsets_ptr,  # (N,) int64: where each window begins
    rows_ptr,  # (N,) int64: of the corners in y
    columns_ptr,  # (N,) int64
    starts_ptr,  # (cells + 1,) int64: of each cell's list
    members_ptr,  # int64: windows that touch a cell, in order
    weights_ptr,  # (h, w) float32
    y_ptr,  # (C, H, W) float32 or uint8, or (1, H, W)
    channels,
    window_rows,
    window_columns,
    columns,
    across,  # cells in a row
    x_channel,
    x_row,
    x_column,
    y_channel,
    y_row,
    threshold,
    RESULT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELL_ROWS: tl.constexpr,
    CELL_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1).to(tl.int64) * BLOCK
    column = begin + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS).to(tl.int64)[:, None]
    real = channel < channels
    sums = tl.zeros((CHANNELS, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    cell = row // CELL_ROWS * across + begin // CELL_COLUMNS
    first = tl.load(starts_ptr + cell)
    last = tl.load(starts_ptr + cell + 1)
    for k in range(first, last):
        window = tl.load(members_ptr + k)
        y = row - tl.load(rows_ptr + window)
        x = column - tl.load(columns_ptr + window)
        inside = (x >= 0) & (x < window_columns) & (y >= 0) & (y < window_rows)
        weight = tl.load(weights_ptr + y * window_columns + x, mask=inside, other=0.0)
        at = x_ptr + tl.load(offsets_ptr + window) + y * x_row + x * x_column
        score = tl.load(at[None, :] + channel * x_channel, mask=real & inside[None, :], other=0.0).to(tl.float32)
        if ACTIVATION == "softmax":
            score = tl.where(real, score, -float("inf"))
            share = ex2((score - tl.max(score, axis=0)[None, :]) * LOG2E)
            score = share / tl.sum(share, axis=0)[None, :]
        if ACTIVATION == "sigmoid":
            score = 1.0 / (1.0 + ex2(tl.minimum(score * -LOG2E, 126.0)))
        sums += score * weight[None, :]
        total += weight
    kept = column < columns
    y_ptr += row * y_row
    if RESULT == "classes":
        found = tl.argmax(tl.where(real, sums, -float("inf")), axis=0)
        tl.store(y_ptr + column, found.to(tl.uint8), mask=kept)
    else:
        covered = total > 0
        value = sums * tl.where(covered, 1.0 / tl.where(covered, total, 1.0), 0.0)[None, :]
        if RESULT == "quantised":
            value = (tl.minimum(tl.maximum(value * 255.0, 0.0), 255.0) + WHOLE) - WHOLE
        if RESULT == "mask":
            value = ((value >= threshold) & covered[None, :]).to(tl.float32)
        value = value.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + channel * y_channel + column[None, :], value, mask=real & kept[None, :])


def blend_triton(
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
        ``(B, C, h, w)`` float, any strides; further batches lie elsewhere.
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
    channels = triton.next_power_of_2(scores.shape[1])
    cell_rows, cell_columns = layout.cell
    block = max(16, min(cell_columns, SUMS // channels))
    rows, columns = out.shape[1:]
    blend_fwd_kernel[(rows, triton.cdiv(columns, block))](
        scores,
        offsets,
        layout.rows,
        layout.columns,
        layout.starts,
        layout.members,
        weights,
        out,
        *scores.shape[1:],
        columns,
        triton.cdiv(columns, cell_columns),
        *scores.stride()[1:],
        *out.stride()[:2],
        threshold,
        RESULT=result,
        ACTIVATION=activation,
        CHANNELS=channels,
        CELL_ROWS=cell_rows,
        CELL_COLUMNS=cell_columns,
        BLOCK=block,
    )
