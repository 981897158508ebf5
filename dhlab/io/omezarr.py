"""OME-Zarr: read 0.4 and 0.5, write 0.5 in shards with standard codecs, whole or not at all."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.atomic import atomic_folder
from dhlab.errors import BadFileError, BadShapeError, BadValueError
from dhlab.io.bands import BandWriter, write_image_metadata
from dhlab.io.chunks import ZarrArray
from dhlab.io.ngff import Image, Multiscale, disk_axes, read_attributes, read_multiscale
from dhlab.io.shards import disk_order, plan_layout, to_disk, write_coarser_levels, write_shard
from dhlab.progress import progress_bar
from dhlab.scan import Parent, Scan

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["BandWriter", "ZarrLevel", "read", "write"]


class ZarrLevel:
    """One level of an OME-Zarr, shown in the axis order of its scan; it pickles by path.

    Parameters
    ----------
    array
        The stored array.
    stored
        Axis letters on disk.
    shown
        Axis letters to show; stored axes that are not among them have length 1.
    """

    def __init__(self, array: ZarrArray, stored: str, shown: str) -> None:
        self.array, self.stored, self.shown = array, stored, shown
        hidden = [a for a in stored if a not in shown]
        self._hidden = len(hidden)
        # Where each stored axis is found among the hidden ones followed by the shown ones.
        self._order = [[*hidden, *shown].index(a) for a in stored]
        self.shape: tuple[int, ...] = tuple(array.shape[stored.index(a)] for a in shown)
        self.dtype: np.dtype[Any] = array.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return ZarrLevel, (self.array, self.stored, self.shown)

    def __repr__(self) -> str:
        return f"ZarrLevel {self.shape} {self.shown}: {self.array}"

    def __getitem__(self, key: Any) -> Any:
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys[at : at + 1] = [slice(None)] * (len(self.shape) - len(keys) + 1)
        keys += [slice(None)] * (len(self.shape) - len(keys))
        if len(keys) != len(self.shape) or not all(isinstance(k, (int, np.integer, slice)) for k in keys):
            raise BadShapeError(
                f"index {key!r}; expected up to {len(self.shape)} numbers and slices for {self.shown!r}."
            )
        start, size = [], []
        inner: list[int | slice] = []
        for one, length in zip(keys, self.shape, strict=True):
            if isinstance(one, slice):
                steps = range(*one.indices(length))
                low, high = (min(steps[0], steps[-1]), max(steps[0], steps[-1]) + 1) if steps else (0, 0)
                inner.append(slice(None, None, one.step))
            else:
                if not -length <= one < length:
                    raise IndexError(f"index {one} of {length}")
                low, high = one % length, one % length + 1
                inner.append(0)
            start.append(low)
            size.append(high - low)
        out = np.empty((1, *size), self.dtype)
        if out.size:
            self._read(np.asarray([start], np.int64), out)
        return out[0][tuple(inner)]

    def read_windows(self, starts: NDArray[np.int64], size: Sequence[int], out: NDArray[Any]) -> None:
        """Read windows; each chunk is decoded once.

        Parameters
        ----------
        starts
            ``(N, ndim)`` int64 first corners along the window axes, in pixels of this level; outside allowed.
        size
            Window size in pixels along the window axes.
        out
            ``(N, *window)``, in the order of the axes; the fill value outside.

        Raises
        ------
        BadFileError
            If a chunk is damaged or a shard lost.
        """
        corners = np.asarray(starts, np.int64)
        assert len(size) == corners.shape[1]
        if "c" in self.shown:
            corners = np.insert(corners, self.shown.index("c"), 0, axis=1)
        self._read(corners, out)

    def _read(self, starts: NDArray[np.int64], out: NDArray[Any]) -> None:
        padded = np.concatenate([np.zeros((len(starts), self._hidden), np.int64), starts], axis=1)[:, self._order]
        view = out.reshape(len(out), *(1,) * self._hidden, *out.shape[1:])
        view = view.transpose([0, *(1 + i for i in self._order)])
        self.array.read_boxes(padded, view.shape[1:], view)


def read(
    path: str | os.PathLike[str], *, spacing: float | Sequence[float] | None = None, icc: bool = False, series: int = 0
) -> Scan:
    """Open an OME-Zarr image or label image without reading its pixels.

    Parameters
    ----------
    path
        Folder of the image, or of one label image below it (``…/labels/nuclei``).
    spacing
        Physical pixel size of level 0 along z, y and x (one number) or along every window axis, instead of the
        file's; in its unit, or in µm where it has none.
    icc
        OME-Zarr holds no colour profile; recorded.
    series
        0 is the image and 1, 2 … its label images; in a folder of several images, which of them.

    Returns
    -------
    Scan
        Lazy. Files of others lose axes t and z of length 1; colour images come as ``yxc``.

    Raises
    ------
    BadFileError
        If there is no OME-Zarr 0.4 or 0.5 image, or its levels do not fit together.
    BadValueError
        If there is no such series, or `spacing` is not positive.
    """
    folder = _series_folder(Path(path), series)
    found = read_multiscale(folder)
    own = found.own
    complete = own.get("shards") or []
    arrays: list[ZarrArray] = []
    for number in range(len(found.paths)):
        arrays.append(_open_level(found, number, complete, first=arrays[0] if arrays else None))
    shown = _shown_axes(found, arrays[0])
    window = shown.replace("c", "")
    sizes, unit, source = _spacing(found, window, spacing)
    at = [found.axes.index(a) for a in window]
    base = found.scales[0]
    channels = own.get("channels") or [
        str(c.get("label") or i) for i, c in enumerate(found.omero.get("channels") or ()) if "c" in shown
    ]
    count = arrays[0].shape[found.axes.index("c")] if "c" in shown else 0
    parent = own.get("parent")
    return Scan(
        levels=tuple(ZarrLevel(array, found.axes, shown) for array in arrays),
        axes=shown,
        spacing=sizes,
        unit=unit,
        scales=tuple(tuple(scale[i] / base[i] for i in at) for scale in found.scales),
        origin=_origin(found, window, sizes),
        channels=tuple(map(str, channels)) if len(channels) == count else (),
        name=str(own.get("name") or found.name or folder.name),
        kind=str(own.get("kind") or ("labels" if found.is_label else "image")),
        fill=arrays[0].fill.item(),
        parent=Parent(parent["name"], tuple(parent["spacing"]), tuple(parent["shape"]), parent["unit"])
        if parent
        else None,
        meta=_meta(folder, found, source=source, icc=icc),
    )


def write(
    scan: Scan,
    path: str | os.PathLike[str],
    *,
    tile: int = 512,
    compression: str = "auto",
    progress: bool = False,
) -> None:
    """Write a scan of any size as OME-Zarr 0.5, shard by shard, with levels down to about 1024 pixels.

    Parameters
    ----------
    scan
        The scan to write.
    path
        Folder to appear, whole or not at all; what is there is replaced.
    tile
        Chunk side in pixels.
    compression
        ``"auto"``, ``"zstd"`` or ``"none"``.
    progress
        Show a progress bar.

    Raises
    ------
    BadValueError
        If the compression is unknown or the dtype cannot be stored.
    StorageError
        If the disk is full or the folder cannot be written.
    """
    dtype = np.dtype(np.uint8) if scan.dtype == bool else scan.dtype.newbyteorder("=")
    stored = disk_axes(scan.axes)
    lengths = dict(zip(scan.axes, scan.levels[0].shape, strict=True))
    layout = plan_layout(
        tuple(int(lengths.get(a, 1)) for a in stored),
        stored,
        dtype,
        order=disk_order(scan.axes),
        tile=tile,
        compression=compression,
        fill=scan.fill,
    )
    image = Image(
        scan.axes,
        scan.spacing,
        scan.unit,
        scan.origin,
        scan.channels,
        scan.name,
        scan.kind,
        dtype,
        scan.fill,
        scan.parent,
        {k: scan.meta[k] for k in ("spacing_source", "icc") if k in scan.meta},
    )
    with atomic_folder(path) as root, progress_bar(prod(layout.grid) * 4 // 3, "save", shown=progress) as bar:
        (root / "0").mkdir()
        for cell in layout.cells:
            box = dict(zip(stored, layout.box(cell), strict=True))
            start = [box[a].start for a in scan.window_axes]
            size = [box[a].stop - box[a].start for a in scan.window_axes]
            at_level_0 = scan.read(start, size).astype(dtype, copy=False)
            pixels = to_disk(at_level_0, scan.axes)
            offset = [box[a].start for a in stored]

            def make(part: tuple[slice, ...], pixels: NDArray[Any] = pixels, offset: list[int] = offset) -> Any:
                return pixels[tuple(slice(p.start - o, p.stop - o) for p, o in zip(part, offset, strict=True))]

            write_shard(root / "0", layout, cell, make)
            bar.update()
        plane = (stored.index("y"), stored.index("x"))
        layouts = write_coarser_levels(root, layout, plane, nearest=scan.kind in ("mask", "labels"), bar=bar)
        write_image_metadata(root, image, layouts)


def _series_folder(folder: Path, series: int) -> Path:
    ome, _ = read_attributes(folder)
    if "multiscales" not in ome and "bioformats2raw.layout" in ome:
        images = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        series_folders = images
    else:
        labels = folder / "labels"
        names = read_attributes(labels)[0].get("labels", []) if labels.is_dir() else []
        series_folders = [folder, *(labels / str(n) for n in names)]
    if not 0 <= series < len(series_folders):
        raise BadValueError(
            f"series {series} of {folder.name}; it holds {len(series_folders)}: "
            f"{', '.join(f'{i} {p.name}' for i, p in enumerate(series_folders[:8]))}."
        )
    return series_folders[series]


def _open_level(found: Multiscale, number: int, complete: Sequence[int], *, first: ZarrArray | None) -> ZarrArray:
    path = found.paths[number]
    if not path.is_dir():
        raise BadFileError(
            f"level {number} of {path.parent} is missing: no folder {path.name!r}. Copy it again, whole."
        )
    array = ZarrArray(path)
    array.complete = number < len(complete) and complete[number] == prod(array.grid)
    if len(array.shape) != len(found.axes):
        raise BadFileError(
            f"level {number} of {path.parent} has shape {array.shape}; expected {len(found.axes)} axes {found.axes!r} "
            "as its metadata say. Write it again with a current OME-Zarr tool."
        )
    if first is not None and array.dtype != first.dtype:
        raise BadFileError(
            f"level {number} of {path.parent} has dtype {array.dtype}; expected {first.dtype} as in level 0. "
            "Write it again with a current OME-Zarr tool."
        )
    return array


def _shown_axes(found: Multiscale, array: ZarrArray) -> str:
    """Return the axes to show: those the scan had, if we wrote it; else without t and z of length 1."""
    lengths = dict(zip(found.axes, array.shape, strict=True))
    ours = str(found.own.get("axes") or "")
    if ours and set(ours) <= set(found.axes) and all(n == 1 for a, n in lengths.items() if a not in ours):
        return ours
    shown = "".join(a for a in found.axes if a not in "tz" or lengths[a] > 1)
    if shown == "cyx" and lengths["c"] == 3 and array.dtype == np.uint8 and found.is_rgb:
        return "yxc"
    return shown


def _spacing(
    found: Multiscale, window: str, override: float | Sequence[float] | None
) -> tuple[tuple[float, ...], str, str]:
    """Return the spacing per window axis, its unit, and where they come from."""
    at = [found.axes.index(a) for a in window]
    known = {found.units[i] for i, a in zip(at, window, strict=True) if a in "zyx" and found.units[i]}
    own = found.own
    if own.get("unit") and len(own.get("spacing", ())) == len(window):
        sizes, unit = [float(v) for v in own["spacing"]], str(own["unit"])
        source = str(own.get("spacing_source") or "OME-Zarr scale")
    elif known:
        unit, source = ("mm" if known == {"mm"} else "µm"), "OME-Zarr scale"
        larger = [1000.0 if unit == "µm" and found.units[i] == "mm" else 1.0 for i in at]
        sizes = [found.scales[0][i] * f for i, f in zip(at, larger, strict=True)]
    else:
        unit, source = "px", "unknown"
        sizes = [found.scales[0][i] if a == "t" else 1.0 for i, a in zip(at, window, strict=True)]
    if override is not None:
        given = np.asarray(override, float)
        if given.ndim > 1 or given.size not in (1, len(window)) or not np.all(np.isfinite(given) & (given > 0)):
            raise BadValueError(f"spacing {override}; expected positive, finite numbers, one or {len(window)}.")
        wanted = np.broadcast_to(given, len(window)).tolist()
        spatial = given.ndim == 0 and any(a in "zyx" for a in window)
        sizes = [w if not spatial or a in "zyx" else s for w, s, a in zip(wanted, sizes, window, strict=True)]
        unit, source = ("µm" if unit == "px" else unit), "override"
    return tuple(sizes), unit, source


def _origin(found: Multiscale, window: str, sizes: Sequence[float]) -> tuple[float, ...]:
    ours = found.own.get("origin")
    if ours is not None and len(ours) == len(window):
        return tuple(map(float, ours))
    shift = found.translations[0]
    if shift is None:
        return (0.0,) * len(window)
    at = [found.axes.index(a) for a in window]
    return tuple(shift[i] * size / found.scales[0][i] for i, size in zip(at, sizes, strict=True))


def _meta(folder: Path, found: Multiscale, *, source: str, icc: bool) -> dict[str, Any]:
    import numcodecs

    meta: dict[str, Any] = {
        "reader": "omezarr with numcodecs",
        "reader_version": numcodecs.__version__,
        "format": f"OME-Zarr {found.version}",
        "path": str(folder),
        "spacing_source": source,
    }
    if "icc" in found.own or icc:
        meta["icc"] = found.own.get("icc", "none in the file")
    if found.own.get("fingerprint") is not None:
        meta["fingerprint"] = found.own["fingerprint"]
    if colours := [str(c["color"]) for c in found.omero.get("channels") or () if "color" in c]:
        meta["colours"] = colours
    return meta
