"""From annotations to pixels with a class: what a classifier learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely

from dhlab.annotations.collection import NOT_DRAWN
from dhlab.annotations.raster import fill
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from dhlab.annotations import Annotations

__all__ = ["CELL", "MOST_ROWS", "Frame", "Stroke", "choose_strokes", "count_classes", "sample_pixels", "thin_strokes"]

# Side of the squares in which pixels are taken, and how many squares and pixels of a shape: what features cost.
CELL, MOST_CELLS, MOST_PIXELS = 64, 24, 1024
# Pixels that a classifier learns from at once: what training costs.
MOST_ROWS = 4096


@dataclass(frozen=True)
class Frame:
    """The pixels that a classifier looks at.

    Parameters
    ----------
    shape
        Height and width in pixels.
    scale
        Level-0 pixels per pixel (y, x).
    """

    shape: tuple[int, int]
    scale: tuple[float, float]


@dataclass(frozen=True)
class Stroke:
    """An annotation that teaches.

    Parameters
    ----------
    geometry
        Shape in level-0 pixels (x, y).
    class_name
        What it shows.
    """

    geometry: BaseGeometry
    class_name: str

    @property
    def key(self) -> bytes:
        """What tells its shape from others."""
        return shapely.to_wkb(self.geometry)


def choose_strokes(annotations: Annotations) -> list[Stroke]:
    """Return the annotations that have a class and are neither proposed nor rejected.

    Parameters
    ----------
    annotations
        What people drew.

    Returns
    -------
    list of Stroke
        In the order of the annotations: that in which they were drawn.
    """
    names = annotations.class_names
    rows = np.flatnonzero((annotations.classes >= 0) & ~np.isin(annotations.reviews, NOT_DRAWN))
    return [Stroke(annotations.geometries[row], names[annotations.classes[row]]) for row in rows.tolist()]


def sample_pixels(geometry: BaseGeometry, frame: Frame, *, width: float) -> NDArray[np.int64]:
    """Take pixels inside a shape; of a large one some, spread evenly.

    Parameters
    ----------
    geometry
        Shape in level-0 pixels (x, y). Points and lines are as wide as `width`.
    frame
        Where the pixels are counted.
    width
        Width of lines and points in pixels of the frame.

    Returns
    -------
    ndarray
        ``(N, 2)`` int64, row and column of at most 1024 pixels; none if the shape lies outside.
    """
    if geometry.area == 0:
        geometry = geometry.buffer(width / 2 * max(frame.scale))
    height, breadth = (n * s for n, s in zip(frame.shape, frame.scale, strict=True))
    inside = shapely.intersection(geometry, shapely.box(0, 0, breadth, height))
    # Where a shape touches the border it leaves lines and points.
    inside = shapely.union_all([part for part in shapely.get_parts(inside) if part.area])
    if inside.is_empty:
        return np.empty((0, 2), np.int64)
    cells = _cells(inside, frame)
    cells = cells[np.linspace(0, len(cells) - 1, min(MOST_CELLS, len(cells))).astype(int)]
    found = [_draw(inside, frame, cell * CELL, (CELL, CELL)) for cell in cells]
    pixels = np.concatenate(found)
    if not len(pixels):
        # Narrower than a pixel: the one under its middle stands for it.
        point = inside.representative_point()
        pixels = np.array([[point.y / frame.scale[0], point.x / frame.scale[1]]]).astype(np.int64)
    pixels = pixels[(pixels < frame.shape).all(1)]
    return pixels[np.linspace(0, len(pixels) - 1, min(MOST_PIXELS, len(pixels))).astype(int)]


def thin_strokes(
    labels: Sequence[int], sizes: Sequence[int], *, most: int = MOST_ROWS
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Choose of many pixels those to learn from: as many of each class, and of each stroke of a class, or all.

    Parameters
    ----------
    labels
        Class of each stroke.
    sizes
        Number of pixels of each stroke.
    most
        How many to choose of all together.

    Returns
    -------
    list of ndarray
        Of each stroke the numbers of its chosen pixels, int64, spread evenly.
    ndarray
        ``(N,)`` int64, class of all chosen pixels.
    """
    classes, pixels = np.asarray(labels), np.asarray(sizes)
    shares = np.zeros(len(pixels), np.int64)
    for label, share in enumerate(_share_out(np.bincount(classes, pixels).astype(np.int64), most)):
        shares[classes == label] = _share_out(pixels[classes == label], share)
    pairs = zip(pixels.tolist(), shares.tolist(), strict=True)
    chosen = [((np.arange(share) + 0.5) * size / max(share, 1)).astype(np.int64) for size, share in pairs]
    return chosen, np.repeat(classes, shares)


def _share_out(sizes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return how many to take of each group: alike, where a group has so many."""
    shares, left = np.zeros(len(sizes), np.int64), most
    for taken, group in enumerate(np.argsort(sizes, kind="stable")):
        # Rounded up, so that small groups are the last to go empty.
        shares[group] = min(sizes[group], -(-left // (len(sizes) - taken)))
        left -= shares[group]
    return shares


def _cells(geometry: BaseGeometry, frame: Frame) -> NDArray[np.int64]:
    """Return row and column of the squares that a shape may touch, ``(N, 2)``, in reading order."""
    x0, y0, x1, y1 = geometry.bounds
    first = np.floor(np.array([y0, x0]) / frame.scale / CELL).astype(np.int64)
    last = np.floor(np.array([y1, x1]) / frame.scale / CELL).astype(np.int64) + 1
    # Squares whose middle lies inside, and those under its outline, which a thin shape has alone.
    squares = Frame(frame.shape, (frame.scale[0] * CELL, frame.scale[1] * CELL))
    inner = _draw(geometry, squares, first, tuple((last - first).tolist()))
    outline = shapely.segmentize(geometry.boundary, CELL * min(frame.scale) / 2)
    rim = np.floor(shapely.get_coordinates(outline)[:, ::-1] / squares.scale).astype(np.int64)
    return np.unique(np.concatenate([inner, rim]), axis=0)


def _draw(geometry: BaseGeometry, frame: Frame, corner: NDArray[np.int64], size: tuple[int, ...]) -> NDArray[np.int64]:
    """Return row and column of the pixels of a window whose middles lie inside a shape, ``(N, 2)``."""
    picture = np.zeros(size, np.uint8)
    shapes = np.empty(1, object)
    shapes[0] = geometry
    scale = 1 / np.asarray(frame.scale)
    fill(picture, shapes, np.ones(1, np.uint8), start=corner / scale, scale=scale)
    return np.argwhere(picture) + corner


def count_classes(strokes: list[Stroke]) -> dict[str, int]:
    """Return the number of strokes of each class.

    Raises
    ------
    BadValueError
        If there are none, or only of one class.
    """
    counts: dict[str, int] = {}
    for stroke in strokes:
        counts[stroke.class_name] = counts.get(stroke.class_name, 0) + 1
    if not counts:
        raise BadValueError(
            "no strokes to learn from; draw some with a class, of two classes at least. Proposed and rejected shapes "
            "do not count."
        )
    if len(counts) == 1:
        raise BadValueError(f"strokes of {next(iter(counts))!r} only; expected a second class to tell it from.")
    return counts
