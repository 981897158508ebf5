"""From things to napari layers that lie where the things lie, and from a layer back to its scan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.annotations import Annotations
from dhlab.errors import BadValueError
from dhlab.scan import Scan
from dhlab.view.layers import LayerData, locate, to_layers
from dhlab.view.traces import as_pages
from dhlab_napari.raster import raster_layer
from dhlab_napari.units import long_unit, short_unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari.layers import Layer

__all__ = ["MOST_SHAPES", "describe", "is_scan", "scan_from", "scan_of"]

# Beyond so many objects napari's Shapes layer is slow to make and to move; they are drawn as pixels instead.
MOST_SHAPES = 1000


def describe(thing: Scan | Annotations, *, base: Scan | None = None) -> list[LayerData]:
    """Describe a thing as napari layers in physical units.

    Parameters
    ----------
    thing
        A scan of any kind, or annotations: up to `MOST_SHAPES` become a Shapes layer, more a picture drawn on demand.
    base
        The scan that things lie on; without it a scan lies where it says, and annotations on their parent.

    Returns
    -------
    list of tuple
        ``(data, meta, type)``. ``meta["metadata"]`` holds the scan under ``"scan"``, the annotations under
        ``"annotations"``.

    Raises
    ------
    BadValueError
        If the thing is neither, or its unit cannot be converted into the base's.
    """
    if isinstance(thing, Annotations):
        if len(thing) > MOST_SHAPES:
            return [raster_layer(thing, base)]
        layers = to_layers(thing, base=base)
        layers[0][1]["metadata"] = {"annotations": thing}
        layers[0][1]["units"] = (long_unit("px" if base is None else base.unit),) * 2
        return layers
    if isinstance(thing, Scan) and thing.window_axes == "t":
        thing = as_pages(thing)
    layers = to_layers(thing)
    for _, meta, _ in layers:
        meta["units"] = tuple(long_unit(thing.unit) for _ in thing.window_axes)
        meta["axis_labels"] = tuple(thing.window_axes)
        meta["metadata"] = {"scan": thing}
        if base is not None and thing is not base:
            meta |= placement(thing, base)
    return layers


def placement(thing: Scan, base: Scan) -> dict[str, Any]:
    """Return scale and translation that lay a scan on a base, along the scan's own window axes."""
    place = locate(thing, base)
    scale, translate = list(thing.spacing), [o + s / 2 for o, s in zip(thing.origin, thing.spacing, strict=True)]
    for i, axis in enumerate("yx"):
        own, other = thing.window_axes.index(axis), base.window_axes.index(axis)
        pixel = base.spacing[other]
        scale[own] = place.scale[i] * pixel
        translate[own] = base.origin[other] + place.offset[i] * pixel + scale[own] / 2
    units = tuple(long_unit(base.unit if a in "yx" else thing.unit) for a in thing.window_axes)
    return {"scale": tuple(scale), "translate": tuple(translate), "units": units}


def is_scan(layer: Layer) -> bool:
    """Return whether a layer shows pixels that a scan can be made of."""
    return layer._type_string in ("image", "labels") and "annotations" not in layer.metadata


def scan_of(layer: Layer) -> Scan:
    """Return the scan that a layer shows: the very one if dhlab opened it, else one over the layer's array.

    Raises
    ------
    BadValueError
        If the layer holds no pixels, or other axes than time, depth, height and width.
    """
    if isinstance(scan := layer.metadata.get("scan"), Scan):
        return scan
    if not is_scan(layer):
        raise BadValueError(f"layer {layer.name!r} has no pixels to work on; expected an image or labels layer.")
    data, meta, kind = layer.as_layer_data_tuple()
    return scan_from(data, meta, kind="labels" if kind == "labels" else "image")


def scan_from(data: Any, meta: Mapping[str, Any], *, kind: str) -> Scan:
    """Return a scan over the array of a layer, or its levels, with the spacing and the unit that the layer has.

    Raises
    ------
    BadValueError
        If it has other axes than time, depth, height and width.
    """
    levels = tuple(data) if meta.get("multiscale") else (data,)
    ndim = levels[0].ndim - bool(meta.get("rgb"))
    if not 2 <= ndim <= 4:
        raise BadValueError(f"layer {meta['name']!r} has {ndim} axes; expected 2 to 4: time, depth, height and width.")
    scale = np.abs(np.asarray(meta.get("scale", (1.0,) * ndim), float))
    translate = np.asarray(meta.get("translate", (0.0,) * ndim), float)
    unit = short_unit((meta.get("units") or ("pixel",))[-1])
    known = meta.get("metadata", {}).get("scan")
    if isinstance(known, Scan) and known.kind == kind and known.shape == tuple(levels[0].shape):
        return known.replace(levels=levels, scales=known.scales[: len(levels)], meta=dict(known.meta))
    return Scan(
        levels=levels,
        axes="tzyx"[-ndim:] + ("c" if meta.get("rgb") else ""),
        spacing=tuple(scale.tolist()),
        unit=unit,
        origin=tuple((translate - scale / 2).tolist()),
        name=str(meta["name"]),
        kind=kind,
        meta={"reader": "napari"},
    )
