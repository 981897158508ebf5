"""Files to scans and back: one table from suffix to reader, extended by the entry point group ``dhlab.readers``."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadFileError, BadValueError, ConflictError, NotFoundError, UnknownNameError, suggest
from dhlab.io.opened import remember
from dhlab.timeline import stage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from dhlab.scan import Scan

__all__ = ["READERS", "WRITERS", "find_reader", "open", "save", "suffix_of"]

# A reader is `read(path, *, spacing, icc, series) -> Scan`.
READERS = {
    **dict.fromkeys((".svs", ".tif", ".tiff", ".ome.tif", ".ome.tiff", ".btf"), "dhlab.io.tiff:read"),
    **dict.fromkeys((".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi"), "dhlab.io.openslide:read"),
    ".dcm": "dhlab.io.dicom:read",
    **dict.fromkeys((".nii", ".nii.gz"), "dhlab.io.nifti:read"),
    **dict.fromkeys((".ome.zarr", ".zarr"), "dhlab.io.omezarr:read"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"), "dhlab.io.picture:read"),
}
# A writer is `write(scan, path, *, tile, compression, progress) -> None` and never leaves half a file behind.
WRITERS = {
    **dict.fromkeys((".ome.zarr", ".zarr"), "dhlab.io.omezarr:write"),
    **dict.fromkeys((".ome.tif", ".ome.tiff"), "dhlab.io.tiff:write"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), "dhlab.io.picture:write"),
}


def open(
    path: str | os.PathLike[str],
    *,
    spacing: float | Sequence[float] | None = None,
    icc: bool = False,
    series: int = 0,
    name: str | None = None,
) -> Scan:
    """Open a slide, picture, volume or OME-Zarr without reading its pixels.

    Parameters
    ----------
    path
        File, or folder for OME-Zarr. The suffix chooses the reader.
    spacing
        Physical pixel size of level 0 (µm for slides) where the file states none or a wrong one; it wins over
        everything the file says.
    icc
        Convert colours to sRGB with the file's ICC profile, once, while reading. Recorded in ``scan.meta["icc"]``.
    series
        Which image of a file that holds several.
    name
        Name of the scan; else the file's name without suffix.

    Returns
    -------
    Scan
        Lazy; reading takes place in `Scan.read`. It pickles by path.

    Raises
    ------
    NotFoundError
        If there is nothing at `path`.
    UnknownNameError
        If no reader knows the suffix.
    BadFileError
        If the file is empty, damaged or not what its suffix says.
    """
    location = Path(path).expanduser()
    reader = find_reader(location)
    with stage("data", verb="open", scan=location):
        scan: Scan = reader(location, spacing=spacing, icc=icc, series=series)
    if spacing is None and not icc and series == 0:
        remember(scan, location)
    suffix = suffix_of(location, _readers()) or ""
    return scan.replace(name=name or location.name[: -len(suffix)] or location.name)


def find_reader(path: Path) -> Callable[..., Scan]:
    """Return the function that reads a file or folder: ``reader(path, *, spacing, icc, series) -> Scan``.

    Parameters
    ----------
    path
        What to read; its suffix chooses.

    Raises
    ------
    NotFoundError
        If there is nothing at `path`.
    UnknownNameError
        If no reader knows the suffix.
    BadFileError
        If the file is empty.
    """
    if not path.exists():
        raise NotFoundError(f"nothing at {path}; expected a scan. Check the path ({_neighbours(path)}).")
    suffix = suffix_of(path, _readers())
    if suffix is None:
        raise UnknownNameError(
            f"cannot open {path.name!r}: no reader for {path.suffix or 'a file without suffix'!r}."
            f"{suggest(path.suffix.lower(), _readers())}"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise BadFileError(f"{path} is empty (0 bytes); expected an image. Copy it again from its source.")
    return _load(_readers()[suffix])


def save(
    scan: Scan,
    path: str | os.PathLike[str],
    *,
    tile: int = 512,
    compression: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write a scan; the suffix chooses the format (``.ome.zarr``, ``.ome.tif``, ``.png`` …).

    The file appears whole or not at all: it is written beside its place and renamed. Patient identifiers and label
    images are not written.

    Parameters
    ----------
    scan
        The scan to write, of any size; it is streamed.
    path
        Where to.
    tile
        Chunk or tile side in pixels.
    compression
        ``"auto"`` or what the format knows (``"zstd"``, ``"none"``, ``"jpeg"`` …).
    overwrite
        Replace what is there.
    progress
        Show a progress bar.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    UnknownNameError
        If no writer knows the suffix.
    ConflictError
        If something is there and `overwrite` is off.
    StorageError
        If the disk is full or the folder is read-only.
    """
    location = Path(path).expanduser()
    suffix = suffix_of(location, WRITERS)
    if suffix is None:
        raise UnknownNameError(
            f"cannot save {location.name!r}: no writer for this suffix.{suggest(location.suffix.lower(), WRITERS)}"
        )
    if tile < 1:
        raise BadValueError(f"tile {tile}; expected a positive number of pixels.")
    if location.exists() and not overwrite:
        raise ConflictError(f"{location} exists already; choose another name or pass overwrite=True.")
    with stage("data", verb="save", scan=location):
        _load(WRITERS[suffix])(scan, location, tile=tile, compression=compression, progress=progress)
    return location


def suffix_of(path: Path, table: dict[str, str]) -> str | None:
    """Return the longest suffix of a file name that `table` knows, in the file's own spelling's length, or None."""
    name = path.name.lower()
    return max((s for s in table if name.endswith(s)), key=len, default=None)


@cache
def _readers() -> dict[str, str]:
    return READERS | {point.name: point.value for point in entry_points(group="dhlab.readers")}


def _load(target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(module), function)
    return loaded


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    found = [p.name for p in sorted(folder.iterdir()) if suffix_of(p, READERS)]
    return f"scans in {folder}: {', '.join(found[:5]) or 'none'}{' …' if len(found) > 5 else ''}"
