"""GeoJSON as QuPath writes and reads it, streamed in both directions with flat memory."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import shapely

from dhlab.annotations.collection import RGB, Annotations, tell
from dhlab.annotations.coordinates import DEPTH, dumps, object_array
from dhlab.annotations.features import flatten, moved, to_annotations
from dhlab.annotations.scanner import feature_blocks, opened, without_collector
from dhlab.atomic import atomic_file
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from dhlab.scan import Scan

__all__ = ["geojson_bytes", "geojson_offset", "read_geojson_chunks", "write_geojson"]

ROWS = 20_000
# How shapely numbers the types; GeoJSON does not know its LinearRing (2).
TYPE_NAMES = {0: "Point", 1: "LineString", 2: "LineString", 3: "Polygon"} | {
    4: "MultiPoint",
    5: "MultiLineString",
    6: "MultiPolygon",
}


def geojson_offset(scan: Scan) -> tuple[float, float]:
    """Return the `offset` between QuPath's coordinates and those of a scan, (y, x) in level-0 pixels.

    QuPath counts from the corner of the scanned bounds (MRXS, SCN), OpenSlide from the corner of the whole image;
    see https://github.com/qupath/qupath/issues/1278. It is (0, 0) where the scan has no bounds.

    Parameters
    ----------
    scan
        A scan whose ``meta["bounds"]`` holds ``y, x, height, width`` in level-0 pixels, as a list or a mapping.
    """
    bounds = scan.meta.get("bounds")
    if not bounds:
        return 0.0, 0.0
    y, x = (bounds["y"], bounds["x"]) if isinstance(bounds, Mapping) else bounds[:2]
    return float(y), float(x)


def geojson_bytes(annotations: Annotations, *, offset: Sequence[float] = (0.0, 0.0), decimals: int = 2) -> bytes:
    """Return annotations as one GeoJSON text, UTF-8, for a viewer or a message.

    Parameters
    ----------
    annotations
        What to write.
    offset
        Subtracted from all positions, (y, x) in level-0 pixels.
    decimals
        Decimals of a coordinate.
    """
    return b"".join(_document([annotations], offset, decimals))


def write_geojson(
    path: str | os.PathLike[str],
    annotations: Annotations | Iterable[Annotations],
    *,
    offset: Sequence[float] = (0.0, 0.0),
    decimals: int = 2,
) -> Path:
    """Write GeoJSON as QuPath writes and reads it; chunks are streamed, so memory stays flat.

    Parameters
    ----------
    path
        Where to; a name ending in ``.gz`` is compressed. The file appears whole or not at all.
    annotations
        Annotations, or an iterator over chunks of them.
    offset
        Subtracted from all positions, (y, x) in level-0 pixels; see `geojson_offset`.
    decimals
        Decimals of a coordinate.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    target = Path(path).expanduser()
    chunks = [annotations] if isinstance(annotations, Annotations) else annotations
    with atomic_file(target) as partial, partial.open("wb") as raw:
        if target.suffix == ".gz":
            # No name and no time inside, so the same annotations give the same bytes.
            with gzip.GzipFile("", "wb", 4, raw, mtime=0) as file:
                file.writelines(_document(chunks, offset, decimals))
        else:
            raw.writelines(_document(chunks, offset, decimals))
    return target


def read_geojson_chunks(
    source: str | bytes | os.PathLike[str], *, offset: Sequence[float] = (0.0, 0.0), strict: bool = False
) -> Iterator[Annotations]:
    """Read GeoJSON of any size in chunks of some thousand features, with flat memory.

    Parameters
    ----------
    source
        File, or the text itself.
    offset
        Added to all positions, (y, x) in level-0 pixels; see `geojson_offset`.
    strict
        Raise on self-intersecting polygons instead of mending them.

    Yields
    ------
    Annotations
        The next features, in the order of the file; each chunk has its own class names.

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadFileError
        If it is not GeoJSON, is truncated, or a shape cannot be read; the message names the feature.

    Warns
    -----
    DHLabWarning
        At the end, if polygons were mended or features had no shape.
    """
    faults: Counter[str] = Counter()
    yield from read_chunks(source, offset=offset, strict=strict, faults=faults)
    tell(faults)


def read_chunks(
    source: str | bytes | os.PathLike[str], *, offset: Sequence[float], strict: bool, faults: Counter[str]
) -> Iterator[Annotations]:
    """Yield chunks as `read_geojson_chunks` does, and count in `faults` what was mended or left out."""
    first = 0
    with opened(source) as (file, name):
        blocks = feature_blocks(file, name)
        while True:
            # The many small objects of a block are made and gone again before the collector comes back.
            with without_collector():
                block = next(blocks, None)
                if block is None:
                    return
                features, spans = flatten(*block)
                part = to_annotations(features, spans, offset=offset, strict=strict, faults=faults, where=(name, first))
                first += len(features)
                del block, features, spans
            yield part


def _document(chunks: Iterable[Annotations], offset: Sequence[float], decimals: int) -> Iterator[bytes]:
    if not 0 <= decimals <= 12:
        raise BadValueError(f"decimals {decimals}; expected 0 to 12.")
    shift = (-float(offset[0]), -float(offset[1]))
    yield b'{"type":"FeatureCollection","features":['
    separator = b"\n"
    for chunk in chunks:
        for first in range(0, len(chunk), ROWS):
            yield separator + b",\n".join(_features(chunk[first : first + ROWS], shift, decimals))
            separator = b",\n"
    yield b"\n]}\n"


def _features(part: Annotations, shift: tuple[float, float], decimals: int) -> list[bytes]:
    """Return every feature as JSON, in QuPath's order of keys."""
    geometries = geometry_texts(part.geometries, shift, decimals)
    properties = _property_texts(part)
    lines = [
        b'{"type":"Feature","id":%b,"geometry":{%b},"properties":%b}' % texts
        for texts in zip(map(orjson.dumps, part.ids.tolist()), geometries, properties, strict=True)
    ]
    for row in np.flatnonzero(part.extras != None):  # noqa: E711 (elementwise)
        extra = part.extras[row]
        geometry = b"".join(b",%b:%b" % (dumps(k), dumps(v)) for k, v in extra.get("geometry", {}).items())
        inner = {
            key: moved(value, shift) if key == "nucleusGeometry" else value
            for key, value in extra.get("feature", {}).items()
        }
        feature = b"".join(b"%b:%b," % (dumps(k), dumps(v)) for k, v in inner.items())
        lines[row] = b'{"type":"Feature","id":%b,"geometry":{%b%b},%b"properties":%b}' % (
            orjson.dumps(part.ids[row]),
            geometries[row],
            geometry,
            feature,
            properties[row],
        )
    return lines


def geometry_texts(geometries: NDArray[np.object_], shift: tuple[float, float], decimals: int) -> list[bytes]:
    """Return ``"type":…,"coordinates":…`` of every geometry."""
    texts: list[bytes] = [b""] * len(geometries)
    types = shapely.get_type_id(geometries)
    for code in np.unique(types).tolist():
        rows = np.flatnonzero(types == code)
        if code == 7:  # GeometryCollection
            for row in rows.tolist():
                members = geometry_texts(np.array(geometries[row].geoms, object), shift, decimals)
                inner = b",".join(b"{%b}" % text for text in members)
                texts[row] = b'"type":"GeometryCollection","geometries":[%b]' % inner
            continue
        kind = TYPE_NAMES[code]
        chosen = geometries[rows]
        if code == 2:
            chosen = object_array([shapely.LineString(ring.coords) for ring in chosen])
        head = b'"type":"%b","coordinates":' % kind.encode()
        for row, text in zip(rows.tolist(), _coordinate_texts(chosen, DEPTH[kind], shift, decimals), strict=True):
            texts[row] = head + text
    return texts


def _coordinate_texts(
    geometries: NDArray[np.object_], depth: int, shift: tuple[float, float], decimals: int
) -> list[bytes]:
    """Return the nested coordinates of geometries of one type; numbers are made in one pass for all."""
    if shapely.has_z(geometries).any():
        geometries = shapely.force_2d(geometries)
    _, coordinates, offsets = shapely.to_ragged_array(geometries)
    # Adding zero turns -0.0 into 0.0.
    rounded = np.round(coordinates + np.array((shift[1], shift[0])), decimals) + 0.0
    nested: Any = rounded if depth == 1 else _split(rounded, offsets[0])
    for level in offsets[1:]:
        nested = _split(nested, level)
    text = orjson.dumps(nested if depth > 1 else list(nested), option=orjson.OPT_SERIALIZE_NUMPY)
    text = text.replace(b".0,", b",").replace(b".0]", b"]")
    opening, closing = b"[" * depth, b"]" * depth
    inner = text[depth + 1 : -depth - 1].split(closing + b"," + opening)
    return [opening + item + closing for item in inner]


def _split(items: Any, offsets: NDArray[np.integer[Any]]) -> list[Any]:
    edges = offsets.tolist()
    return [items[a:b] for a, b in pairwise(edges)]


def _property_texts(part: Annotations) -> list[bytes]:
    """Return the ``properties`` object of every annotation."""
    simple = (
        not part.measurements
        and all((getattr(part, name) == None).all() for name in ("names", "authors", "times"))  # noqa: E711 - of every element
        and not any(extra and "properties" in extra for extra in part.extras.tolist())
    )
    classes, kinds = part.classes.tolist(), part.kinds.tolist()
    labels = [classification_of(n, c) for n, c in zip(part.class_names, part.class_colors, strict=True)]
    if simple:

        @cache
        def head(index: int, kind: str) -> bytes:
            return dumps({"objectType": kind} | ({"classification": labels[index]} if index >= 0 else {}))[:-1]

        heads = map(head, classes, kinds)
        return [
            start + b"}" if score != score else b'%b,"measurements":{"score":%b}}' % (start, orjson.dumps(score))
            for start, score in zip(heads, part.scores.tolist(), strict=True)
        ]
    names, authors, times = part.names.tolist(), part.authors.tolist(), part.times.tolist()
    columns = [
        ("score", part.scores.tolist()),
        *((k, v.tolist()) for k, v in part.measurements.items() if k != "score"),
    ]
    texts = []
    for row, extra in enumerate(part.extras.tolist()):
        other = dict((extra or {}).get("properties", {}))
        metadata = {k: v for k, v in (("author", authors[row]), ("time", times[row])) if v is not None}
        rest = other.pop("metadata", {})
        metadata = metadata | rest if isinstance(rest, dict) else metadata or rest
        # QuPath takes a measurement that is missing for NaN; JSON itself knows none.
        measurements = {key: values[row] for key, values in columns if np.isfinite(values[row])}
        body: dict[str, Any] = {"objectType": kinds[row]}
        body |= {"name": names[row]} if names[row] is not None else {}
        body |= {"classification": labels[classes[row]]} if classes[row] >= 0 else {}
        body |= other
        body |= {"measurements": measurements} if measurements else {}
        body |= {"metadata": metadata} if metadata else {}
        texts.append(dumps(body))
    return texts


def classification_of(name: str, color: RGB) -> dict[str, Any]:
    """Return a class as QuPath writes it: a derived one by its parts."""
    parts = name.split(": ")
    return ({"name": name} if len(parts) == 1 else {"names": parts}) | {"color": list(color)}
