"""From polygons to label maps: exact at pixel centres, holes kept, all polygons at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely

from dhlab.errors import BadShapeError, BadValueError
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dhlab.annotations.collection import Annotations

__all__ = ["draw", "fill"]

# Crossings of edges with rows that are sorted at once: bounds memory.
CROSSINGS = 4_000_000
# Spans longer than this are written one by one, shorter ones pixel by pixel but all at once.
LONG_SPAN = 48
MOST_PIXELS = 1 << 33


def draw(
    annotations: Annotations,
    *,
    spacing: float | Sequence[float] | None,
    classes: Sequence[str] | None,
    region: tuple[Sequence[float], Sequence[float]] | None,
    order: Literal["size", "given"],
    binary: bool = False,
) -> Scan:
    """Draw annotations as `Annotations.rasterize` and `Annotations.mask` describe."""
    if order not in ("size", "given"):
        raise BadValueError(f"order {order!r}; expected 'size' or 'given'.")
    parent = annotations.parent
    pixel = np.array(parent.spacing[-2:] if parent else (1.0, 1.0), float)
    wanted = np.asarray(pixel if spacing is None else spacing, float)
    if wanted.shape not in ((), (2,)) or not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise BadValueError(f"spacing {spacing}; expected one or two (y, x) positive numbers in {annotations.unit}.")
    wanted = np.broadcast_to(wanted, (2,))
    start, size = _window(annotations, region)
    shape = np.maximum(1, np.ceil(size * pixel / wanted - 1e-6))
    if shape.prod() > MOST_PIXELS:
        raise BadValueError(
            f"a label map of {shape[0]:.0f} × {shape[1]:.0f} px is too large for memory; draw with a coarser spacing "
            f"than {wanted.tolist()} {annotations.unit}, or a smaller region."
        )
    names = list(annotations.class_names if classes is None else classes)
    labels = np.zeros(len(annotations.class_names) + 1, np.int64)  # the last stands for no class
    for label, name in enumerate(names):
        labels[annotations.class_index(name)] = 1 if binary else label + 1
    labels[-1] = binary and classes is None
    if len(names) > 65535:
        raise BadValueError(f"{len(names)} classes; a label map holds at most 65535.")
    picture = np.zeros(shape.astype(int), np.uint8 if binary or len(names) <= 255 else np.uint16)
    values = labels[annotations.classes]
    bounds = annotations.bounds
    touched = (values > 0) & (shapely.get_dimensions(annotations.geometries) == 2)
    touched &= (bounds[:, :2] < start + size).all(-1) & (bounds[:, 2:] > start).all(-1)
    rows = np.flatnonzero(touched)
    if order == "size":
        rows = rows[np.argsort(-shapely.area(annotations.geometries[rows]), kind="stable")]
    scale = pixel / wanted
    for first in range(0, len(rows), 65_536):
        part = rows[first : first + 65_536]
        fill(picture, annotations.geometries[part], values[part], start=start, scale=scale)
    scan = Scan.from_array(
        picture,
        "yx",
        spacing=wanted.tolist(),
        unit=annotations.unit,
        name=f"{parent.name} {'mask' if binary else 'labels'}" if parent else ("mask" if binary else "labels"),
        kind="mask" if binary else "labels",
    )
    meta = {**scan.meta, "classes": names}
    return scan.replace(origin=tuple((start * pixel).tolist()), parent=parent, meta=meta)


def fill(
    picture: NDArray[Any],
    geometries: NDArray[np.object_],
    values: NDArray[Any],
    *,
    start: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> None:
    """Draw polygons over one another: a pixel is filled if its centre lies inside.

    On an edge, the upper and the left one counts as inside, so polygons that share an edge neither overlap nor gape.

    Parameters
    ----------
    picture
        ``(height, width)`` array to draw into.
    geometries
        ``(N,)`` polygons and multipolygons, later ones over earlier ones.
    values
        ``(N,)`` value of each.
    start
        ``(2,)`` corner (y, x) of the picture in the polygons' coordinates.
    scale
        ``(2,)`` pixels per unit of the polygons' coordinates, (y, x).
    """
    for owner, row, column in _crossings(picture.shape, geometries, start, scale):
        left, right = column[0::2], column[1::2]
        some = right > left
        lines, left, right, value = row[0::2][some], left[some], right[some], values[owner[0::2][some]]
        lengths = right - left
        if lengths.size and lengths.mean() > LONG_SPAN:
            spans = zip(lines.tolist(), left.tolist(), right.tolist(), value.tolist(), strict=True)
            for y, a, b, v in spans:
                picture[y, a:b] = v
            continue
        places = np.repeat(lines * picture.shape[1] + left, lengths)
        places += np.arange(len(places)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        picture.reshape(-1)[places] = np.repeat(value, lengths)


def _crossings(
    shape: tuple[int, ...],
    geometries: NDArray[np.object_],
    start: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield owner, row and first column right of every crossing of an edge with a row of pixel centres, sorted."""
    rings, ring_owner = _rings(geometries)
    points, point_ring = shapely.get_coordinates(rings, return_index=True)
    # Rows and columns are counted in pixel centres from here on.
    y = (points[:, 1] - start[0]) * scale[0] - 0.5
    x = (points[:, 0] - start[1]) * scale[1] - 0.5
    edges = np.flatnonzero(point_ring[:-1] == point_ring[1:])
    first = np.clip(np.ceil(np.minimum(y[edges], y[edges + 1])), 0, shape[0]).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y[edges], y[edges + 1])), 0, shape[0]).astype(np.int64)
    counts = last - first
    owner = ring_owner[point_ring[edges]]
    keep = counts > 0
    edges, first, counts, owner = edges[keep], first[keep], counts[keep], owner[keep]
    slope = (x[edges + 1] - x[edges]) / (y[edges + 1] - y[edges])
    total = np.cumsum(counts)
    low = 0
    while low < len(edges):
        # Cut between polygons only: the crossings of one belong together.
        high = int(np.searchsorted(total, (total[low - 1] if low else 0) + CROSSINGS, side="right"))
        high = max(high, low + 1)
        if high < len(edges):
            before = int(np.searchsorted(owner, owner[high], side="left"))
            high = before if before > low else int(np.searchsorted(owner, owner[low], side="right"))
        part = slice(low, high)
        number = counts[part]
        row = np.repeat(first[part], number)
        row += np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number)
        at = np.repeat(x[edges[part]], number) + (row - np.repeat(y[edges[part]], number)) * np.repeat(
            slope[part], number
        )
        column = np.clip(np.ceil(at), 0, shape[1]).astype(np.int64)
        whose = np.repeat(owner[part], number)
        # One key sorts faster than three; polygon, then row, then column.
        width, height = shape[1] + 1, shape[0]
        if (int(whose[-1]) - int(whose[0]) + 1) * height * width < 2**62:
            key = np.sort(((whose - whose[0]) * height + row) * width + column)
            column, key = key % width, key // width
            yield key // height + whose[0], key % height, column
        else:
            by = np.lexsort((column, row, whose))
            yield whose[by], row[by], column[by]
        low = high


def _rings(geometries: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    parts, part_owner = shapely.get_parts(geometries, return_index=True)
    while (shapely.get_type_id(parts) > 3).any():  # multipolygons within collections
        parts, inner = shapely.get_parts(parts, return_index=True)
        part_owner = part_owner[inner]
    flat = shapely.get_type_id(parts) == 3
    parts, part_owner = parts[flat], part_owner[flat]
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    return rings, part_owner[ring_part]


def _window(
    annotations: Annotations, region: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if region is not None:
        start, size = (np.asarray(v, float) for v in region)
        if start.shape != (2,) or size.shape != (2,):
            raise BadShapeError(f"region {region}; expected ((y, x), (height, width)) in level-0 pixels.")
        if not (np.isfinite(start).all() and np.isfinite(size).all() and (size > 0).all()):
            raise BadValueError(f"region {region}; expected a finite start and a positive size in level-0 pixels.")
        return start, size
    if annotations.parent:
        return np.zeros(2), np.array(annotations.parent.shape[-2:], float)
    if not len(annotations):
        raise BadValueError("neither shapes nor a parent say how large the label map is; pass region= or parent=.")
    far = annotations.bounds[:, 2:].max(0)
    if (far <= 0).any():
        raise BadValueError(f"all shapes lie outside the picture (furthest corner {far.tolist()}); pass region=.")
    return np.zeros(2), np.array([math.ceil(v) for v in far], float)
