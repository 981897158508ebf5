"""Writing tiled, pyramidal OME-TIFF: streamed by bands of tiles, in bounded memory."""

from __future__ import annotations

import math
import os
import tempfile
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.atomic import atomic_file
from dhlab.errors import BadShapeError, BadValueError
from dhlab.progress import progress_bar
from dhlab.scan import halve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from tqdm import tqdm

    from dhlab.scan import Scan

__all__ = ["write"]

COMPRESSIONS = {"none": None, "deflate": "adobe_deflate", "zstd": "zstd", "lzw": "lzw", "jpeg": "jpeg"}
JPEG_QUALITY = 90
# Coarser levels are added until the whole image fits this many pixels.
OVERVIEW = 1024


def write(scan: Scan, path: Path, *, tile: int, compression: str, progress: bool) -> None:
    """Write a scan as OME-TIFF with halved levels as SubIFDs.

    Parameters
    ----------
    scan
        Any scan with y and x. Colour pixels stay together (``yxc`` with 3 or 4 channels); other channels become planes.
    path
        Where to; the file appears whole.
    tile
        Tile side in pixels, a multiple of 16.
    compression
        ``"auto"`` (JPEG for 8-bit colour images, else deflate), ``"jpeg"``, ``"deflate"``, ``"zstd"``, ``"lzw"`` or
        ``"none"``. JPEG changes pixels slightly.
    progress
        Show a bar.

    Raises
    ------
    BadShapeError
        If the scan has no plane (y and x).
    BadValueError
        If tile or compression do not fit.
    StorageError
        If the disk is full or the folder read-only.
    """
    import tifffile

    if "y" not in scan.axes or "x" not in scan.axes:
        raise BadShapeError(f"OME-TIFF needs y and x; got axes {scan.axes!r}. Save as .ome.zarr.")
    if tile % 16:
        raise BadValueError(
            f"tile {tile}; TIFF expects a multiple of 16, for example {max(16, round(tile / 16) * 16)}."
        )
    planes = _Planes(scan, tile)
    chosen = _compression(planes, compression)
    counts = [math.prod(planes.outer) * math.prod(planes.grid(size)) for size in planes.sizes]
    options: dict[str, Any] = {
        "tile": (tile, tile),
        "compression": chosen,
        "compressionargs": {"level": JPEG_QUALITY} if chosen == "jpeg" else {},
        "photometric": "rgb" if planes.colours else "minisblack",
        "dtype": planes.dtype,
        "software": "dhlab",
    }
    if chosen == "jpeg" and planes.colours:
        options["subsampling"] = (1, 1)  # half of the loss is in the chroma
    if planes.colours == 4:
        options["extrasamples"] = ["unassalpha"]
    with (
        atomic_file(path) as partial,
        progress_bar(sum(counts), f"writing {path.name}", shown=progress, unit="tile") as bar,
        tifffile.TiffWriter(partial, bigtiff=planes.bytes > 2**31, ome=True) as file,
    ):
        for number, size in enumerate(planes.sizes):
            first = number == 0
            file.write(
                planes.tiles(number, partial.parent, bar),
                shape=planes.shape(size),
                metadata=_metadata(scan, planes) if first else None,
                subifds=len(planes.sizes) - 1 if first else None,
                subfiletype=0 if first else 1,
                **_resolution(scan, 2**number),
                **options,
            )
        planes.close()


class _Planes:
    """The scan as two-dimensional planes and their halved forms, level after level, each made while the last is read.

    Halved levels lie in temporary files beside the output, reserved before they are written, so that a full disk is
    an error and not a crash.
    """

    def __init__(self, scan: Scan, tile: int) -> None:
        self.scan = scan
        self.tile = tile
        self.dtype = np.dtype(np.uint8) if scan.dtype == bool else scan.dtype
        colours = scan.window_shape(scan.shape)[-1] if scan.axes.endswith("yxc") else 0
        self.colours = int(colours) if colours in (3, 4) else 0
        self.outer_axes = "".join(a for a in scan.axes if a not in "yx" and not (a == "c" and self.colours))
        lengths = dict(zip(scan.axes, scan.levels[0].shape, strict=True))
        self.outer = tuple(int(lengths[a]) for a in self.outer_axes)
        size = int(lengths["y"]), int(lengths["x"])
        self.sizes = [size]
        while max(self.sizes[-1]) > OVERVIEW:
            self.sizes.append((-(-self.sizes[-1][0] // 2), -(-self.sizes[-1][1] // 2)))
        self.bytes = math.prod(self.shape(size)) * self.dtype.itemsize * 4 // 3
        self.halved: dict[int, np.memmap[Any, Any]] = {}

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the array shape of a level of `size`."""
        return (*self.outer, *size, *((self.colours,) if self.colours else ()))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the number of tiles of a level of `size`."""
        return -(-size[0] // self.tile), -(-size[1] // self.tile)

    def tiles(self, level: int, folder: Path, bar: tqdm[Any]) -> Iterator[NDArray[Any]]:
        """Yield the tiles of a level in the order of the file; on the way the next level is made."""
        if level + 1 < len(self.sizes):
            self.halved[level + 1] = _reserve(folder, self.shape(self.sizes[level + 1]), self.dtype)
        following = self.halved.get(level + 1)
        height, width = self.sizes[level]
        for index in product(*(range(n) for n in self.outer)):
            for top in range(0, height, self.tile):
                band = self._band(level, index, top, min(top + self.tile, height))
                if following is not None:
                    half = halve(band, (0, 1), nearest=self.scan.kind in ("mask", "labels"))
                    following[index][top // 2 : top // 2 + half.shape[0]] = half
                for left in range(0, width, self.tile):
                    bar.update()
                    yield np.ascontiguousarray(band[:, left : left + self.tile])
        self.halved.pop(level, None)

    def close(self) -> None:
        """Give the temporary files back."""
        self.halved.clear()

    def _band(self, level: int, index: tuple[int, ...], top: int, bottom: int) -> NDArray[Any]:
        if level:
            return np.asarray(self.halved[level][index][top:bottom])
        at = dict(zip(self.outer_axes, index, strict=True))
        width = self.sizes[0][1]
        spots = {"y": slice(top, bottom), "x": slice(0, width)} | {a: slice(i, i + 1) for a, i in at.items()}
        key = tuple(spots.get(a, slice(None)) for a in self.scan.axes)
        band = np.asarray(self.scan.levels[0][key]).astype(self.dtype, copy=False)
        shape = (bottom - top, width, self.colours) if self.colours else (bottom - top, width)
        return band.reshape(shape)


def _reserve(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    """Return an array in a temporary file without a name, its room on the disk taken at once."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
        return np.memmap(file, dtype, "w+", shape=shape)


def _compression(planes: _Planes, wanted: str) -> str | None:
    scan = planes.scan
    if wanted == "auto":
        return "jpeg" if planes.colours == 3 and planes.dtype == np.uint8 and scan.kind == "image" else "adobe_deflate"
    if wanted not in COMPRESSIONS:
        raise BadValueError(f"compression {wanted!r}; expected auto, {', '.join(COMPRESSIONS)} for OME-TIFF.")
    if wanted == "jpeg" and (planes.dtype != np.uint8 or planes.colours == 4 or scan.kind != "image"):
        raise BadValueError(
            f"JPEG stores 8-bit images of one or three channels; got a {scan.kind} of {scan.dtype}. Use 'deflate'."
        )
    return COMPRESSIONS[wanted]


def _metadata(scan: Scan, planes: _Planes) -> dict[str, Any]:
    axes = planes.outer_axes.upper() + "YX" + ("S" if planes.colours else "")
    found: dict[str, Any] = {"axes": axes}
    if scan.unit != "px":
        for axis, spacing in zip(scan.window_axes, scan.spacing, strict=True):
            if axis in "zyx":
                found[f"PhysicalSize{axis.upper()}"] = spacing
                found[f"PhysicalSize{axis.upper()}Unit"] = scan.unit
    if scan.channels and not planes.colours:
        found["Channel"] = {"Name": list(scan.channels)}
    return found


def _resolution(scan: Scan, factor: int) -> dict[str, Any]:
    """Return resolution tags, for programs that do not read OME-XML."""
    per_cm = {"µm": 1e4, "mm": 10.0}.get(scan.unit)
    if per_cm is None:
        return {}
    along = dict(zip(scan.window_axes, scan.spacing, strict=True))
    return {"resolution": tuple(per_cm / (along[a] * factor) for a in "xy"), "resolutionunit": "centimeter"}
