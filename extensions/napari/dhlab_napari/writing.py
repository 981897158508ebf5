"""The writers: labels and images as OME-Zarr, annotations as GeoJSON that QuPath reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.annotations import Annotations
from dhlab.io import save
from dhlab.scan import Scan
from dhlab_napari.layers import scan_from
from dhlab_napari.outlines import collect

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["write_image", "write_labels", "write_shapes"]


def write_labels(path: str, data: Any, meta: Mapping[str, Any]) -> list[str]:
    """Write a labels layer as OME-Zarr with spacing and unit, and return the path; raises as `dhlab.save` does.

    Parameters
    ----------
    path
        Where to, ``….ome.zarr``.
    data
        Array of the layer, or its levels.
    meta
        Attributes of the layer.
    """
    return [str(save(_as_saved(data, meta, kind="labels"), path, overwrite=True))]


def write_image(path: str, data: Any, meta: Mapping[str, Any]) -> list[str]:
    """Write an image layer as OME-Zarr, or as GeoJSON what stands for annotations, and return the path.

    Parameters
    ----------
    path
        Where to, ``….ome.zarr`` or ``….geojson``.
    data
        Array of the layer, or its levels.
    meta
        Attributes of the layer.
    """
    annotations = meta.get("metadata", {}).get("annotations")
    if isinstance(annotations, Annotations):
        return [str(annotations.to_geojson(path))]
    return [str(save(_as_saved(data, meta, kind="image"), path, overwrite=True))]


def write_shapes(path: str, data: list[Any], meta: Mapping[str, Any]) -> list[str]:
    """Write a shapes layer as GeoJSON exactly as QuPath writes it, and return the path.

    What was read and not edited is written as it was: measurements, names, holes and parts included.

    Parameters
    ----------
    path
        Where to, ``….geojson``.
    data
        Vertices of every shape.
    meta
        Attributes of the layer.
    """
    return [str(annotations_of(data, meta).to_geojson(path))]


def annotations_of(data: list[Any], meta: Mapping[str, Any]) -> Annotations:
    """Return what a shapes layer shows as annotations."""
    known = meta.get("metadata", {}).get("annotations")
    source = known if isinstance(known, Annotations) else Annotations.from_geometries([])
    features = meta.get("features")
    count = len(data)
    text = {
        name: [str(v) for v in features[name]] if features is not None and name in features else [""] * count
        for name in ("id", "class")
    }
    rows = [(kind, np.asarray(vertices)[:, -2:]) for kind, vertices in zip(meta["shape_type"], data, strict=True)]
    return collect(rows, text["id"], text["class"], source=source)


def _as_saved(data: Any, meta: Mapping[str, Any], *, kind: str) -> Scan:
    """Return a layer as a scan: the scan that was opened, with the pixels that the layer has now."""
    scan = meta.get("metadata", {}).get("scan")
    if isinstance(scan, Scan) and kind == "image":
        return scan
    return scan_from(data, meta, kind=kind)
