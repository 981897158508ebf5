"""What drawing tools do to geometries: brush, eraser, wand, split, merge; all in level-0 pixels (x right, y down)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import shapely

from dhlab.display import to_rgb
from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray
    from shapely.geometry.base import BaseGeometry

    from dhlab.scan import Scan

__all__ = [
    "brush",
    "cut_hole",
    "erase",
    "fill_holes",
    "merge",
    "simplify",
    "split",
    "wand",
]

# QuPath writes hundredths of a pixel: shapes on that grid stay valid when they are written.
GRID = 0.01
# A stroke is as smooth as a sixteenth of its radius can show.
SMOOTH = 16
# Pixels that the wand reads at most along one side, and the side of the texture that it looks past.
MOST_READ, TEXTURE = 4096, 11


def brush(geometry: BaseGeometry | None, path: ArrayLike, radius: float) -> BaseGeometry:
    """Paint a stroke, and add it to a shape.

    Parameters
    ----------
    geometry
        Polygon or multipolygon; None begins a new one.
    path
        ``(N, 2)`` positions (x, y) of the middle of the brush, at least one.
    radius
        Radius of the brush in level-0 pixels.

    Returns
    -------
    geometry
        Polygon, or multipolygon where the stroke does not touch the shape.

    Raises
    ------
    BadValueError
        If the radius is not positive, or a position is not finite.
    BadShapeError
        If the shape has no area, or the path is no list of positions.
    """
    return merge([stroke(path, radius), *([] if geometry is None else [_areal(geometry)])])


def erase(geometry: BaseGeometry, path: ArrayLike, radius: float) -> BaseGeometry | None:
    """Take a stroke away from a shape; return None if nothing is left. See `brush`."""
    return _some(shapely.difference(_areal(geometry), stroke(path, radius), grid_size=GRID))


def stroke(path: ArrayLike, radius: float) -> BaseGeometry:
    """Return what a round brush covers along a path. See `brush`."""
    points = _points(path, 1)
    if not (math.isfinite(radius) and radius > 0):
        raise BadValueError(f"radius {radius}; expected a positive number of pixels.")
    line = shapely.Point(points[0]) if (points == points[0]).all() else shapely.LineString(points)
    line = shapely.simplify(line, radius / SMOOTH)
    painted: BaseGeometry = shapely.set_precision(shapely.buffer(line, radius, quad_segs=8), GRID)
    return painted


def split(geometry: BaseGeometry, line: ArrayLike) -> list[BaseGeometry]:
    """Cut a shape along a line.

    Parameters
    ----------
    geometry
        Polygon, line, or several of them.
    line
        ``(N, 2)`` positions (x, y), at least two.

    Returns
    -------
    list
        The pieces, the largest first.

    Raises
    ------
    BadValueError
        If the line does not cut the shape apart.
    """
    cut = shapely.LineString(_points(line, 2))
    pieces: list[BaseGeometry] = []
    for part in shapely.get_parts(geometry):
        if part.geom_type == "Polygon":
            net = shapely.node(shapely.union_all([part.boundary, cut], grid_size=GRID))
            faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(net)))
            pieces += [face for face in faces if part.contains(face.representative_point())]
        else:
            pieces += shapely.get_parts(shapely.difference(part, cut)).tolist()
    if len(pieces) <= len(shapely.get_parts(geometry)):
        raise BadValueError("the line does not cut the shape; expected it to cross from edge to edge.")
    return sorted(pieces, key=lambda piece: (piece.area, piece.length), reverse=True)


def merge(geometries: Iterable[BaseGeometry]) -> BaseGeometry:
    """Join polygons into one shape.

    Parameters
    ----------
    geometries
        One or more polygons or multipolygons.

    Raises
    ------
    BadShapeError
        If one has no area, or there is none.
    """
    shapes = [_areal(geometry) for geometry in geometries]
    if not shapes:
        raise BadShapeError("no shapes to merge; expected at least one polygon.")
    return shapely.union_all(shapes, grid_size=GRID)


def simplify(geometry: BaseGeometry, distance: float) -> BaseGeometry:
    """Leave vertices out that move the outline by less than a distance in level-0 pixels; the shape stays valid."""
    if not (math.isfinite(distance) and distance >= 0):
        raise BadValueError(f"distance {distance}; expected a number of pixels that is not negative.")
    return shapely.simplify(geometry, distance)


def fill_holes(geometry: BaseGeometry) -> BaseGeometry:
    """Fill every hole of a polygon or multipolygon."""
    return merge(shapely.Polygon(part.exterior) for part in shapely.get_parts(_areal(geometry)))


def cut_hole(geometry: BaseGeometry, ring: ArrayLike) -> BaseGeometry | None:
    """Cut a hole into a polygon; return None if nothing is left.

    Parameters
    ----------
    geometry
        Polygon or multipolygon.
    ring
        ``(N, 2)`` positions (x, y) of the hole's outline, at least three.
    """
    hole = shapely.make_valid(shapely.Polygon(_points(ring, 3)), method="structure", keep_collapsed=False)
    return _some(shapely.difference(_areal(geometry), hole, grid_size=GRID))


def wand(
    scan: Scan,
    point: Sequence[float],
    *,
    tolerance: float = 12.0,
    pixel: float = 1.0,
    window: int = 1024,
    index: Mapping[str, int] | None = None,
) -> BaseGeometry | None:
    """Outline the region around a point whose colours are like the one there, whatever its fine texture.

    Parameters
    ----------
    scan
        Any scan with y and x.
    point
        Where to begin (x, y).
    tolerance
        Largest distance from the colour at the point, as people see it: CIE 1976 L*a*b*, where black and white are 100
        apart and about 2 can just be told.
    pixel
        Level-0 pixels per pixel that is looked at: those of the displayed level.
    window
        Side of the square around the point in which the region grows, in such pixels.
    index
        Position on further axes; the middle where it is not given.

    Returns
    -------
    geometry or None
        Polygon in level-0 pixels; None if the point lies outside the scan.

    Raises
    ------
    BadValueError
        If a number is out of range.

    References
    ----------
    Colorimetry, part 4: CIE 1976 L*a*b* colour space, ISO/CIE 11664-4:2019.
    """
    import cv2

    if not (np.isfinite([*point, tolerance, pixel]).all() and tolerance >= 0 and pixel > 0 and window >= 1):
        raise BadValueError(f"wand at {point}, tolerance {tolerance}, pixel {pixel}; expected positive numbers.")
    picture, (left, top), (across, down) = _look(scan, point, pixel, window, index or {})
    height, width = picture.shape[:2]
    column, row = int((point[0] - left) / across), int((point[1] - top) / down)
    if not (0 <= column < width and 0 <= row < height):
        return None
    # The median leaves edges where they are. What is smaller neither stops the region nor makes holes in it.
    smooth = cv2.medianBlur(picture, TEXTURE).astype(np.float32) / 255
    colours = cv2.cvtColor(smooth, cv2.COLOR_RGB2Lab)
    alike = np.linalg.norm(colours - colours[row, column], axis=-1) <= tolerance
    _, parts = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    inside = parts == parts[row, column]
    _, holes, found, _ = cv2.connectedComponentsWithStats((~inside).astype(np.uint8), connectivity=8)
    inside |= found[holes, cv2.CC_STAT_AREA] < TEXTURE**2
    return _outline(inside, (left, top), (across, down), (column, row))


def _look(
    scan: Scan, point: Sequence[float], pixel: float, window: int, index: Mapping[str, int]
) -> tuple[NDArray[np.uint8], tuple[float, float], tuple[float, float]]:
    """Return a picture of the square around a point, its corner (x, y), and level-0 pixels per pixel (x, y)."""
    import cv2

    y, x = (scan.window_axes.index(a) for a in "yx")
    levels = [i for i, scale in enumerate(scan.scales) if scale[x] <= pixel * 1.01]
    level = max(levels, key=lambda i: scan.scales[i][x], default=0)
    scales = scan.scales[level]
    side = min(window * pixel, MOST_READ * scales[x])
    starts = [int(index.get(a, n // 2)) for a, n in zip(scan.window_axes, scan.shape, strict=True)]
    sizes = [1] * len(starts)
    for axis, middle in ((y, point[1]), (x, point[0])):
        first, last = max(0.0, middle - side / 2), min(scan.shape[axis], middle + side / 2)
        starts[axis] = round(int(first / scales[axis]) * scales[axis])
        sizes[axis] = max(1, math.ceil((last - starts[axis]) / scales[axis]))
    array = scan.read(starts, sizes, level)
    flat = array.reshape([n for n, a in zip(array.shape, scan.axes, strict=True) if a in "cyx"])
    picture = to_rgb(flat, scan)
    step = max(1.0, pixel / scales[x])
    if step > 1.01:
        size = (max(1, round(sizes[x] / step)), max(1, round(sizes[y] / step)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return (
        np.ascontiguousarray(picture),
        (starts[x], starts[y]),
        (sizes[x] * scales[x] / picture.shape[1], sizes[y] * scales[y] / picture.shape[0]),
    )


def _outline(
    inside: NDArray[np.bool_], corner: tuple[float, float], pixel: tuple[float, float], seed: tuple[int, int]
) -> BaseGeometry:
    """Return the polygon of a mask that holds a pixel, along its pixels' edges, with their stairs straightened."""
    from dhlab.annotations.contours import STRAIGHTEN, pixel_polygons

    shapes = pixel_polygons(inside, np.ones(inside.shape, np.float32))[0]
    at = shapely.Point(seed[0] + 0.5, seed[1] + 0.5)
    (found,) = shapes[shapely.contains(shapes, at)][:1]
    smooth = shapely.simplify(found, STRAIGHTEN)
    return shapely.set_precision(shapely.transform(smooth, lambda xy: xy * pixel + corner), GRID)


def _points(path: ArrayLike, least: int) -> NDArray[np.float64]:
    try:
        points = np.asarray(path, float)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least:
        raise BadShapeError(f"a path of shape {points.shape}; expected at least {least} positions (x, y).")
    if not np.isfinite(points).all():
        raise BadValueError("a path with positions that are not finite numbers.")
    return points


def _areal(geometry: BaseGeometry) -> BaseGeometry:
    """Return polygons or multipolygons, valid; refuse everything else."""
    if geometry.geom_type not in ("Polygon", "MultiPolygon"):
        raise BadShapeError(f"a {geometry.geom_type}; expected a polygon: points and lines have no area to draw on.")
    if geometry.is_valid:
        return geometry
    return shapely.make_valid(geometry, method="structure", keep_collapsed=False)


def _some(geometry: BaseGeometry) -> BaseGeometry | None:
    """Return the polygons of a geometry, or None if there are none."""
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and part.area > 0]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
