"""From the text of GeoJSON coordinates to geometries, many at a time."""

from __future__ import annotations

import json
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import shapely

from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

__all__ = ["DEPTH", "SPACE", "dumps", "make_geometries", "object_array", "values_of"]

# How many brackets stand around one item of every type.
DEPTH = {"Point": 1, "LineString": 2, "MultiPoint": 2, "Polygon": 3, "MultiLineString": 3, "MultiPolygon": 4}
SPACE = b" \t\r\n"
# Beyond this a pixel can no longer be told from its neighbour.
FURTHEST = 1e15
# Stand for the brackets and commas between points, rings, parts and items while numbers are taken apart.
MARKS = b"\1\2\3\4"


def dumps(value: Any) -> bytes:
    """Return JSON, UTF-8, compact."""
    try:
        return orjson.dumps(value)
    except TypeError:  # numbers beyond 64 bits
        return json.dumps(value, ensure_ascii=False).encode()


def values_of(items: list[Any], key: str) -> list[Any]:
    """Return what every mapping holds under a key; None where it lacks it or is no mapping."""
    try:
        return list(map(itemgetter(key), items))
    except (KeyError, TypeError):
        return [item.get(key) if isinstance(item, dict) else None for item in items]


def object_array(items: list[Any]) -> NDArray[np.object_]:
    """Return ``(N,)`` objects, whatever they are."""
    array = np.empty(len(items), object)
    array[:] = items
    return array


def make_geometries(
    features: list[dict[str, Any]], spans: list[bytes] | None, numbers: NDArray[np.int64], name: str
) -> NDArray[np.object_]:
    """Make the geometries of all features, type by type."""
    found = np.empty(len(features), object)
    types = values_of(values_of(features, "geometry"), "type")
    if not set(map(type, types)) <= {str}:
        types = [kind if isinstance(kind, str) else None for kind in types]
    for kind in dict.fromkeys(types):
        rows = [row for row, other in enumerate(types) if other == kind]
        if kind not in DEPTH:
            for row in rows:
                found[row] = _collection(features[row]["geometry"], f"feature {numbers[row]} of {name}")
            continue
        if spans is None:
            given = [features[row]["geometry"].get("coordinates") for row in rows]
            texts = list(map(dumps, given))
        else:
            texts = spans if len(rows) == len(spans) else [spans[row] for row in rows]
        fast = _parse(kind, texts)
        if fast is not None:
            found[rows] = fast
            continue
        for place, row in enumerate(rows):
            where = f"feature {numbers[row]} of {name}"
            value = given[place] if spans is None else _load(texts[place], where)
            found[row] = _build(kind, value, where)
    return found


def _load(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{where} has coordinates that are no JSON ({error}). Export it again.") from error


def _parse(kind: str, spans: list[bytes]) -> NDArray[np.object_] | None:
    """Make geometries of one type from the text of their coordinates, all at once; None if any is unusual."""
    depth = DEPTH[kind]
    # What separates points, rings, parts and items becomes the single bytes 1, 2, 3 and 4.
    apart = MARKS[depth - 1 : depth]
    text = apart.join(spans)
    if text.count(apart) != len(spans) - 1 or any(bytes([mark]) in text for mark in MARKS if mark != depth):
        return None
    if any(bytes([space]) in text for space in SPACE):
        spans = text.translate(None, SPACE).split(apart)
    if {span[:depth] for span in spans} != {b"[" * depth} or {span[-depth:] for span in spans} != {b"]" * depth}:
        return None
    text = apart.join([span[depth:-depth] for span in spans])
    if depth > 1:
        text = text.replace(b"],[", b"\1")
    for level in range(2, depth):
        if b"]" in text:
            text = text.replace(b"]%b[" % MARKS[level - 2 : level - 1], MARKS[level - 1 : level])
    values = np.frombuffer(text, np.uint8)
    places = np.flatnonzero(values < 45)  # marks and commas; a plus sign too, which is left to the slow way
    marks = values[places]
    if len(places) % 2 != 1 or (marks[0::2] != 44).any() or (marks[1::2] > 4).any():
        return None
    numbers = _numbers(text, places)
    if numbers is None:
        return None
    coordinates = numbers.reshape(-1, 2)
    ends = marks[1::2]
    offsets = [
        np.append(0, np.append(np.flatnonzero(ends >= level) + 1, len(coordinates))) for level in range(2, depth + 1)
    ]
    items = len(offsets[-1]) - 1 if offsets else len(coordinates)
    if items != len(spans):
        return None
    return _assemble(kind, coordinates, offsets)


def _numbers(text: bytes, places: NDArray[np.intp]) -> NDArray[np.float64] | None:
    """Return the numbers between separators, or None if one is malformed or not finite."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digits = text.translate(None, b"," + MARKS)
    edges = np.empty(len(places) + 2, np.int32)
    edges[0], edges[-1] = 0, len(digits)
    edges[1:-1] = places - np.arange(len(places))
    array = pa.StringArray.from_buffers(len(edges) - 1, pa.py_buffer(edges), pa.py_buffer(digits))
    try:
        cast = pc.cast(array, pa.float64())
    except pa.ArrowInvalid:
        return None
    # Arrow's own way to NumPy would import pandas.
    numbers = np.frombuffer(cast.buffers()[1], np.float64, len(cast), cast.offset * 8)
    return numbers if (np.abs(numbers) < FURTHEST).all() else None


def _assemble(
    kind: str, coordinates: NDArray[np.float64], offsets: list[NDArray[np.int64]]
) -> NDArray[np.object_] | None:
    """Make geometries of one type; `offsets` are where lines or rings, parts and items begin, counted in points."""
    if kind == "Point":
        return np.asarray(shapely.points(coordinates), object)
    # All offsets count points; shapely wants the outer ones to count the level below.
    nested = [np.searchsorted(inner, outer) for inner, outer in pairwise(offsets)]
    if kind in ("LineString", "MultiLineString") and (np.diff(offsets[0]) < 2).any():
        return None
    if kind in ("Polygon", "MultiPolygon"):
        starts, stops = offsets[0][:-1], offsets[0][1:]
        closed = (coordinates[starts] == coordinates[stops - 1]).all(-1)
        if (stops - starts - closed < 3).any():
            return None
        if not closed.all():
            open_stops = stops[~closed]
            coordinates = np.insert(coordinates, open_stops, coordinates[starts[~closed]], axis=0)
            offsets = [offsets[0] + np.append(0, np.cumsum(~closed))]
    return shapely.from_ragged_array(shapely.GeometryType[kind.upper()], coordinates, (offsets[0], *nested))


def _build(kind: str, coordinates: Any, where: str) -> BaseGeometry:
    """Make one geometry of decoded coordinates, and say what is wrong with them."""

    def point(value: Any) -> tuple[float, float]:
        plain = isinstance(value, list) and len(value) >= 2 and all(type(v) in (int, float) for v in value[:2])
        if not plain or not all(abs(v) < FURTHEST for v in value[:2]):
            text = str(value)
            raise BadFileError(
                f"{where} has the position {text[:60]}; expected two finite numbers [x, y]. Draw the shape again."
            )
        return float(value[0]), float(value[1])

    def line(value: Any, least: int) -> list[tuple[float, float]]:
        points = [point(v) for v in items(value)]
        distinct = len(points) - (least == 3 and len(points) > 1 and points[0] == points[-1])
        if distinct < least:
            what = "ring" if least == 3 else "line"
            raise BadFileError(
                f"{where} has a {what} of {distinct} points; expected at least {least}. Remove the shape."
            )
        return points

    def polygon(value: Any) -> shapely.Polygon:
        rings = [line(v, 3) for v in items(value)]
        return shapely.Polygon(rings[0], rings[1:])

    def items(value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise BadFileError(f"{where} has an empty or broken {kind}; expected nested lists of [x, y]. Remove it.")
        return value

    if kind == "Point":
        return shapely.Point(point(coordinates))
    if kind == "LineString":
        return shapely.LineString(line(coordinates, 2))
    if kind == "MultiPoint":
        return shapely.MultiPoint([point(v) for v in items(coordinates)])
    if kind == "MultiLineString":
        return shapely.MultiLineString([line(v, 2) for v in items(coordinates)])
    if kind == "Polygon":
        return polygon(coordinates)
    return shapely.MultiPolygon([polygon(v) for v in items(coordinates)])


def _collection(geometry: Any, where: str, depth: int = 0) -> BaseGeometry:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if isinstance(kind, str) and kind in DEPTH:
        return _build(kind, geometry.get("coordinates"), where)
    members = geometry.get("geometries") if kind == "GeometryCollection" else None
    if not isinstance(members, list) or not members or depth > 8:
        raise BadFileError(
            f"{where} has a geometry of type {kind!r}; expected {', '.join(DEPTH)} or GeometryCollection. Remove it."
        )
    return shapely.GeometryCollection([_collection(member, where, depth + 1) for member in members])
