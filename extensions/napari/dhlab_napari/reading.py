"""The reader: everything that `dhlab.open` opens, and GeoJSON, as lazy layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari

from dhlab.annotations import Annotations, geojson_offset
from dhlab.errors import DHLabError
from dhlab.io import find_reader
from dhlab.io import open as open_scan
from dhlab_napari.layers import describe

if TYPE_CHECKING:
    import os

    from dhlab.scan import Scan
    from dhlab.view.layers import LayerData

__all__ = ["get_reader", "read"]

Reader = Callable[[Any], "list[LayerData]"]
VECTORS = (".geojson", ".geojson.gz")


def get_reader(path: str | list[str]) -> Reader | None:
    """Return the function that reads a path or several, or None if dhlab does not open it."""
    paths = [path] if isinstance(path, str) else path
    return read if paths and all(map(_is_known, paths)) else None


def read(path: str | os.PathLike[str] | list[str]) -> list[LayerData]:
    """Return the layers of files: of scans lazily and in physical units, of GeoJSON on the scan of the same name.

    Raises
    ------
    DHLabError
        As `dhlab.open` and `Annotations.from_geojson` raise.
    """
    paths = [Path(p) for p in (path if isinstance(path, list) else [path])]
    layers: list[LayerData] = []
    for one in paths:
        if one.name.lower().endswith(VECTORS):
            scan = scan_beside(one) or scan_in_view()
            offset = (0.0, 0.0) if scan is None else geojson_offset(scan)
            layers += describe(Annotations.from_geojson(one, offset=offset, parent=scan), base=scan)
        else:
            layers += describe(open_scan(one))
    return layers


def scan_beside(path: Path) -> Scan | None:
    """Return the scan that a GeoJSON file belongs to: the one of the same name beside it, or None."""
    stem = path.name[: path.name.lower().index(".geojson")]
    for other in sorted(path.parent.glob(f"{stem}.*")):
        if not other.name.lower().endswith(VECTORS) and _is_known(str(other)):
            try:
                return open_scan(other)
            except DHLabError:
                continue
    return None


def scan_in_view() -> Scan | None:
    """Return the scan that lies at the bottom of the viewer, on which shapes are dropped; None without one."""
    viewer = napari.current_viewer()
    scans = [layer.metadata["scan"] for layer in (viewer.layers if viewer else ()) if "scan" in layer.metadata]
    return next((scan for scan in scans if set("yx") <= set(scan.axes)), None)


def _is_known(path: str) -> bool:
    if path.lower().endswith(VECTORS):
        return True
    try:
        find_reader(Path(path))
    except DHLabError:
        return False
    return True
