"""Which windows cover which part of a picture: lists per cell, so that every pixel can gather what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CELL_COLUMNS", "Layout", "arrange_windows"]

# Cells are at most this large: a row of a few channels fits the first-level cache, and a list serves many rows.
CELL_ROWS, CELL_COLUMNS = 32, 256
# Layouts that are kept: a stream of bands repeats a few.
KEPT = 16


@dataclass(frozen=True)
class Layout:
    """Windows by row, then column, and those of each cell; all int64 on one device.

    Parameters
    ----------
    order
        ``(N,)``: where each window stood before they were ordered.
    rows, columns
        ``(N,)``: first row and column of each window in the picture; may lie outside.
    starts
        ``(cells + 1,)``: where the list of each cell begins in `members`, cells row by row.
    members
        Windows that touch a cell, in order.
    cell
        Rows and columns of a cell.
    """

    order: Tensor
    rows: Tensor
    columns: Tensor
    starts: Tensor
    members: Tensor
    cell: tuple[int, int]


def arrange_windows(
    corners: Tensor, *, first_row: int, tile: tuple[int, int], size: tuple[int, int], device: torch.device
) -> Layout:
    """Return the layout of windows ``(N, 2)`` of size `tile` on rows of a picture that begin with `first_row`."""
    array = corners.numpy() - np.array([first_row, 0], np.int64)
    return _arrange(array.tobytes(), tile, size, device)


@lru_cache(maxsize=KEPT)
def _arrange(packed: bytes, tile: tuple[int, int], size: tuple[int, int], device: torch.device) -> Layout:
    corners = np.frombuffer(packed, np.int64).reshape(-1, 2)
    order = np.lexsort((corners[:, 1], corners[:, 0]))
    rows, columns = corners[order].T
    cell = (max(1, min(CELL_ROWS, tile[0] // 4)), CELL_COLUMNS)
    down, across = (-(-n // c) for n, c in zip(size, cell, strict=True))
    # Cells [top, bottom) × [left, right) that each window touches
    top, left = (np.maximum(v, 0) // c for v, c in zip((rows, columns), cell, strict=True))
    bottom, right = (
        -(-np.minimum(v + t, n) // c) for v, t, n, c in zip((rows, columns), tile, size, cell, strict=True)
    )
    high, wide = np.maximum(bottom - top, 0), np.maximum(right - left, 0)
    touched = high * wide * ((rows < size[0]) & (columns < size[1]))
    window = np.repeat(np.arange(len(order)), touched)
    number = np.arange(len(window)) - np.repeat(np.cumsum(touched) - touched, touched)
    cells = (top[window] + number // wide[window]) * across + left[window] + number % wide[window]
    members = window[np.argsort(cells, kind="stable")]
    starts = np.zeros(down * across + 1, np.int64)
    np.cumsum(np.bincount(cells, minlength=down * across), out=starts[1:])
    tables = {"order": order, "rows": rows, "columns": columns, "starts": starts, "members": members}
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v, np.int64)).to(device) for k, v in tables.items()}
    return Layout(**tensors, cell=cell)
