"""From decoded GeoJSON features to annotations: QuPath's properties as columns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from dhlab.annotations.collection import KINDS, RGB, Annotations, mend
from dhlab.annotations.coordinates import make_geometries, object_array, values_of
from dhlab.display import class_color
from dhlab.errors import BadFileError, BadValueError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["check_features", "class_name_of", "color_of", "flatten", "moved", "to_annotations"]

# QuPath 0.2 kept the kind of an object in its id.
LEGACY_KINDS = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
KNOWN_PROPERTIES = frozenset(
    ("objectType", "object_type", "classification", "name", "measurements", "metadata", "childObjects")
)
KNOWN_FEATURE = frozenset(("type", "id", "geometry", "properties"))
KNOWN_GEOMETRY = frozenset(("type", "coordinates", "geometries"))


def flatten(features: list[Any], spans: list[bytes] | None) -> tuple[list[Any], list[bytes] | None]:
    """List nested child objects after their parents."""
    properties = values_of(features, "properties")
    if not any(isinstance(p, dict) and "childObjects" in p for p in properties):
        return features, spans
    flat: list[Any] = []
    waiting = list(reversed(features))
    while waiting:
        feature = waiting.pop()
        flat.append(feature)
        given = feature.get("properties") if isinstance(feature, dict) else None
        children = given.get("childObjects") if isinstance(given, dict) else None
        if isinstance(children, list):
            waiting.extend(reversed(children))
    return flat, None


def to_annotations(
    features: list[Any],
    spans: list[bytes] | None,
    *,
    offset: Sequence[float],
    strict: bool,
    faults: Counter[str],
    where: tuple[str, int],
) -> Annotations:
    """Turn decoded features into columns.

    Parameters
    ----------
    features
        Decoded features.
    spans
        Text of the coordinates of each; None if they are decoded too.
    offset
        Added to all positions, (y, x) in level-0 pixels.
    strict
        Raise on invalid polygons instead of mending them.
    faults
        Counts what was mended or left out.
    where
        Name of the file and number of the first feature, for messages.
    """
    name, first = where
    check_features(features, name, first)
    numbers = np.arange(first, first + len(features))
    if spans is None:
        present = [feature.get("geometry") is not None for feature in features]
        faults["features without a geometry were left out"] += present.count(False)
        features = [f for f, here in zip(features, present, strict=True) if here]
        numbers = numbers[np.array(present, bool)]
    geometries = make_geometries(features, spans, numbers, name)
    shift = (float(offset[0]), float(offset[1]))
    if any(shift):
        geometries = shapely.transform(geometries, lambda xy: xy + np.array(shift[::-1]))
    try:
        geometries, kept = mend(geometries, strict=strict, faults=faults)
    except BadValueError as error:
        row = int(np.argmin(shapely.is_valid(geometries)))
        raise BadFileError(
            f"feature {numbers[row]} of {name} is invalid: {shapely.is_valid_reason(geometries[row])}. Mend it in "
            "QuPath, or pass strict=False to have it mended."
        ) from error
    if not kept.all():
        features = [f for f, here in zip(features, kept.tolist(), strict=True) if here]
        numbers = numbers[kept]
    return _columns(features, geometries, shift=shift, where=(name, numbers))


def check_features(features: list[Any], name: str, first: int) -> None:
    """Raise `BadFileError` unless all are features, the first of which has the number `first`."""
    if (
        set(map(type, features)) <= {dict}
        and set(map(str, values_of(features, "type"))) == {"Feature"}
        and set(map(type, values_of(features, "properties"))) <= {dict, type(None)}
    ):
        return
    for number, feature in enumerate(features, first):
        if not isinstance(feature, dict) or feature.get("type", "Feature") != "Feature":
            raise BadFileError(f"element {number} of {name} is no GeoJSON Feature. Export it from QuPath as GeoJSON.")
        if not isinstance(feature.get("properties") or {}, dict):
            raise BadFileError(f"feature {number} of {name} has properties that are no object. Export it again.")


def _columns(
    features: list[dict[str, Any]],
    geometries: NDArray[np.object_],
    *,
    shift: tuple[float, float],
    where: tuple[str, NDArray[np.int64]],
) -> Annotations:
    properties: list[dict[str, Any]] = [p or {} for p in values_of(features, "properties")]
    # Sets of all keys are cheap, and spare a look at every feature for what none of them has.
    keys = set(chain.from_iterable(properties))
    unknown = keys - KNOWN_PROPERTIES or set(chain.from_iterable(features)) - KNOWN_FEATURE or "metadata" in keys
    unknown = unknown or set(chain.from_iterable(values_of(features, "geometry"))) - KNOWN_GEOMETRY
    classes, table = _classes(properties, where)
    measurements, scores = _measurements(properties, where)
    nothing = np.empty(0, object)
    authors = times = nothing
    if "metadata" in keys:
        metadata = [m if isinstance(m := p.get("metadata"), dict) else {} for p in properties]
        authors, times = (
            object_array([None if m.get(key) is None else str(m[key]) for m in metadata]) for key in ("author", "time")
        )
    names = nothing
    if "name" in keys:
        names = object_array([None if p.get("name") is None else str(p["name"]) for p in properties])
    extras = nothing
    if unknown:
        extras = object_array([_extras(f, p, shift) for f, p in zip(features, properties, strict=True)])
    given = values_of(features, "id")
    ids = [i if isinstance(i, str) and i and i not in LEGACY_KINDS else None for i in given]
    annotations = Annotations(
        geometries=geometries,
        classes=classes,
        class_names=tuple(table),
        class_colors=tuple(table.values()),
        scores=scores,
        names=names,
        ids=nothing if None in ids else object_array(ids),
        kinds=_kinds(properties, given),
        measurements=measurements,
        extras=extras,
        authors=authors,
        times=times,
    )
    if None in ids and any(ids):
        mixed = [own or made for own, made in zip(ids, annotations.ids.tolist(), strict=True)]
        return annotations.replace(ids=object_array(mixed))
    return annotations


def _kinds(properties: list[dict[str, Any]], ids: list[Any]) -> NDArray[np.object_]:
    kinds = values_of(properties, "objectType")
    if set(map(type, kinds)) <= {str} and set(kinds) <= set(KINDS):
        return object_array(kinds)
    found = []
    for kind, p, legacy in zip(kinds, properties, ids, strict=True):
        kind = str(kind or p.get("object_type") or legacy)
        found.append(kind if kind in KINDS else LEGACY_KINDS.get(kind, "annotation"))
    return object_array(found)


def _classes(
    properties: list[dict[str, Any]], where: tuple[str, NDArray[np.int64]]
) -> tuple[NDArray[np.int32], dict[str, RGB]]:
    """Return the class index of every feature, and the colour by class name."""
    labels = values_of(properties, "classification")
    try:
        names = [label["name"] for label in labels]
        plain = set(map(type, names)) <= {str}
    except (TypeError, KeyError):
        plain = False
    if not plain:
        names = [_class_name(label, row, where) for row, label in enumerate(labels)]
        labels = [label if isinstance(label, dict) else {} for label in labels]
    firsts = dict(zip(reversed(names), reversed(labels), strict=True))
    table: dict[str, RGB] = {}
    for name in dict.fromkeys(names):
        if name is not None:
            table[name] = color_of(firsts[name], len(table))
    index = {name: i for i, name in enumerate(table)} | {None: -1}
    return np.fromiter(map(index.__getitem__, names), np.int32, len(names)), table


def _class_name(label: Any, row: int, where: tuple[str, NDArray[np.int64]]) -> str | None:
    try:
        return class_name_of(label)
    except (AttributeError, TypeError) as error:
        raise BadFileError(
            f"feature {where[1][row]} of {where[0]} has a classification that is no object. Export it again."
        ) from error


def class_name_of(label: Any) -> str | None:
    """Return the name of a classification; the parts of a derived one are joined as QuPath shows them."""
    if label is None or isinstance(label, str):
        return label or None
    name = label.get("name")
    name = ": ".join(label["names"]) if name is None and label.get("names") else name
    return None if name is None else str(name)


def _extras(feature: dict[str, Any], properties: dict[str, Any], shift: tuple[float, float]) -> dict[str, Any] | None:
    found = {
        "properties": {key: value for key, value in properties.items() if key not in KNOWN_PROPERTIES},
        "geometry": {key: value for key, value in feature["geometry"].items() if key not in KNOWN_GEOMETRY},
        "feature": {
            key: moved(value, shift) if key == "nucleusGeometry" else value
            for key, value in feature.items()
            if key not in KNOWN_FEATURE
        },
    }
    metadata = properties.get("metadata")
    if isinstance(metadata, dict):
        metadata = {key: value for key, value in metadata.items() if key not in ("author", "time")}
    if metadata:
        found["properties"]["metadata"] = metadata
    found = {key: value for key, value in found.items() if value}
    return found or None


def color_of(label: Mapping[str, Any], index: int) -> RGB:
    """Return the colour of a classification, or else that of the class with an index."""
    color = label.get("color", label.get("colorRGB"))
    if isinstance(color, list) and len(color) >= 3 and all(isinstance(v, (int, float)) for v in color):
        red, green, blue = (min(255, max(0, int(v))) for v in color[:3])
        return red, green, blue
    if isinstance(color, int):  # packed as Java does, negative with full opacity
        return (color >> 16) & 255, (color >> 8) & 255, color & 255
    return class_color(index)


def _measurements(
    properties: list[dict[str, Any]], where: tuple[str, NDArray[np.int64]]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Return measurement columns and the scores among them."""
    given = values_of(properties, "measurements")
    columns: dict[str, NDArray[np.float64]] = {}
    names = set(chain.from_iterable(given)) if set(map(type, given)) == {dict} else set()
    if names and {len(m) for m in given} == {len(names)}:
        every = {key: values_of(given, key) for key in given[0]}
        if all(set(map(type, values)) <= {int, float, type(None)} for values in every.values()):
            columns = {key: np.array(values, float) for key, values in every.items()}
            return columns, columns.pop("score", np.full(len(properties), np.nan))
    for row, measured in enumerate(given):
        if not measured:
            continue
        try:
            pairs = measured.items() if isinstance(measured, dict) else [(m["name"], m["value"]) for m in measured]
            for key, value in pairs:
                if key not in columns:
                    columns[key] = np.full(len(properties), np.nan)
                columns[key][row] = np.nan if value is None else float(value)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BadFileError(
                f"feature {where[1][row]} of {where[0]} has measurements that are not numbers by name. Export it again."
            ) from error
    return columns, columns.pop("score", np.full(len(properties), np.nan))


def moved(geometry: Any, shift: tuple[float, float]) -> Any:
    """Move raw GeoJSON by ``(y, x)``."""
    if not any(shift) or not isinstance(geometry, Mapping):
        return geometry

    def move(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], (int, float)):
            return [round(value[0] + shift[1], 6), round(value[1] + shift[0], 6), *value[2:]]
        return [move(item) for item in value] if isinstance(value, list) else value

    return {key: move(value) if key == "coordinates" else value for key, value in geometry.items()}
