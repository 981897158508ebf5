"""What a browser must know of a layer before it asks for pixels or shapes: plain values, for every transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.annotations import Annotations
from dhlab.display import channel_color
from dhlab.io.opened import file_of
from dhlab.view.editing import describe_document
from dhlab.view.layers import LENGTHS, locate, shapes_of
from dhlab.view.tiles import COLOR_MAPS, class_names, color_map
from dhlab.view.traces import TraceLevel

if TYPE_CHECKING:
    from dhlab.scan import Scan
    from dhlab.view.viewer import Layer

__all__ = ["describe_layer"]

GRADIENT_STOPS = 9


def describe_layer(layer: Layer, base: Scan | None) -> dict[str, Any]:
    """Return what the browser needs to know of a layer, once: ``LayerScene`` of the viewer's TypeScript.

    Parameters
    ----------
    layer
        The layer.
    base
        The scan in whose level-0 pixels everything is placed; None for a layer of which only its own are known.

    Returns
    -------
    dict
        JSON-compatible. ``id``, ``name``, ``base``, ``kind``, ``scale`` and ``offset`` (y, x), ``classes``,
        ``revision``; of annotations also ``count``, of a document what `describe_document` says; of scans also

        - ``info`` of its `TileSource`, ``maps`` (colours along each colour map),
        - ``display`` (values at the ends of its range), ``modality`` (as DICOM names it, or empty),
        - ``metre`` (length of its unit, None if unknown),
        - ``traces`` (of pages of a signal: ``start`` of its time axis in pixels, length of a ``page`` in its unit),
        - ``source`` (``path`` and ``stamp`` of the file whose plain `open` gives the same pixels, else None; the
          numbers of the stamp as text, because JavaScript has not enough digits).

    Raises
    ------
    BadValueError
        If the units of layer and base cannot be converted into one another.
    """
    thing = layer.thing
    place = locate(thing, base) if base is not None and thing is not base else None
    common: dict[str, Any] = {
        "id": layer.id,
        "name": layer.name,
        "base": thing is base,
        "scale": list(place.scale) if place else [1.0, 1.0],
        "offset": list(place.offset) if place else [0.0, 0.0],
        "revision": layer.revision,
    }
    if isinstance(thing, Annotations):
        shapes = shapes_of(thing)
        counts = np.bincount(shapes.labels, minlength=len(shapes.names)).tolist()
        classes = [
            {"name": n, "color": list(c), "count": k}
            for n, c, k in zip(shapes.names, shapes.colors, counts, strict=True)
        ]
        document = {} if layer.document is None else {"document": describe_document(layer.document, layer.packed)}
        return common | {"kind": "shapes", "classes": classes, "count": len(shapes.labels), **document}
    assert layer.tiles is not None
    names = class_names(thing) if thing.kind != "image" else list(thing.channels)
    file = file_of(thing)
    return common | {
        "kind": thing.kind,
        "classes": [{"name": n, "color": list(channel_color(thing, i))} for i, n in enumerate(names)],
        "maps": _color_stops(),
        "display": [layer.tiles.display.low, layer.tiles.display.high],
        "modality": str(thing.meta.get("modality") or ""),
        "metre": LENGTHS.get(thing.unit),
        "info": layer.tiles.info(),
        "traces": _traces(thing),
        "source": {"path": str(file.path), "stamp": [str(n) for n in file.stamp]} if file else None,
    }


def _traces(scan: Scan) -> dict[str, float] | None:
    """Return where traces begin on a page, in pixels, and how long a page is, if that is what a scan shows."""
    level = scan.levels[0]
    if not isinstance(level, TraceLevel):
        return None
    return {"start": level.shape[2] - level.pages.plot_width(0), "page": scan.spacing[0]}


def _color_stops() -> dict[str, list[list[int]]]:
    stops = np.linspace(0, 255, GRADIENT_STOPS).astype(int)
    return {name: color_map(name)[stops].tolist() for name in COLOR_MAPS if name != "class"}
