"""Rows of a Shapes layer back to geometries: exact where nothing was edited, holes and several parts included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from dhlab.annotations import Annotations
from dhlab.annotations.coordinates import object_array
from dhlab.display import class_color
from dhlab.view.layers import UNCLASSIFIED_NAME, outlines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

__all__ = ["Row", "collect", "move_copies", "to_geometry"]

# Shape type as napari calls it, and (N, 2) vertices (y, x) in level-0 pixels; napari keeps 32 bits of each.
Row = tuple[str, "NDArray[Any]"]

ELLIPSE_VERTICES = 64
MEMBERS: dict[str, tuple[str, Any]] = {
    "MultiPoint": ("Point", shapely.MultiPoint),
    "MultiLineString": ("LineString", shapely.MultiLineString),
}


def to_geometry(rows: Sequence[Row], original: BaseGeometry | None = None) -> BaseGeometry:
    """Return the geometry that rows draw.

    Parameters
    ----------
    rows
        Rows of one object, as `dhlab.view.layers.outlines` makes them, edited or not.
    original
        What the object was. It is returned itself where its rows are unchanged; where some vertices moved, the others
        keep their exact positions.

    Returns
    -------
    shapely geometry
        In level-0 pixels (x, y); empty if nothing with an extent is left.
    """
    before = [] if original is None else list(outlines(original))
    if original is not None and _same(rows, before):
        return original
    exact = {
        (float(np.float32(y)), float(np.float32(x))): (y, x) for _, vertices in before for y, x in vertices.tolist()
    }
    kind = "" if original is None else original.geom_type
    parts = []
    for shape, vertices in rows:
        places = [exact.get((y, x), (round(y, 2), round(x, 2))) for y, x in vertices.tolist()]
        part = _part(shape, np.array(places)[:, ::-1], is_point="Point" in kind)
        if not part.is_empty:
            parts.append(part)
    member, gather = MEMBERS.get(kind, ("", None))
    if {part.geom_type for part in parts} == {member}:
        return gather(parts)
    if len(parts) < 2:
        return parts[0] if parts else shapely.Polygon()
    return shapely.GeometryCollection(parts)


def _same(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    return len(rows) == len(others) and all(
        kind == other and np.array_equal(np.float32(vertices), np.float32(places))
        for (kind, vertices), (other, places) in zip(rows, others, strict=True)
    )


def _part(kind: str, xy: NDArray[Any], *, is_point: bool) -> BaseGeometry:
    """Return what one row draws."""
    if kind == "ellipse" and is_point:
        return shapely.Point(xy.mean(0))
    if kind == "ellipse":
        across, down = (xy[1] - xy[0]) / 2, (xy[3] - xy[0]) / 2
        angles = np.linspace(0, 2 * np.pi, ELLIPSE_VERTICES, endpoint=False)[:, None]
        return shapely.Polygon(np.round(xy.mean(0) + np.cos(angles) * across + np.sin(angles) * down, 2))
    if kind in ("path", "line"):
        return shapely.LineString(xy) if len(np.unique(xy, axis=0)) > 1 else shapely.LineString()
    rings = rings_of(xy)
    nested = _nested(rings)
    if nested.is_valid:
        return nested
    whole: BaseGeometry = shapely.Polygon()
    for ring in rings:
        polygon = shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)
        # Even-odd, as it is drawn: what lies in two rings is outside.
        whole = polygon if whole.is_empty else shapely.symmetric_difference(whole, polygon)
    return whole


def _nested(rings: Sequence[NDArray[Any]]) -> BaseGeometry:
    """Return rings in their order: one inside the shell before it is a hole, any other a shell."""
    shells: list[tuple[NDArray[Any], list[NDArray[Any]]]] = []
    for ring in rings:
        if shells and shapely.covers(shapely.Polygon(shells[-1][0]), shapely.LinearRing(ring)):
            shells[-1][1].append(ring)
        else:
            shells.append((ring, []))
    parts = [shapely.Polygon(shell, holes) for shell, holes in shells]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def rings_of(walk: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the closed rings of a walk, ``(N, 2)`` each: what is left without the edges that are walked twice."""
    points = [tuple(point) for point in walk.tolist()]
    edges = [(a, b) for a, b in zip(points, points[1:] + points[:1], strict=True) if a != b]
    times: dict[frozenset[Any], int] = {}
    for edge in edges:
        times[frozenset(edge)] = times.get(frozenset(edge), 0) + 1
    chains: list[list[Any]] = []
    for a, b in edges:
        if times[frozenset((a, b))] % 2 == 0:
            continue
        if not chains or chains[-1][-1] != a or chains[-1][0] == a:
            chains.append([a])
        chains[-1].append(b)
    return [np.array(chain) for chain in chains if len(chain) > 3]


def move_copies(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """Return vertices of which every copy moved too: the joint of a walk is passed several times, but dragged once.

    Parameters
    ----------
    old, new
        ``(N, 2)`` vertices before and after.
    """
    if old.shape != new.shape or (old != new).any(1).all():
        return new
    result = new.copy()
    for row in np.flatnonzero((old != new).any(1)).tolist():
        result[(old == old[row]).all(1)] = new[row]
    return result


def collect(rows: Sequence[Row], ids: Sequence[str], classes: Sequence[str], *, source: Annotations) -> Annotations:
    """Return what a Shapes layer shows as annotations.

    Parameters
    ----------
    rows
        Rows of the layer.
    ids
        Id of the object of each row; empty, or one that is taken already, for what was drawn in napari.
    classes
        Class of each row; what stands for none, or empty text, is none.
    source
        What the layer was made of: whatever was not edited is taken from there as it is.
    """
    places = {str(name): i for i, name in enumerate(source.ids)}
    wanted = {i: len(list(outlines(source.geometries[i]))) for i in set(places.values())}
    grouped: dict[int, list[int]] = {}
    fresh: list[list[int]] = []
    for row, name in enumerate(ids):
        place = places.get(name)
        if place is None or len(grouped.get(place, ())) >= wanted[place]:
            fresh.append([row])
        else:
            grouped.setdefault(place, []).append(row)
    kept = sorted(grouped)
    shapes = [to_geometry([rows[r] for r in grouped[i]], source.geometries[i]) for i in kept]
    shapes += [to_geometry([rows[r] for r in group]) for group in fresh]
    firsts = [grouped[i][0] for i in kept] + [group[0] for group in fresh]
    table = dict(zip(source.class_names, source.class_colors, strict=True))
    names = [None if classes[r] in ("", UNCLASSIFIED_NAME) else classes[r] for r in firsts]
    for known in names:
        if known is not None:
            table.setdefault(known, class_color(len(table)))
    number = {known: i for i, known in enumerate([*table])} | {None: -1}
    old = source[kept].replace(
        geometries=object_array(shapes[: len(kept)]),
        classes=np.array([number[n] for n in names[: len(kept)]], np.int32),
        class_names=tuple(table),
        class_colors=tuple(table.values()),
    )
    new = Annotations.from_geometries(shapes[len(kept) :], names[len(kept) :], colors=table).on(source.parent)
    return Annotations.concat([old, new])
