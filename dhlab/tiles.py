"""`Tiles`: the windows of one scan on one grid, as a torch dataset."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dhlab.errors import BadShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.grid import TileGrid
    from dhlab.scan import Scan

__all__ = ["Tiles"]

# A level within 1 % of the wanted spacing is read as it is.
SAME_SPACING = 0.01
# Source pixels resampled at once: bounds memory where a level is much finer than the grid.
MOST_PIXELS = 1 << 26


class Tiles(Dataset[tuple["Tensor", int]]):
    """A map-style dataset of one scan on one grid; pickles as far as the scan does (by path, for files).

    An item is ``(window, index)``: the window as stored, in the scan's own axis order and dtype, and its flat index
    on the grid, which is its only name. Windows come from the coarsest level that is fine enough and are resampled
    where that level's spacing differs from the grid's by more than 1 %: images bilinearly with antialiasing (volumes
    and signals linearly), masks and label maps to the nearest pixel.

    Parameters
    ----------
    scan
        Where to read.
    grid
        Which windows, in the scan's own unit.

    Raises
    ------
    BadShapeError
        If the grid has another number of window axes than the scan.
    """

    def __init__(self, scan: Scan, grid: TileGrid) -> None:
        if len(grid.tile) != len(scan.window_axes):
            raise BadShapeError(f"grid of {len(grid.tile)} axes on a scan with window axes {scan.window_axes!r}.")
        self.scan = scan
        self.grid = grid
        self.level = scan.level_for(grid.spacing)
        ratio = np.asarray(grid.spacing) / np.asarray(scan.spacing_of(self.level))
        self.resampled = bool(np.any(np.abs(ratio - 1) > SAME_SPACING))
        source = np.maximum(1, np.rint(np.asarray(grid.tile) * ratio)).astype(int)
        self.source_size: tuple[int, ...] = tuple(source.tolist()) if self.resampled else grid.tile

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"window {position} of {len(self)}")
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return several items at once, so that a batch decodes each stored tile once (torch calls this)."""
        windows = torch.from_numpy(self.read(positions))
        return list(zip(windows, self.grid.indices[np.asarray(positions, np.int64)].tolist(), strict=True))

    def read(self, positions: Sequence[int] | NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read several windows into one array.

        Parameters
        ----------
        positions
            Positions among the grid's windows to visit, shape ``(N,)``.
        out
            C-contiguous array ``(N, *window)`` of the scan's dtype to read into. Reuse it: fresh memory costs more
            than copying.

        Returns
        -------
        ndarray
            ``(N, *window)``, windows in the order of the scan's axes, its fill value outside it.

        Raises
        ------
        BadShapeError
            If `out` does not fit.
        BadFileError
            If the stored data cannot be decoded.
        """
        starts = self.grid.starts(positions)
        if not self.resampled:
            return self.scan.read_many(starts, self.source_size, self.level, out=out)
        shape = (len(starts), *self.scan.window_shape(self.grid.tile))
        if out is None:
            out = np.empty(shape, self.scan.dtype)
        elif out.shape != shape or out.dtype != self.scan.dtype:
            raise BadShapeError(f"out is {out.shape} {out.dtype}; expected {shape} {self.scan.dtype}.")
        step = max(1, MOST_PIXELS // math.prod(self.scan.window_shape(self.source_size)))
        for first in range(0, len(starts), step):
            windows = self.scan.read_many(starts[first : first + step], self.source_size, self.level)
            out[first : first + step] = self._resample(windows)
        return out

    def _resample(self, windows: NDArray[Any]) -> NDArray[Any]:
        axes = [1 + i for i, a in enumerate(self.scan.axes) if a != "c"]
        if self.scan.kind in ("mask", "labels"):
            for axis, size in zip(axes, self.grid.tile, strict=True):
                centres = (np.arange(size) + 0.5) * windows.shape[axis] / size
                windows = windows.take(centres.astype(int), axis=axis)
            return windows
        return _interpolate(windows, axes, self.grid.tile)

    def __repr__(self) -> str:
        resampled = ", resampled" if self.resampled else ""
        return f"Tiles of {self.scan.name!r}, level {self.level}{resampled}: {self.grid!r}"


def _interpolate(windows: NDArray[Any], axes: list[int], size: tuple[int, ...]) -> NDArray[Any]:
    """Resample an array linearly along some axes, antialiased if these are two; keeps the dtype."""
    if len(axes) > 3:
        raise BadShapeError(f"cannot resample along {len(axes)} axes; choose the spacing of a level.")
    source = torch.from_numpy(windows)
    others = [i for i in range(1, source.ndim) if i not in axes]
    order = [0, *others, *axes]
    moved = source.permute(order)
    space = moved.shape[1 + len(others) :]
    channels = moved if others else moved.unsqueeze(1)
    plane = len(axes) == 2
    exact = channels if plane and source.dtype == torch.uint8 else channels.to(torch.float32)
    resized = torch.nn.functional.interpolate(
        exact.reshape(len(source), -1, *space),
        size=size,
        mode=("linear", "bilinear", "trilinear")[len(axes) - 1],
        align_corners=False,
        antialias=plane,
    )
    back = resized.reshape(*moved.shape[: 1 + len(others)], *size).permute(np.argsort(order).tolist()).numpy()
    if np.issubdtype(windows.dtype, np.integer) and back.dtype != windows.dtype:
        limits = np.iinfo(windows.dtype)
        back = np.rint(back).clip(limits.min, limits.max)
    return back.astype(windows.dtype, copy=False)
