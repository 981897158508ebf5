"""`BandWriter`: an OME-Zarr that a long run writes row by row, continues after a kill, and shows only when whole."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dhlab.atomic import (
    atomic_write_text,
    move_into_place,
    remove,
    storage_errors,
    sync_tree,
)
from dhlab.errors import BadShapeError, BadValueError, ConflictError, NotFoundError
from dhlab.io.chunks import read_json
from dhlab.io.ngff import Image, compose_attributes, disk_axes
from dhlab.io.ownership import Ownership
from dhlab.io.shards import (
    ShardedLayout,
    disk_order,
    plan_layout,
    to_disk,
    write_array_metadata,
    write_coarser_levels,
    write_shard,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from dhlab.scan import Parent

__all__ = ["BandWriter", "write_image_metadata"]

KEPT = "finished bands are kept, so that the same run continues there"


class BandWriter:
    """An OME-Zarr written in bands along its first window axis; make one with `create`.

    Bands are durable once `write_band` returns. What is written lies in a hidden folder beside the output until
    `finish` renames it. After a crash, `create` with the same arguments goes on where it stopped; the result is the
    same to the bit.

    Parameters
    ----------
    path
        Where the finished image appears.
    image
        What the image is.
    layout
        How it lies on disk.
    fingerprint
        What the pixels are made with.
    owner
        The claim on the hidden folder.
    """

    def __init__(
        self, path: Path, image: Image, *, layout: ShardedLayout, fingerprint: Mapping[str, Any], owner: Ownership
    ) -> None:
        self.path = path
        self._image, self._layout, self._fingerprint, self._owner = image, layout, fingerprint, owner
        self._root, self._journal = owner.folder / "image", owner.folder / "journal"
        self._axis = disk_axes(image.axes).index(image.axes.replace("c", "")[0])
        self._shown = image.axes.index(image.axes.replace("c", "")[0])
        self._lock = threading.Lock()
        self._drop_replaced()
        write_array_metadata(self._root / "0", layout)
        self.done = self._read_journal()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        shape: Sequence[int],
        axes: str,
        dtype: DTypeLike,
        spacing: Sequence[float],
        unit: str = "px",
        origin: Sequence[float] = (),
        channels: Sequence[str] = (),
        name: str = "scan",
        kind: str = "heatmap",
        fill: float = 0,
        parent: Parent | None = None,
        tile: int = 512,
        compression: str = "auto",
        fingerprint: Mapping[str, Any],
        resume: bool = True,
        overwrite: bool = False,
    ) -> BandWriter:
        """Begin an output, or go on with one that was interrupted.

        Parameters
        ----------
        path
            Where the finished image appears.
        shape
            Length of every axis in pixels, channels included, in the order of `axes`.
        axes
            Axis letters, as in `Scan`.
        dtype
            Data type of the pixels.
        spacing
            Physical pixel size per window axis, in `unit`.
        unit
            Unit of `spacing`, as in `Scan`.
        origin
            Physical position of the outer corner of the first pixel per window axis, in `unit`; else 0.
        channels
            Channel names.
        name
            Name of the image.
        kind
            ``"image"``, ``"heatmap"``, ``"mask"`` or ``"labels"``.
        fill
            Value outside, and in bands given as None.
        parent
            The scan it is made from.
        tile
            Chunk side in pixels.
        compression
            ``"auto"``, ``"zstd"`` or ``"none"``.
        fingerprint
            What the pixels are made with (model, scan, settings); JSON-compatible. An interrupted output is
            continued only if nothing in it differs.
        resume
            False throws away what an interrupted run left.
        overwrite
            Replace a finished output, once this one is finished.

        Returns
        -------
        BandWriter
            Ready for the bands that are not in `done`.

        Raises
        ------
        ConflictError
            If the output exists, another process writes it, or the interrupted one was made with something else.
        StorageError
            If the folder cannot be written.
        """
        target = Path(os.path.realpath(Path(path).expanduser()))
        if not target.parent.is_dir():
            raise NotFoundError(
                f"cannot write {target.name!r}: the folder {target.parent} does not exist. Make it first."
            )
        if target.exists() and not overwrite:
            raise ConflictError(f"{target} exists already; choose another name or pass overwrite=True.")
        kind_of_pixel = np.dtype(np.uint8) if np.dtype(dtype) == bool else np.dtype(dtype)
        ndim = len(axes.replace("c", ""))
        places = tuple(map(float, origin)) or (0.0,) * ndim
        if len(shape) != len(axes) or min(shape) < 1 or len(spacing) != ndim or len(places) != ndim:
            raise BadShapeError(
                f"shape {tuple(shape)}, spacing {tuple(spacing)} and origin {places}; expected {len(axes)} positive "
                f"lengths for axes {axes!r}, and {ndim} numbers each for its window axes."
            )
        image = Image(
            axes, tuple(map(float, spacing)), unit, places, tuple(channels), name, kind, kind_of_pixel, fill, parent
        )
        stored, first = disk_axes(axes), axes.replace("c", "")[0]
        sizes = dict(zip(axes, map(int, shape), strict=True))
        layout = plan_layout(
            tuple(sizes.get(a, 1) for a in stored),
            stored,
            kind_of_pixel,
            order=disk_order(axes),
            tile=tile,
            compression=compression,
            fill=fill,
            band=stored.index(first),
        )
        plan = {
            "fingerprint": dict(fingerprint),
            "shape": list(shape),
            "tile": tile,
            "compression": layout.compression,
            "band_height": layout.shard[layout.axes.index(first)],
            "dtype": str(kind_of_pixel),
            **{k: v for k, v in asdict(image).items() if k not in ("dtype", "provenance")},
        }
        owner = Ownership.take(target)
        try:
            _settle(owner.folder, plan, target, resume=resume)
            return cls(target, image, layout=layout, fingerprint=fingerprint, owner=owner)
        except BaseException:
            owner.release()
            raise

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self._layout.grid[self._axis]

    @property
    def band_height(self) -> int:
        """Length of a band along the first window axis in pixels; the last one may be shorter."""
        return self._layout.shard[self._axis]

    def band_shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of the array that `write_band` expects, in pixels, in the order of the axes."""
        if not 0 <= index < self.bands:
            raise BadValueError(f"band {index}; expected 0 to {self.bands - 1}.")
        stored = disk_axes(self._image.axes)
        lengths = dict(zip(stored, self._layout.shape, strict=True))
        first = index * self.band_height
        lengths[stored[self._axis]] = min(self.band_height, self._layout.shape[self._axis] - first)
        return tuple(lengths[a] for a in self._image.axes)

    def write_band(self, index: int, array: NDArray[Any] | None) -> None:
        """Write one band, durable when this returns; several threads may write different bands.

        Parameters
        ----------
        index
            Which band, from 0.
        array
            Its pixels, of `band_shape` and the dtype of the output; None for a band of nothing but fill.

        Raises
        ------
        BadShapeError
            If the array has another shape or dtype.
        ConflictError
            If another process has taken the output over.
        StorageError
            If the disk is full.
        """
        expected, dtype = self.band_shape(index), self._image.dtype
        if array is not None and array.dtype == bool:
            array = array.view(np.uint8)
        if array is not None and (array.shape != expected or array.dtype != dtype):
            raise BadShapeError(f"band {index} is {array.shape} {array.dtype}; expected {expected} {dtype}.")
        self._owner.check()
        begin = index * self.band_height
        whole = None if array is None else to_disk(array, self._image.axes)

        def make(box: tuple[slice, ...]) -> NDArray[Any]:
            if whole is None:
                return np.full([b.stop - b.start for b in box], self._image.fill, dtype)
            inside = list(box)
            inside[self._axis] = slice(box[self._axis].start - begin, box[self._axis].stop - begin)
            return whole[tuple(inside)]

        written = {}
        with storage_errors(self.path, left=KEPT):
            for cell in self._layout.cells:
                if cell[self._axis] == index:
                    written["/".join(map(str, cell))] = write_shard(self._root / "0", self._layout, cell, make)
            _sync_parents(self._root / "0")
            self._owner.check()
            atomic_write_text(self._journal / f"{index}.json", json.dumps(written))
        with self._lock:
            self.done = self.done | {index}

    def finish(self) -> None:
        """Make the coarser levels, write the metadata, and let the image appear at its path.

        Raises
        ------
        BadValueError
            If a band is missing.
        StorageError
            If the disk is full.
        """
        missing = sorted(set(range(self.bands)) - self.done)
        if missing:
            raise BadValueError(
                f"bands {missing[:8]}{' …' if len(missing) > 8 else ''} of {self.path.name} are not written; write "
                "them first (None for bands of nothing but fill)."
            )
        self._owner.check()
        with storage_errors(self.path, left=KEPT):
            for level in self._root.iterdir():
                if level.name != "0":
                    remove(level)
            stored = disk_axes(self._image.axes)
            layouts = write_coarser_levels(
                self._root,
                self._layout,
                (stored.index("y"), stored.index("x")),
                nearest=self._image.kind in ("mask", "labels"),
            )
            write_image_metadata(self._root, self._image, layouts, fingerprint=self._fingerprint)
            sync_tree(self._root)
            self._owner.check()
            move_into_place(self._root, self.path)
        self._owner.remove()

    def close(self) -> None:
        """Give the output free for another process without finishing it; what is written stays, to be continued."""
        self._owner.release()

    def discard(self) -> None:
        """Remove everything that is written."""
        self._owner.check()
        self._owner.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BandWriter {self.path.name!r}: {len(self.done)} of {self.bands} bands of {self.band_height} px"

    def _drop_replaced(self) -> None:
        """Remove an older image that a crash left here, in exchange for the finished one."""
        if not (self._root / "zarr.json").exists():
            return
        own = read_json(self._root / "zarr.json")["attributes"].get("dhlab", {})
        if own.get("fingerprint") != json.loads(json.dumps(self._fingerprint)) or (
            read_json(self._root / "0" / "zarr.json") != self._layout.metadata()
        ):
            remove(self._root)
            (self._root / "0").mkdir(parents=True)

    def _read_journal(self) -> frozenset[int]:
        """Return the bands that were written whole; their shards must still be there in full size."""
        done = set()
        for entry in self._journal.glob("*.json"):
            try:
                shards = json.loads(entry.read_text())
                sizes = {key: (self._root / "0" / "c" / key).stat().st_size for key in shards}
            except (OSError, ValueError):
                continue
            if sizes == shards and entry.stem.isdigit() and int(entry.stem) < self.bands:
                done.add(int(entry.stem))
        return frozenset(done)


def write_image_metadata(
    root: Path, image: Image, layouts: Sequence[ShardedLayout], *, fingerprint: Mapping[str, Any] | None = None
) -> None:
    """Write the metadata of the group, the last file of an image: without it there is none."""
    attributes = compose_attributes(
        image,
        [layout.shape for layout in layouts],
        shards=[prod(layout.grid) for layout in layouts],
        fingerprint=fingerprint,
    )
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (root / "zarr.json").write_text(json.dumps(group, indent=2, ensure_ascii=False), encoding="utf-8")


def _settle(folder: Path, plan: Mapping[str, Any], target: Path, *, resume: bool) -> None:
    """Make the folder hold this plan: continue it if it is the same, begin it if there is none."""
    place = folder / "plan.json"
    wanted = json.loads(json.dumps(plan))
    # A run that was killed as it had published its image leaves no image behind.
    if place.exists() and not (resume and (folder / "image").is_dir()):
        place.unlink()
    if place.exists():
        found = json.loads(place.read_text(encoding="utf-8"))
        differences = _differences(found, wanted)
        if differences:
            raise ConflictError(
                f"an interrupted run left part of {target.name} in {folder}, made with something else: "
                f"{'; '.join(differences[:4])}{' …' if len(differences) > 4 else ''}. Pass resume=False to begin anew, "
                "or choose another name."
            )
    else:
        for leftover in ("image", "journal"):
            remove(folder / leftover)
        (folder / "image" / "0").mkdir(parents=True)
        (folder / "journal").mkdir()
        atomic_write_text(place, json.dumps(wanted, ensure_ascii=False))


def _differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(k for k in found if k not in wanted)]
        told = [_differences(found.get(k), wanted.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [one for each in told for one in each]
    if found == wanted or (found != found and wanted != wanted):
        return []
    return [f"{where.removeprefix('fingerprint.')} was {found!r}, is {wanted!r}"]


def _sync_parents(folder: Path) -> None:
    for place, _, _ in os.walk(folder):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
