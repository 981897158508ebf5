"""Objects of a document as flat fields, and back to GeoJSON features; coordinates stay the text that they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import shapely

from dhlab.annotations.coordinates import dumps, make_geometries
from dhlab.annotations.features import class_name_of, to_annotations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.annotations.collection import Annotations

__all__ = [
    "CLASS",
    "GEOMETRY",
    "METADATA",
    "REVIEW",
    "Record",
    "Records",
    "annotate",
    "equal_geometries",
    "feature_bytes",
    "geometries_of",
    "geometry_bytes",
    "pack_fields",
    "to_feature",
    "to_record",
    "unpack_fields",
]

# Fields of one object by name. In memory the geometry is bytes of JSON, the class its name: what holds nothing but
# atoms costs the garbage collector nothing.
Record = dict[str, Any]
Records = Mapping[str, Mapping[str, Any]]
GEOMETRY, PROPERTIES, METADATA, OTHERS = "geometry", "properties/", "properties/metadata/", "feature/"
CLASS, REVIEW = "properties/classification", "properties/metadata/review"
COORDINATES = b',"coordinates":'
KNOWN = frozenset(("type", "id", "geometry", "properties"))
# QuPath writes hundredths of a pixel: what differs by less was not moved.
SAME_PX = 0.011


def geometry_bytes(geometry: Mapping[str, Any], span: bytes | None = None) -> bytes:
    """Return a geometry as JSON, its type first and its coordinates last; `span` is their text where it is at hand."""
    head = {"type": geometry.get("type"), **{k: v for k, v in geometry.items() if k not in ("type", "coordinates")}}
    if "coordinates" not in geometry:
        return dumps(head)
    return dumps(head)[:-1] + COORDINATES + (span or dumps(geometry["coordinates"])) + b"}"


def pack_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return fields as they are kept in memory, from JSON or from memory."""
    packed: Record = {}
    if isinstance(geometry := fields.get(GEOMETRY), dict):
        packed[GEOMETRY] = geometry_bytes(geometry)
    if isinstance(label := fields.get(CLASS), dict):
        packed[CLASS] = class_name_of(label)
    return {**fields, **packed} if packed else fields


def unpack_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return fields as JSON says them, ready for `orjson`."""
    unpacked: Record = {}
    if isinstance(geometry := fields.get(GEOMETRY), bytes):
        unpacked[GEOMETRY] = orjson.Fragment(geometry)
    if isinstance(name := fields.get(CLASS), str):
        unpacked[CLASS] = {"name": name}
    return {**fields, **unpacked} if unpacked else fields


def geometries_of(texts: Sequence[bytes], name: str = "the edit") -> NDArray[np.object_]:
    """Return ``(N,)`` shapely geometries of what `geometry_bytes` made.

    Raises
    ------
    BadFileError
        If one is no geometry, such as a polygon of two points; the message calls it a feature of `name`.
    """
    features, spans = _apart(texts)
    return make_geometries(features, spans, np.arange(len(texts)), name)


def equal_geometries(ones: Sequence[bytes], others: Sequence[bytes]) -> NDArray[np.bool_]:
    """Return ``(N,)`` whether geometries are the same, but for the rounding and order that other programs choose."""
    first, second = (shapely.normalize(geometries_of(texts)) for texts in (ones, others))
    return np.asarray(shapely.equals_exact(first, second, SAME_PX), bool)


def to_record(feature: Mapping[str, Any], span: bytes | None) -> Record:
    """Take a decoded feature apart into fields; `span` is the text of its coordinates, where that is at hand."""
    record: Record = {GEOMETRY: geometry_bytes(feature["geometry"], span)}
    if len(feature) > len(KNOWN):
        record.update((OTHERS + key, feature[key]) for key in feature if key not in KNOWN)
    for key, value in (feature.get("properties") or {}).items():
        if key == "metadata" and isinstance(value, dict) and value:
            record.update((METADATA + inner, content) for inner, content in value.items() if content is not None)
        elif key == "classification":
            if (name := class_name_of(value)) is not None:
                record[CLASS] = name
        elif value is not None and key != "childObjects":
            record[PROPERTIES + key] = value
    return record


def to_feature(key: str, record: Mapping[str, Any], labels: Records) -> dict[str, Any]:
    """Return an object as a GeoJSON feature as QuPath writes it; the geometry is still bytes of JSON.

    Parameters
    ----------
    key
        Its id.
    record
        Its fields.
    labels
        The classification of every class by name.
    """
    feature: dict[str, Any] = {"type": "Feature", "id": key, "geometry": record[GEOMETRY]}
    properties: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for field, value in record.items():
        if field == CLASS:
            properties["classification"] = labels[value]
        elif field.startswith(METADATA):
            metadata[field.removeprefix(METADATA)] = value
        elif field.startswith(PROPERTIES):
            properties[field.removeprefix(PROPERTIES)] = value
        elif field.startswith(OTHERS):
            feature[field.removeprefix(OTHERS)] = value
    feature["properties"] = {**properties, "metadata": metadata} if metadata else properties
    return feature


def feature_bytes(key: str, record: Mapping[str, Any], labels: Records) -> bytes:
    """Return `to_feature` as JSON."""
    return dumps(to_feature(key, {**record, GEOMETRY: orjson.Fragment(record[GEOMETRY])}, labels))


def annotate(records: Records, labels: Records) -> Annotations:
    """Return objects as annotations; polygons without an area are left out, invalid ones mended."""
    bare, spans = _apart([record[GEOMETRY] for record in records.values()])
    features = [to_feature(key, record, labels) for key, record in records.items()]
    for feature, shape in zip(features, bare, strict=True):
        feature["geometry"] = shape["geometry"]
    return to_annotations(features, spans, offset=(0.0, 0.0), strict=False, faults=Counter(), where=("the document", 0))


def _apart(texts: Sequence[bytes]) -> tuple[list[dict[str, Any]], list[bytes] | None]:
    """Return bare features and the texts of their coordinates; None if some hold geometries of their own instead."""
    cuts = [text.rfind(COORDINATES) for text in texts]
    if -1 in cuts:
        return [{"geometry": orjson.loads(text)} for text in texts], None
    heads = [_head(text[:cut]) for text, cut in zip(texts, cuts, strict=True)]
    spans = [text[cut + len(COORDINATES) : -1] for text, cut in zip(texts, cuts, strict=True)]
    return [{"geometry": head} for head in heads], spans


@lru_cache(1024)
def _head(text: bytes) -> dict[str, Any]:
    return orjson.loads(text + b"}")
