"""Many shapes as a picture: a pyramid whose tiles are drawn from the spatial index when they are looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import shapely

from dhlab.annotations.raster import fill
from dhlab.cache import ByteCache
from dhlab.view.layers import LayerData, frame_of, shapes_of
from dhlab_napari.pictures import LazyPicture
from dhlab_napari.units import long_unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from dhlab.annotations import Annotations
    from dhlab.scan import Scan

__all__ = ["Canvas", "CanvasLevel", "raster_layer", "review_of"]

TILE = 512
BUDGET = 256 << 20
# The finest level has so many pixels along a level-0 pixel, so that outlines are still thin where one fills the screen.
FINEST = 8
MARGIN = 8  # pixels of a tile into which shapes beside it reach
THICKNESS, FINE_PX = 2, 32.0  # of outlines; those of smaller shapes are half as thick
DOT_PX, LEAST_PX = 6.0, 2  # what is smaller is a disc of its size, of so many pixels at least
SHIFT = 3  # cv2 draws at 1/8 pixel
FILL, FAINT, OPAQUE = 56, 18, 255
POINT_PX = 11
REVIEWS = (None, "proposed", "rejected")
GREY = (128, 128, 128)


@dataclass(eq=False)
class Canvas:
    """Shapes as pixels, at every resolution.

    Parameters
    ----------
    annotations
        What is drawn: larger shapes below smaller ones, proposals with a faint inside, what was rejected in grey.
    extent
        Height and width in level-0 pixels.
    """

    annotations: Annotations
    extent: tuple[float, float]
    hidden: set[str] = field(default_factory=set)
    fine: int = FINEST

    def __post_init__(self) -> None:
        self._tiles = ByteCache(BUDGET)
        longest = max(1.0, *self.extent) * FINEST
        self.depth = max(1, math.ceil(math.log2(longest / TILE)) + 1)
        # Whole numbers of coarsest pixels: every level is exactly half as large as the one before.
        whole = 2 ** (self.depth - 1)
        self.shape = tuple(math.ceil(max(1.0, n) * FINEST / whole) * whole for n in self.extent)
        self.levels = [CanvasLevel(self, number) for number in range(self.depth)]
        self._prepare()

    def _prepare(self) -> None:
        shapes = shapes_of(self.annotations)
        reviews = [
            REVIEWS.index(review) if review in REVIEWS else 0 for review in map(review_of, self.annotations.extras)
        ]
        self._labels = 1 + shapes.labels * len(REVIEWS) + np.array(reviews, np.int64)
        inside, line = [(0, 0, 0, 0)], [(0, 0, 0, 0)]
        for color in shapes.colors:
            inside += [(*color, FILL), (*color, FAINT), (*GREY, 0)]
            line += [(*color, OPAQUE), (*color, OPAQUE), (*GREY, 160)]
        self._inside, self._line = np.array(inside, np.uint8), line
        self._bounds = shapely.bounds(self.annotations.geometries).reshape(-1, 4)
        self._sides = (self._bounds[:, 2:] - self._bounds[:, :2]).max(-1, initial=0)
        self._areas = shapely.area(self.annotations.geometries)
        self._shown = ~np.isin(self.annotations.ids.astype(str), sorted(self.hidden)) if self.hidden else None

    def replace(
        self, annotations: Annotations, *, hidden: Iterable[str] = (), touched: Sequence[Any] | None = None
    ) -> None:
        """Draw other annotations from now on.

        Parameters
        ----------
        annotations
            What is drawn.
        hidden
            Ids of shapes that are left out.
        touched
            Bounds (left, top, right, bottom) in level-0 pixels of what is different; None for everything.
        """
        self.annotations, self.hidden = annotations, set(hidden)
        self._prepare()
        if touched is None:
            self._tiles.drop()
            return
        boxes = np.array(touched, float).reshape(-1, 4)

        def stale(key: tuple[int, int, int]) -> bool:
            level, row, column = key
            side, margin = TILE * 2.0**level / FINEST, MARGIN * 2.0**level / FINEST
            left, top = column * side - margin, row * side - margin
            far = side + 2 * margin
            return bool(
                (
                    (boxes[:, 0] <= left + far)
                    & (boxes[:, 2] >= left)
                    & (boxes[:, 1] <= top + far)
                    & (boxes[:, 3] >= top)
                ).any()
            )

        self._tiles.drop(stale)

    def tile(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """Return a tile, ``(512, 512, 4)`` RGBA; made once."""
        return self._tiles.get_or_make((level, row, column), lambda: self._draw(level, row, column), lambda a: a.nbytes)

    def _draw(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        zoom = FINEST / 2.0**level
        start = np.array((row, column)) * TILE / zoom
        side, margin = TILE / zoom, MARGIN / zoom
        rows = self.annotations.indices_in_window((start - margin).tolist(), (side + 2 * margin,) * 2)
        if self._shown is not None:
            rows = rows[self._shown[rows]]
        if not rows.size:
            return np.zeros((TILE, TILE, 4), np.uint8)
        small = self._sides[rows] * zoom < DOT_PX
        large = rows[~small]
        large = large[np.argsort(-self._areas[large], kind="stable")]
        geometries, labels = self.annotations.geometries[large], self._labels[large]
        values = np.zeros((TILE, TILE), np.uint32)
        flat = shapely.get_dimensions(geometries) == 2
        if flat.any():
            fill(values, geometries[flat], labels[flat], start=start, scale=np.array((zoom, zoom)))
        picture = self._inside[values]
        fine = self._sides[large] * zoom < FINE_PX
        for some, thickness in ((~fine, THICKNESS), (fine, 1)):
            _draw_lines(
                picture,
                geometries[some],
                labels[some],
                start=start,
                zoom=zoom,
                thickness=thickness,
                colors=self._line,
            )
        self._draw_dots(picture, rows[small], start=start, zoom=zoom)
        return picture

    def _draw_dots(
        self, picture: NDArray[np.uint8], rows: NDArray[np.int64], *, start: NDArray[Any], zoom: float
    ) -> None:
        """Draw discs for what is too small for an outline, all of one size at once; points keep theirs."""
        middle = (self._bounds[rows, :2] + self._bounds[rows, 2:]) / 2
        at = np.floor((middle[:, ::-1] - start) * zoom).astype(int)
        colors = np.array(self._line, np.uint8)[self._labels[rows]]
        sides = np.where(self._sides[rows] == 0, POINT_PX, np.maximum(np.rint(self._sides[rows] * zoom), LEAST_PX))
        for side in np.unique(sides).tolist():
            some = sides == side
            for step in _disc(int(side)):
                y, x = (at[some] + step).T
                inside = (y >= 0) & (y < TILE) & (x >= 0) & (x < TILE)
                picture[y[inside], x[inside]] = colors[some][inside]


def _disc(side: int) -> list[tuple[int, int]]:
    """Return the pixels (y, x) of a disc of a diameter, around its middle."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return [(int(a) - side // 2, int(b) - side // 2) for a, b in np.argwhere(np.hypot(y, x) <= side / 2)]


@dataclass(frozen=True, eq=False)
class CanvasLevel(LazyPicture):
    """One resolution of a canvas, with the attributes that napari asks an array for.

    Parameters
    ----------
    canvas
        What is drawn.
    number
        0 for the finest.
    """

    canvas: Canvas
    number: int
    chunks: tuple[int, int, int] = (TILE, TILE, 4)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and four channels."""
        height, width = self.canvas.shape
        return height >> self.number, width >> self.number, 4

    def _read(self, starts: Sequence[int], stops: Sequence[int]) -> NDArray[np.uint8]:
        (top, left, first), (bottom, right, last) = starts, stops
        picture = np.zeros((bottom - top, right - left, last - first), np.uint8)
        if not picture.size:
            return picture
        for row in range(top // TILE, -(-bottom // TILE)):
            for column in range(left // TILE, -(-right // TILE)):
                tile = self.canvas.tile(self.number, row, column)
                y, x = max(top, row * TILE), max(left, column * TILE)
                part = tile[y - row * TILE : bottom - row * TILE, x - column * TILE : right - column * TILE, first:last]
                picture[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] = part
        return picture


def _draw_lines(
    picture: NDArray[np.uint8],
    geometries: NDArray[np.object_],
    labels: NDArray[np.int64],
    *,
    start: NDArray[Any],
    zoom: float,
    thickness: int,
    colors: Sequence[tuple[int, ...]],
) -> None:
    """Draw rims, holes and lines; of one label at once, which is what makes it quick."""
    parts, owner = shapely.get_parts(geometries, return_index=True)
    while (shapely.get_type_id(parts) > 3).any():  # collections
        parts, inner = shapely.get_parts(parts, return_index=True)
        owner = owner[inner]
    is_area = shapely.get_type_id(parts) == 3
    rings, ring_part = shapely.get_rings(parts[is_area], return_index=True)
    lines = np.concatenate([rings, parts[~is_area]])
    owner = np.concatenate([owner[is_area][ring_part], owner[~is_area]])
    xy, line = shapely.get_coordinates(lines, return_index=True)
    # cv2 counts from the middle of the first pixel.
    pixels = np.rint(((xy - start[::-1]) * zoom - 0.5) * 2**SHIFT).astype(np.int32)
    ends = np.flatnonzero(np.diff(line)) + 1
    chains = np.split(pixels, ends)
    of_chain = labels[owner]
    for label in np.unique(of_chain).tolist():
        some = [chains[i] for i in np.flatnonzero(of_chain == label)]
        # Rings come closed, and lines stay open.
        cv2.polylines(picture, some, False, colors[label], thickness, cv2.LINE_8, SHIFT)


def review_of(extra: Any) -> str | None:
    """Return the review state that the extras of an annotation hold: proposed, accepted, rejected, or None."""
    if not extra:
        return None
    metadata = extra.get("properties", {}).get("metadata", {})
    found = metadata.get("review") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else None


def raster_layer(annotations: Annotations, base: Scan | None) -> LayerData:
    """Describe annotations as an image layer that is drawn when it is looked at, lying on a base."""
    scale, translate = frame_of(annotations, base)
    if annotations.parent is not None:
        extent = tuple(map(float, annotations.parent.shape[-2:]))
    elif base is not None:
        extent = tuple(float(base.shape[base.window_axes.index(a)]) for a in "yx")
    else:
        extent = tuple(map(float, annotations.bounds[:, 2:].max(0, initial=1.0)))
    canvas = Canvas(annotations, (extent[0], extent[1]))
    fine = tuple(s / FINEST for s in scale)
    meta = {
        "name": shapes_of(annotations).title,
        "scale": fine,
        "translate": tuple(t + s / 2 for t, s in zip(translate, fine, strict=True)),
        "rgb": True,
        "multiscale": True,
        "units": (long_unit("px" if base is None else base.unit),) * 2,
        "metadata": {"annotations": annotations, "canvas": canvas},
    }
    return canvas.levels, meta, "image"
