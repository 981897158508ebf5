"""What may become an edit: fields that exist, geometries that are shapes, classes and reviews that mean something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from dhlab.annotations.edits import Change
from dhlab.annotations.features import class_name_of, color_of
from dhlab.annotations.geojson import geometry_texts
from dhlab.annotations.records import (
    CLASS,
    GEOMETRY,
    METADATA,
    OTHERS,
    PROPERTIES,
    REVIEW,
    geometries_of,
    geometry_bytes,
)
from dhlab.errors import BadFileError, BadValueError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dhlab.annotations.collection import RGB
    from dhlab.annotations.registers import State

__all__ = ["REVIEWS", "check_changes", "check_color", "to_geometry_bytes"]

REVIEWS = ("proposed", "accepted", "rejected")
LONGEST_KEY = 200
USUAL = frozenset(("exists", GEOMETRY, CLASS, REVIEW))
DECIMALS = 2


def check_changes(
    wanted: Sequence[Change | Mapping[str, Any]], state: State, created: Mapping[str, Any]
) -> tuple[list[Change], str]:
    """Return the changes that are wanted as they can be logged, and what a person should know of them.

    What is the case already is left out, what was there before is noted, invalid polygons are mended, and a class that
    nobody knows is made.

    Parameters
    ----------
    wanted
        Changes, or mappings ``{"object": id, "after": {field: value}}`` as fronts send them; what they say of
        ``before`` does not count.
    state
        What there is.
    created
        Fields that a new object gets where it lacks them.

    Raises
    ------
    BadValueError
        If a change is malformed or a geometry is no shape.
    UnknownNameError
        If there is no such object.
    """
    changes: list[Change] = []
    fresh: dict[str, RGB] = {}
    seen: set[str] = set()
    known = state.labels()
    for item in wanted:
        key, after = _read(item)
        if key in seen:
            raise BadValueError(f"two changes of object {key!r} in one edit; expected one with all its fields.")
        seen.add(key)
        present, last = state.objects.get(key), state.objects.values.get(key, {})
        if after.get("exists") is False:
            # All that goes is noted, so that it can come back.
            changes += [Change("object", key, dict(present), {"exists": False})] if present is not None else []
            continue
        if present is None:
            after = _create(key, {**dict.fromkeys(last), **created, **after})
        if (label := after.get(CLASS)) is not None:
            after[CLASS] = name = _class_of(label)
            if name not in known and name not in fresh:
                fresh[name] = color_of(label if isinstance(label, dict) else {}, len(known) + len(fresh))
        _check_fields(key, after)
        was = {"exists": present is not None, **last}
        names = [name for name, value in after.items() if was.get(name) != value]
        if names:
            before = {name: was.get(name) for name in names}
            changes.append(Change("object", key, before, {name: after[name] for name in names}))
    changes, note = _mend(changes)
    made = [
        Change("class", name, {"exists": False}, {"exists": True, "color": list(color)})
        for name, color in fresh.items()
    ]
    return made + changes, note


def check_color(color: object) -> list[int]:
    """Return an RGB colour as three whole numbers.

    Raises
    ------
    BadValueError
        If it is none.
    """
    if isinstance(color, (list, tuple)) and len(color) == 3 and all(isinstance(v, (int, np.integer)) for v in color):
        numbers = [int(v) for v in color]
        if 0 <= min(numbers) <= max(numbers) <= 255:
            return numbers
    raise BadValueError(f"color {color!r}; expected three whole numbers of 0 to 255.")


def to_geometry_bytes(geometries: NDArray[np.object_]) -> list[bytes]:
    """Return geometries as JSON, in hundredths of a pixel as QuPath writes them."""
    return [b"{%b}" % text for text in geometry_texts(geometries, (0.0, 0.0), DECIMALS)]


def _read(item: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(item, Change):
        item = {item.kind: item.key, "after": item.after}
    key, after = (item.get("object"), item.get("after")) if isinstance(item, dict) else (None, None)
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY or not isinstance(after, dict):
        raise BadValueError(
            f'a change of {str(item)[:80]}; expected {{"object": id, "after": {{field: value}}}}, the id being text of '
            f"at most {LONGEST_KEY} letters."
        )
    geometry = after.get(GEOMETRY)
    return key, {**after, GEOMETRY: geometry_bytes(geometry)} if isinstance(geometry, dict) else dict(after)


def _create(key: str, after: dict[str, Any]) -> dict[str, Any]:
    if not after.get("exists") or after.get(GEOMETRY) is None:
        raise UnknownNameError(f"no object {key!r}; somebody may have removed it. Nothing was changed.")
    kind = PROPERTIES + "objectType"
    return {**after, kind: after.get(kind) or "annotation"}


def _check_fields(key: str, after: Mapping[str, Any]) -> None:
    for name in after.keys() - USUAL:
        if not name.startswith((PROPERTIES, OTHERS)) or name in (PROPERTIES, METADATA, OTHERS):
            raise BadValueError(
                f"field {name!r} of object {key!r}; expected exists, geometry, properties/… or properties/metadata/…."
            )
    if after.get(REVIEW) not in (None, *REVIEWS):
        raise BadValueError(f"review {after[REVIEW]!r}; expected one of {', '.join(REVIEWS)}, or None.")
    if GEOMETRY in after and not isinstance(after[GEOMETRY], bytes):
        raise BadValueError(f"object {key!r} has no geometry; expected GeoJSON. To remove it: exists false.")


def _class_of(label: Any) -> str:
    try:
        name = class_name_of(label)
    except (AttributeError, TypeError):
        name = None
    if name is None or not name.strip():
        raise BadValueError(f'class {label!r}; expected {{"name": "…"}}, or None for no class.')
    return name


def _mend(changes: list[Change]) -> tuple[list[Change], str]:
    """Refuse geometries that are no shapes, and mend polygons that cross themselves."""
    rows = [row for row, change in enumerate(changes) if GEOMETRY in change.after]
    if not rows:
        return changes, ""
    try:
        shapes = geometries_of([changes[row].after[GEOMETRY] for row in rows])
    except (BadFileError, AttributeError, TypeError) as error:
        raise BadValueError(f"{error} Nothing was changed.") from error
    broken = np.flatnonzero(~shapely.is_valid(shapes))
    if broken.size:
        mended = shapely.make_valid(shapes[broken], method="structure", keep_collapsed=False)
        if shapely.is_empty(mended).any():
            raise BadValueError("a polygon without any area; expected at least three points that are not in line.")
        for row, text in zip(broken.tolist(), to_geometry_bytes(mended), strict=True):
            change = changes[rows[row]]
            changes[rows[row]] = Change(change.kind, change.key, change.before, {**change.after, GEOMETRY: text})
    count = len(broken)
    what = "shape crossed itself and was" if count == 1 else "shapes crossed themselves and were"
    return changes, f"{count:,} {what} mended." if count else ""
