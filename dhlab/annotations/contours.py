"""From heat maps and masks to polygons that follow the pixels exactly, part by part and stitched."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import shapely

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dhlab.scan import Scan

__all__ = ["outline", "pixel_polygons"]

# Three quarters of a pixel is just more than what straightens a staircase at 45 degrees.
STRAIGHTEN = 0.75


def outline(
    heat: Scan, class_name: str, *, threshold: float, min_area: float, simplify: float | None, band: int
) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Return polygons in level-0 pixels of the parent and their mean heat; see `Annotations.from_heatmap`."""
    if [a for a in heat.axes if a != "c"] != ["y", "x"]:
        raise BadShapeError(f"{heat.name!r} has axes {heat.axes!r}; expected a plane ('yx' or 'cyx').")
    if not np.isfinite(threshold):
        raise BadValueError(f"threshold {threshold}; expected a finite number.")
    for name, value in (("min_area", min_area), ("simplify", simplify or 0.0)):
        if not (np.isfinite(value) and value >= 0):
            raise BadValueError(f"{name} {value}; expected a finite number that is not negative.")
    if band < 1:
        raise BadValueError(f"band {band}; expected at least 1 pixel.")
    polygons, sums, counts, seams = [], [], [], []
    for corner, inside, values in _parts(heat, class_name, threshold, band):
        shapes, total, number = pixel_polygons(inside, values)
        if not len(shapes):
            continue
        bounds = shapely.bounds(shapes)
        height, width = inside.shape
        # A shape on an edge that another part shares goes on there.
        far_y, far_x = (n - c for n, c in zip(heat.shape, corner, strict=True))
        seam = (bounds[:, 0] == 0) & (corner[1] > 0) | (bounds[:, 1] == 0) & (corner[0] > 0)
        seam |= (bounds[:, 2] == width) & (width < far_x) | (bounds[:, 3] == height) & (height < far_y)
        polygons.append(shapely.transform(shapes, partial(np.add, np.array((corner[1], corner[0]), float))))
        sums.append(total)
        counts.append(number)
        seams.append(seam)
    if not polygons:
        return np.empty(0, object), np.empty(0)
    shapes, total, number = _stitch(*(np.concatenate(v) for v in (polygons, sums, counts, seams)))
    y, x = _first_pixels(shapes)
    order = np.lexsort((x, y))
    shapes, total, number = shapely.normalize(shapes[order]), total[order], number[order]
    pixel = np.array(heat.spacing)
    large = number * pixel.prod() >= min_area
    shapes, scores = shapes[large], np.round(total[large] / number[large], 4)
    tolerance = STRAIGHTEN if simplify is None else simplify / float(np.sqrt(pixel.prod()))
    if tolerance > 0 and len(shapes):
        shapes = _simplify(shapes, tolerance)
    return shapely.transform(shapes, lambda xy: _to_parent(heat, xy)), scores


def pixel_polygons(
    inside: NDArray[np.bool_], values: NDArray[np.float32]
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.float64]]:
    """Return the outlines of the regions of a mask, along the edges of its pixels.

    Parameters
    ----------
    inside
        ``(height, width)`` mask.
    values
        ``(height, width)`` float32 to sum up in every region.

    Returns
    -------
    polygons, sums, counts
        ``(N,)`` valid polygons with holes in (x, y) pixel corners, one per region of pixels that share edges; the sum
        of `values` and the number of pixels in each.
    """
    import cv2

    if not inside.any():
        return np.empty(0, object), np.empty(0), np.empty(0)
    # OpenCV walks through pixel centres; at twice the size every corner of a walk tells which pixel corner is meant.
    double = np.repeat(np.repeat(inside.view(np.uint8), 2, 0), 2, 1)
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    lengths = np.array([len(c) for c in contours])
    points = (np.concatenate(contours)[:, 0].astype(np.int64) + 1) // 2
    outer = np.asarray(hierarchy)[0, :, 3]
    polygons = _polygons(points, lengths, np.where(outer < 0, np.arange(len(outer)), outer), outer < 0)
    bad = ~shapely.is_valid(polygons)
    if bad.any():  # regions that touch themselves or others at a corner
        mended = shapely.make_valid(polygons[bad])
        polygons = np.concatenate([polygons[~bad], shapely.get_parts(mended)])
        polygons = polygons[shapely.get_type_id(polygons) == 3]
    count, labels = cv2.connectedComponents(inside.view(np.uint8), connectivity=4)
    flat = labels.reshape(-1)
    sums = np.bincount(flat, values.reshape(-1), count)
    counts = np.bincount(flat, minlength=count).astype(float)
    y, x = _first_pixels(polygons)
    region = labels[y, x]
    return polygons, sums[region], counts[region]


def _parts(
    heat: Scan, class_name: str, threshold: float, band: int
) -> Iterator[tuple[tuple[int, int], NDArray[np.bool_], NDArray[np.float32]]]:
    """Yield corner, mask and heat (0 to 1) of every part of a plane."""
    level, channel, label = heat.levels[0], None, 0
    if "c" in heat.axes:
        if class_name not in heat.channels:
            raise UnknownNameError(f"no class {class_name!r} in {heat.name!r}.{suggest(class_name, heat.channels)}")
        channel = heat.channels.index(class_name)
    elif heat.kind == "labels":
        classes = [str(name) for name in heat.meta.get("classes", ())]
        if class_name not in classes:
            raise UnknownNameError(f"no class {class_name!r} in {heat.name!r}.{suggest(class_name, classes)}")
        label = classes.index(class_name) + 1
    height, width = heat.shape
    for y in range(0, height, band):
        for x in range(0, width, band):
            window = {"y": slice(y, min(y + band, height)), "x": slice(x, min(x + band, width)), "c": channel}
            pixels = np.asarray(level[tuple(window[a] for a in heat.axes)])
            if heat.kind in ("labels", "mask"):
                inside = pixels == label if heat.kind == "labels" else pixels != 0
                values = inside.astype(np.float32)
            else:
                values = pixels.astype(np.float32)
                if pixels.dtype == np.uint8:
                    values /= 255
                inside = values >= np.float32(threshold)  # False for NaN
            yield (y, x), np.ascontiguousarray(inside), values


def _polygons(
    points: NDArray[np.int64], lengths: NDArray[np.int64], owner: NDArray[np.int64], is_shell: NDArray[np.bool_]
) -> NDArray[np.object_]:
    """Make polygons of rings; `owner` names the shell of each."""
    ring = np.repeat(np.arange(len(lengths)), lengths)
    # Shells first, each followed by its holes.
    order = np.lexsort((~is_shell, owner))
    place = np.empty(len(lengths), np.int64)
    place[order] = np.arange(len(order))
    by_ring = np.argsort(place[ring], kind="stable")
    points, ring = points[by_ring], place[ring][by_ring]
    starts = np.append(0, np.cumsum(lengths[order]))
    before = np.arange(len(points)) - 1
    before[starts[:-1]] = starts[1:] - 1
    distinct = (points != points[before]).any(-1)
    points, ring = points[distinct], ring[distinct]
    sizes = np.bincount(ring, minlength=len(lengths))
    starts = np.append(0, np.cumsum(sizes))
    closed = np.insert(points.astype(float), starts[1:], points[starts[:-1]], axis=0)
    shells = np.append(np.flatnonzero(is_shell[order]), len(order))
    offsets = (starts + np.arange(len(starts)), shells)
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, closed, offsets)


def _first_pixels(polygons: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of the first pixel of every polygon, in reading order: it lies inside."""
    points, owner = shapely.get_coordinates(shapely.get_exterior_ring(polygons), return_index=True)
    points = np.rint(points).astype(np.int64)
    width = int(points[:, 0].max()) + 1
    key = points[:, 1] * width + points[:, 0]
    starts = np.searchsorted(owner, np.arange(len(polygons)))
    least = np.minimum.reduceat(key, starts)
    return least // width, least % width


def _stitch(
    polygons: NDArray[np.object_],
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    seams: NDArray[np.bool_],
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.float64]]:
    """Join what the borders between parts cut."""
    if not seams.any():
        return polygons, sums, counts
    pieces = polygons[seams]
    joined = shapely.get_parts(shapely.union_all(pieces))
    # The border leaves vertices on straight edges; from a corner on, simplifying by nothing drops just those.
    joined = shapely.simplify(shapely.normalize(joined), 0.0)
    y, x = _first_pixels(pieces)
    inner = shapely.points(x + 0.5, y + 0.5)
    piece, whole = shapely.STRtree(joined).query(inner, predicate="within")
    total, number = np.zeros(len(joined)), np.zeros(len(joined))
    np.add.at(total, whole, sums[seams][piece])
    np.add.at(number, whole, counts[seams][piece])
    return (
        np.concatenate([polygons[~seams], joined]),
        np.concatenate([sums[~seams], total]),
        np.concatenate([counts[~seams], number]),
    )


def _simplify(polygons: NDArray[np.object_], tolerance: float) -> NDArray[np.object_]:
    """Drop vertices; a polygon that would vanish or turn invalid keeps its pixels."""
    simple = shapely.simplify(polygons, tolerance, preserve_topology=True)
    bad = ~shapely.is_valid(simple) | shapely.is_empty(simple) | (shapely.get_type_id(simple) != 3)
    # Small shapes have little to lose and much to be bent by.
    bad |= shapely.area(simple) < 0.5 * shapely.area(polygons)
    simple[bad] = polygons[bad]
    return simple


def _to_parent(heat: Scan, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn (x, y) in heat map pixels into level-0 pixels of the parent, through physical positions."""
    if heat.parent is None:
        return xy
    here, there = np.array(heat.spacing[::-1]), np.array(heat.parent.spacing[::-1][:2])
    moved: NDArray[np.float64] = (xy * here + np.array(heat.origin[::-1])) / there
    return moved
