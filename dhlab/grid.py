"""`TileGrid`: where to look. Windows of one size on a regular grid at a physical spacing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dhlab.scan import Scan

__all__ = ["TileGrid"]


@dataclass(frozen=True, eq=False)
class TileGrid:
    """N-d windows at a physical spacing. Knows nothing of pixels; a window's index is its only name.

    Parameters
    ----------
    tile
        Window size in pixels at `spacing`, per window axis.
    stride
        Step between windows in pixels at `spacing`, per window axis.
    spacing
        Physical size of a grid pixel, per window axis.
    scale
        Level-0 pixels per grid pixel, per window axis.
    extent
        Size of the scan in grid pixels, per window axis.
    keep
        Sorted flat indices of the windows to visit (int64), or None for all.
    """

    tile: tuple[int, ...]
    stride: tuple[int, ...]
    spacing: tuple[float, ...]
    scale: tuple[float, ...]
    extent: tuple[int, ...]
    keep: NDArray[np.int64] | None = None

    @classmethod
    def cover(
        cls,
        scan: Scan,
        tile: int | Sequence[int],
        *,
        spacing: float | Sequence[float] | None = None,
        overlap: float = 0.0,
        within: Scan | None = None,
    ) -> TileGrid:
        """Cover a scan with windows; the last ones may hang over its far edges.

        Parameters
        ----------
        scan
            The scan to cover.
        tile
            Window size in pixels at `spacing`; one number counts for all window axes. An axis of 0 takes the whole
            extent.
        spacing
            Physical pixel size to look at, in the scan's unit; None is the scan's own.
        overlap
            Share of a window that its neighbour also sees, from 0 up to but excluding 1.
        within
            Mask to keep windows in (see `within`).

        Returns
        -------
        TileGrid
            The grid.

        Raises
        ------
        BadShapeError
            If `tile` does not fit the axes.
        BadValueError
            If `overlap`, `tile` or `spacing` is out of range.
        """
        ndim = len(scan.window_axes)
        per_axis = np.asarray(scan.spacing if spacing is None else spacing, float)
        if per_axis.ndim > 1 or per_axis.size not in (1, ndim):
            raise BadShapeError(f"spacing {spacing}; expected one number or {ndim}.")
        per_axis = np.broadcast_to(per_axis, (ndim,))
        if not np.all(np.isfinite(per_axis) & (per_axis > 0)):
            raise BadValueError(f"spacing {spacing}; expected positive, finite numbers in {scan.unit}.")
        if not 0 <= overlap < 1:
            raise BadValueError(f"overlap {overlap}; expected a share from 0 up to but excluding 1.")
        scale = per_axis / np.asarray(scan.spacing)
        extent = tuple(max(1, math.ceil(n / s - 1e-6)) for n, s in zip(scan.shape, scale, strict=True))
        sizes = (tile,) * ndim if isinstance(tile, int) else tuple(int(t) for t in tile)
        if len(sizes) != ndim or min(sizes) < 0:
            raise BadShapeError(f"tile {tile}; expected one number or {ndim} (window axes {scan.window_axes!r}).")
        sizes = tuple(t or n for t, n in zip(sizes, extent, strict=True))
        stride = tuple(max(1, round(t * (1 - overlap))) for t in sizes)
        grid = cls(sizes, stride, tuple(per_axis.tolist()), tuple(scale.tolist()), extent)
        return grid if within is None else grid.within(within)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of windows along each window axis, kept or not."""
        return tuple(
            max(0, math.ceil((n - t) / s)) + 1 for n, t, s in zip(self.extent, self.tile, self.stride, strict=True)
        )

    @property
    def indices(self) -> NDArray[np.int64]:
        """Flat indices of the windows to visit, sorted, int64."""
        return np.arange(math.prod(self.shape)) if self.keep is None else self.keep

    def __len__(self) -> int:
        return math.prod(self.shape) if self.keep is None else len(self.keep)

    def __getitem__(self, position: int) -> tuple[int, ...]:
        """Return the first corner, in level-0 pixels, of the window at a position among those to visit."""
        if not -len(self) <= position < len(self):
            raise IndexError(f"window {position} of {len(self)}")
        return tuple(int(v) for v in self.starts([position])[0])

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (tuple(row) for row in self.starts().tolist())

    def starts(self, positions: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return first corners in level-0 pixels of some or all windows to visit.

        Parameters
        ----------
        positions
            Positions among the windows to visit, shape ``(N,)``; None is all of them.

        Returns
        -------
        ndarray
            ``(N, ndim)`` int64.
        """
        flat = self.indices if positions is None else self.indices[np.asarray(positions, np.int64)]
        return np.rint(self.corners(flat) * np.asarray(self.scale)).astype(np.int64)

    def corners(self, flat: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return first corners in grid pixels of windows given by flat index.

        Parameters
        ----------
        flat
            Flat indices on the whole grid, shape ``(N,)`` int64.

        Returns
        -------
        ndarray
            ``(N, ndim)`` int64.
        """
        corners: NDArray[np.int64] = np.stack(np.unravel_index(flat, self.shape), axis=-1) * np.asarray(self.stride)
        return corners

    def within(self, mask: Scan, *, min_share: float = 0.0) -> TileGrid:
        """Keep the windows that see enough of a mask.

        Parameters
        ----------
        mask
            A scan without channels whose non-zero pixels count, in the same physical frame; any spacing.
        min_share
            Least share of the window that the mask must fill. With 0, one pixel is enough.

        Returns
        -------
        TileGrid
            The same grid with fewer windows kept (none, if the mask is empty).

        Raises
        ------
        BadShapeError
            If the mask has other window axes.
        """
        if "c" in mask.axes or len(mask.window_axes) != len(self.tile):
            raise BadShapeError(f"mask has axes {mask.axes!r}; expected {len(self.tile)} axes without 'c'.")
        table = (np.asarray(mask.levels[0][...]) != 0).astype(np.float64)
        for axis in range(table.ndim):
            table = np.cumsum(table, axis=axis)
        table = np.pad(table, [(1, 0)] * table.ndim)  # summed-area table
        flat = self.indices
        pixel = np.asarray(self.spacing) / np.asarray(mask.spacing)
        offset = np.asarray(mask.origin) / np.asarray(mask.spacing)
        low = self.corners(flat) * pixel - offset
        high = low + np.asarray(self.tile) * pixel
        first = np.clip(np.floor(low + 1e-6).astype(int), 0, np.asarray(mask.shape))
        last = np.clip(np.ceil(high - 1e-6).astype(int), 0, np.asarray(mask.shape))
        total = np.zeros(len(flat))
        for corner in range(2**table.ndim):
            pick = [(corner >> axis) & 1 for axis in range(table.ndim)]
            where = tuple(np.where(p, last[:, axis], first[:, axis]) for axis, p in enumerate(pick))
            total += table[where] * (-1) ** (table.ndim - sum(pick))
        area = float(np.prod(np.asarray(self.tile) * pixel))
        enough = (total > 0.5) & (total >= min_share * area - 1e-9)
        return replace(self, keep=flat[enough])

    def split(self, parts: int) -> tuple[TileGrid, ...]:
        """Split the windows to visit into contiguous, nearly equal grids.

        Parameters
        ----------
        parts
            Number of grids.

        Returns
        -------
        tuple of TileGrid
            `parts` grids that together visit every window once.

        Raises
        ------
        BadValueError
            If `parts` is less than 1.
        """
        if parts < 1:
            raise BadValueError(f"parts {parts}; expected at least 1.")
        return tuple(replace(self, keep=part) for part in np.array_split(self.indices, parts))

    def __repr__(self) -> str:
        tile, stride = (" × ".join(map(str, v)) for v in (self.tile, self.stride))
        every = " × ".join(map(str, self.shape))
        return f"TileGrid: {len(self)} of {every} windows of {tile} px, stride {stride}, {self.spacing[0]:g}/px"
