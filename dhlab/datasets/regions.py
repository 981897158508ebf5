"""Windows of one scan that learn from what is drawn on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dhlab.datasets.dataset import Dataset
from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest
from dhlab.grid import TileGrid
from dhlab.tiles import Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.annotations import Annotations
    from dhlab.datasets.samples import Batch
    from dhlab.scan import Scan

__all__ = ["TileSamples", "cut_regions"]

# A label map is kept in memory, one byte per pixel at the dataset's spacing.
LARGEST_LABELS = 1 << 30
Region = Sequence[Sequence[float]]


@dataclass(frozen=True, eq=False)
class TileSamples:
    """Windows of one scan with their part of a label map.

    Parameters
    ----------
    tiles
        The windows.
    labels
        Label map at the grid's spacing, ``(*space)`` uint8: 0 unlabelled, else class index + 1.
    corner
        First corner of the label map in grid pixels.
    """

    tiles: Tiles
    labels: NDArray[np.uint8]
    corner: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tiles)

    @cached_property
    def corners(self) -> NDArray[np.int64]:
        """First corners of the windows in grid pixels, ``(N, ndim)``."""
        return self.tiles.grid.corners(self.tiles.grid.indices)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return windows and targets by index."""
        return self.tiles.read(indices), self.targets(indices)

    def targets(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the label map under each window."""
        targets = np.empty((len(indices), *self.tiles.grid.tile), np.int64)
        for target, corner in zip(targets, self.corners[indices] - self.corner, strict=True):
            window = tuple(slice(c, c + t) for c, t in zip(corner.tolist(), self.tiles.grid.tile, strict=True))
            np.subtract(self.labels[window], 1, out=target, dtype=np.int64)
        return targets

    def fresh(self, index: int) -> NDArray[np.bool_]:
        """Return the pixels of a window that no earlier window covers."""
        tile = np.asarray(self.tiles.grid.tile)
        new = np.ones(tuple(tile), bool)
        offsets = self.corners[:index] - self.corners[index]
        for offset in offsets[(np.abs(offsets) < tile).all(1)].tolist():
            new[tuple(slice(max(0, o), min(t, o + t)) for o, t in zip(offset, tile.tolist(), strict=True))] = False
        return new


@dataclass(frozen=True, eq=False)
class LabelledTiles:
    """Windows of one scan with a class each.

    Parameters
    ----------
    tiles
        The windows.
    labels
        Class indices, ``(N,)`` int64.
    """

    tiles: Tiles
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tiles)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return windows and targets by index."""
        return self.tiles.read(indices), self.labels[indices]

    def targets(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return targets by index."""
        return self.labels[indices]

    def fresh(self, index: int) -> None:
        """Return None: a window counts as a whole."""
        return


def cut_regions(
    scan: Scan,
    annotations: Annotations,
    *,
    classes: Sequence[str],
    tile: int | Sequence[int],
    task: str,
    spacing: float | Sequence[float] | None,
    region: Region | None,
    overlap: float,
    min_labelled: float,
    min_share: float,
    patient: str | None,
) -> Dataset:
    """Cut a scan into windows that learn from annotations; see `Dataset.from_annotations`."""
    names = tuple(classes)
    _check_request(scan, annotations, names, task, min_labelled, min_share)
    whole = TileGrid.cover(scan, tile, spacing=spacing, overlap=overlap)
    scale = np.asarray(whole.scale)
    start, size = _check_region(scan, region)
    first = np.ceil(start / scale - 1e-6).astype(np.int64)
    last = np.minimum(np.floor((start + size) / scale + 1e-6).astype(np.int64), whole.extent)
    span = last - first
    if (span < whole.tile).any():
        raise BadValueError(
            f"region of {tuple(span.tolist())} px at {whole.spacing[0]:g} {scan.unit}/px is smaller than a "
            f"tile of {whole.tile} px. Take a smaller tile, a finer spacing or a larger region."
        )
    if math.prod(span.tolist()) > LARGEST_LABELS:
        raise BadValueError(
            f"the label map would have {math.prod(span.tolist()):,} px, more than {LARGEST_LABELS:,}. "
            "Give region=… or a coarser spacing."
        )
    grid = _cover_region(whole, first, last)
    labels = _draw_labels(scan, annotations, names, grid, first, span)
    corners = grid.corners(grid.indices) - first
    area = math.prod(grid.tile)
    counts = np.stack([np.bincount(labels[_window(c, grid.tile)].ravel(), minlength=len(names) + 1) for c in corners])
    covered, best = counts[:, 1:].sum(1), counts[:, 1:].argmax(1)
    enough = covered >= max(min_labelled * area, 0.5)
    if task == "classification":
        enough &= counts[:, 1:].max(1) >= max(min_share * area, 0.5)
    if not enough.any():
        least, remedy = (
            (f"{min_share:.0%} of its pixels in one of", "min_share")
            if task == "classification"
            else (f"{min_labelled:.0%} of its pixels labelled as", "min_labelled")
        )
        raise BadValueError(
            f"no window of the region at {tuple(start.tolist())} has {least} {', '.join(names)}. "
            f"Draw more there, or lower {remedy}."
        )
    grid = replace(grid, keep=grid.indices[enough])
    tiles = Tiles(scan, grid)
    samples = (
        LabelledTiles(tiles, best[enough].astype(np.int64))
        if task == "classification"
        else TileSamples(tiles, labels, tuple(first.tolist()))
    )
    blocks = (corners[enough] + np.asarray(grid.tile) // 2) // np.asarray(grid.tile)
    groups = tuple(f"{scan.name} {'/'.join(map(str, block))}" for block in blocks.tolist())
    return Dataset(
        samples=samples,
        classes=names,
        task=task,
        groups=groups if patient is None else (patient,) * len(samples),
        unit_name="block" if patient is None else "patient",
        axes=scan.axes,
        spacing=grid.spacing,
        unit=scan.unit,
        name=scan.name,
    )


def _check_request(
    scan: Scan, annotations: Annotations, names: tuple[str, ...], task: str, min_labelled: float, min_share: float
) -> None:
    if task not in ("segmentation", "classification"):
        raise BadValueError(f"task {task!r}; annotations give 'segmentation' or 'classification'.")
    if scan.window_axes != "yx":
        raise BadShapeError(f"{scan.name!r} has axes {scan.axes!r}; annotations lie on scans with y and x only.")
    if not 0 < len(names) <= 255:
        raise BadValueError(f"{len(names)} classes; expected 1 to 255.")
    known = [annotations.class_names[i] for i in np.unique(annotations.classes[annotations.classes >= 0])]
    for name in names:
        if name not in known:
            raise UnknownNameError(f"no annotation of {scan.name!r} has class {name!r}.{suggest(name, known)}")
    for what, share in (("min_labelled", min_labelled), ("min_share", min_share)):
        if not 0 <= share <= 1:
            raise BadValueError(f"{what} {share}; expected a share from 0 to 1.")


def _window(corner: NDArray[np.int64], tile: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(c, c + t) for c, t in zip(corner.tolist(), tile, strict=True))


def _check_region(scan: Scan, region: Region | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shape = np.asarray(scan.shape, float)
    if region is None:
        return np.zeros(len(shape)), shape
    try:
        start, size = (np.asarray(part, float) for part in region)
    except (TypeError, ValueError):
        start = size = np.zeros(0)
    if start.shape != shape.shape or size.shape != shape.shape:
        raise BadShapeError(
            f"region {region}; expected ((start …), (size …)) with {len(shape)} numbers each ({scan.window_axes})."
        )
    if not (np.isfinite(start).all() and (start >= 0).all() and (size > 0).all() and (start + size <= shape).all()):
        raise BadValueError(
            f"region from {tuple(start.tolist())} of size {tuple(size.tolist())} is not inside {scan.name!r} of "
            f"{scan.shape} px. Positions and sizes are level-0 pixels."
        )
    return start, size


def _cover_region(whole: TileGrid, first: NDArray[np.int64], last: NDArray[np.int64]) -> TileGrid:
    """Return a grid of stride 1 that keeps `whole`'s windows, counted from `first`, the last ones flush with `last`."""
    grid = replace(whole, stride=(1,) * len(whole.tile), keep=None)
    along = []
    for low, high, tile, stride in zip(first.tolist(), last.tolist(), whole.tile, whole.stride, strict=True):
        along.append(np.unique([*range(low, high - tile, stride), high - tile]))
    places = np.meshgrid(*along, indexing="ij")
    keep = np.ravel_multi_index([p.reshape(-1) for p in places], grid.shape)
    return replace(grid, keep=keep.astype(np.int64))


def _draw_labels(
    scan: Scan,
    annotations: Annotations,
    classes: tuple[str, ...],
    grid: TileGrid,
    first: NDArray[np.int64],
    span: NDArray[np.int64],
) -> NDArray[np.uint8]:
    scale = np.asarray(grid.scale)
    region = (tuple((first * scale).tolist()), tuple((span * scale).tolist()))
    picture = annotations.rasterize(spacing=grid.spacing, classes=classes, region=region, parent=scan)
    drawn = np.asarray(picture.levels[0][...])
    labels = np.zeros(tuple(span.tolist()), np.uint8)
    # Rounding of the region's size may give a pixel more or less at the far edges.
    common = tuple(slice(0, min(a, b)) for a, b in zip(labels.shape, drawn.shape, strict=True))
    labels[common] = drawn[common]
    return labels
