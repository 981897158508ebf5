"""What drawing tools do to a document: the geometry of `dhlab.annotations.drawing` as edits of objects."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhlab.annotations import drawing
from dhlab.annotations.checking import to_geometry_bytes
from dhlab.annotations.coordinates import object_array
from dhlab.annotations.edits import Change
from dhlab.annotations.records import CLASS, GEOMETRY, METADATA, PROPERTIES
from dhlab.errors import BadValueError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shapely.geometry.base import BaseGeometry

    from dhlab.annotations.document import Document
    from dhlab.annotations.edits import Edit

__all__ = ["TOOLS", "Stroke", "draw"]


@dataclass(frozen=True)
class Stroke:
    """What a person did with a tool.

    Parameters
    ----------
    tool
        One of `TOOLS`.
    path
        ``(N, 2)`` positions (x, y) in level-0 pixels.
    objects
        Ids of the objects that it is meant for; none: the brush and the wand make a new one, the eraser takes from
        every polygon that it touches. Eraser and hole pass over points and lines, split over what is not cut.
    radius
        Of brush and eraser, in level-0 pixels.
    tolerance
        Colour distance of the wand, as of `drawing.wand`, or distance in level-0 pixels of ``"simplify"``.
    pixel
        Level-0 pixels per pixel of the level that was looked at, for the wand.
    index
        Position on further axes, for the wand.
    class_name
        Class of a new object.
    create
        Id of a new object; else one is made.
    """

    tool: str
    path: Sequence[Sequence[float]] = ()
    objects: Sequence[str] = ()
    radius: float = 1.0
    tolerance: float = 12.0
    pixel: float = 1.0
    index: Mapping[str, int] | None = None
    class_name: str | None = None
    create: str | None = None


def draw(document: Document, stroke: Stroke, *, author: str | None = None, key: str = "") -> Edit | None:
    """Make the edit that a stroke means.

    Parameters
    ----------
    document
        The document.
    stroke
        The stroke.
    author, key
        As of `Document.apply`.

    Returns
    -------
    Edit or None
        None if nothing changes.

    Raises
    ------
    UnknownNameError
        If there is no such tool or object.
    BadValueError
        If the tool can do nothing with the objects or the path; the message says why.
    BadShapeError
        If an object has no area, or the path too few positions.
    StorageError
        If the document is read-only or the edit cannot be written.
    """
    if stroke.tool not in TOOLS:
        raise UnknownNameError(f"no tool {stroke.tool!r}.{suggest(stroke.tool, TOOLS)}")
    changes = TOOLS[stroke.tool](document, stroke)
    return document.apply(changes, tool=stroke.tool, author=author, key=key) if changes else None


def _brush(document: Document, stroke: Stroke) -> list[Change]:
    if not stroke.objects:
        return [_new(stroke, drawing.brush(None, stroke.path, stroke.radius))]
    (old,) = document.geometries(stroke.objects[:1])
    return [_changed(stroke.objects[0], drawing.brush(old, stroke.path, stroke.radius))]


def _wand(document: Document, stroke: Stroke) -> list[Change]:
    if not stroke.path:
        raise BadValueError("the wand got no point; expected where to begin.")
    region = drawing.wand(
        document.scan, stroke.path[-1], tolerance=stroke.tolerance, pixel=stroke.pixel, index=stroke.index
    )
    if region is None:
        raise BadValueError("the wand began outside the scan; expected a point on it.")
    if not stroke.objects:
        return [_new(stroke, region)]
    (old,) = document.geometries(stroke.objects[:1])
    return [_changed(stroke.objects[0], drawing.merge([old, region]))]


def _erase(document: Document, stroke: Stroke) -> list[Change]:
    rubber = drawing.stroke(stroke.path, stroke.radius)
    shapes = _areal(document, stroke.objects or document.touching(rubber))
    return [
        _changed(key, drawing.erase(old, stroke.path, stroke.radius))
        for key, old in shapes.items()
        if old.intersects(rubber)
    ]


def _cut_hole(document: Document, stroke: Stroke) -> list[Change]:
    shapes = _areal(document, stroke.objects)
    if not shapes:
        raise BadValueError("points and lines alone; expected a polygon to cut a hole into.")
    return [_changed(key, drawing.cut_hole(old, stroke.path)) for key, old in shapes.items()]


def _split(document: Document, stroke: Stroke) -> list[Change]:
    changes = []
    uncut = None
    for key, old in zip(stroke.objects, document.geometries(stroke.objects), strict=True):
        try:
            first, *others = drawing.split(old, stroke.path)
        except BadValueError as error:
            # The line may touch one object more than it cuts.
            uncut = error
            continue
        kept = {
            name: value
            for name, value in document.fields(key).items()
            if name in (CLASS, PROPERTIES + "name", PROPERTIES + "objectType") or name.startswith(METADATA)
        }
        changes.append(_changed(key, first))
        changes += [
            Change("object", str(uuid.uuid4()), {}, kept | _shape(piece) | {"exists": True}) for piece in others
        ]
    if uncut is not None and not changes:
        raise uncut
    return changes


def _merge(document: Document, stroke: Stroke) -> list[Change]:
    if len(stroke.objects) < 2:
        raise BadValueError("one object to merge; expected at least two.")
    whole = drawing.merge(document.geometries(stroke.objects))
    others = [Change("object", key, {}, {"exists": False}) for key in stroke.objects[1:]]
    return [_changed(stroke.objects[0], whole), *others]


def _each(change: Callable[[BaseGeometry, Stroke], BaseGeometry | None]) -> Callable[[Document, Stroke], list[Change]]:
    def changes(document: Document, stroke: Stroke) -> list[Change]:
        olds = document.geometries(stroke.objects)
        return [_changed(key, change(old, stroke)) for key, old in zip(stroke.objects, olds, strict=True)]

    return changes


TOOLS: dict[str, Callable[[Document, Stroke], list[Change]]] = {
    "brush": _brush,
    "eraser": _erase,
    "wand": _wand,
    "split": _split,
    "merge": _merge,
    "simplify": _each(lambda old, stroke: drawing.simplify(old, stroke.tolerance)),
    "fill": _each(lambda old, _: drawing.fill_holes(old)),
    "hole": _cut_hole,
}


def _shape(geometry: BaseGeometry) -> dict[str, Any]:
    return {GEOMETRY: to_geometry_bytes(object_array([geometry]))[0]}


def _new(stroke: Stroke, geometry: BaseGeometry) -> Change:
    label = {} if stroke.class_name is None else {CLASS: stroke.class_name}
    return Change("object", stroke.create or str(uuid.uuid4()), {}, {"exists": True, **_shape(geometry), **label})


def _changed(key: str, geometry: BaseGeometry | None) -> Change:
    return Change("object", key, {}, {"exists": False} if geometry is None else _shape(geometry))


def _areal(document: Document, objects: Sequence[str]) -> dict[str, BaseGeometry]:
    """Return the geometries of those objects that are polygons: points and lines lie under strokes, too."""
    shapes = dict(zip(objects, document.geometries(objects), strict=True))
    return {key: shape for key, shape in shapes.items() if shape.geom_type.endswith("Polygon")}
