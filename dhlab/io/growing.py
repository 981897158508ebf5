"""`GrowingImage`: an OME-Zarr that a `BandWriter` is still writing, read as far as it is whole."""

from __future__ import annotations

import bisect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError, NotFoundError
from dhlab.io.chunks import ZarrArray
from dhlab.io.ngff import disk_axes
from dhlab.io.omezarr import ZarrLevel
from dhlab.io.ownership import folder_of
from dhlab.io.pool import Stamp
from dhlab.scan import Parent, Scan

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

__all__ = ["GrowingImage", "GrowingLevel"]


class GrowingLevel:
    """Level 0 of an image that is being written; bands that are not whole yet hold the fill value.

    Parameters
    ----------
    stored
        What is on disk.
    axis
        The axis along which bands lie.
    band_height
        Length of a band along it, in pixels.
    """

    def __init__(self, stored: ZarrLevel, axis: int, band_height: int) -> None:
        self.stored, self.axis, self.band_height = stored, axis, band_height
        self.done: tuple[int, ...] = ()
        self.shape, self.dtype = stored.shape, stored.dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        keys = key if isinstance(key, tuple) else (key,)
        assert len(keys) == len(self.shape)
        assert all(isinstance(k, slice) for k in keys)
        spans = [range(*k.indices(n)) for k, n in zip(keys, self.shape, strict=True)]
        out = np.full([len(span) for span in spans], self.stored.array.fill, self.dtype)
        along = spans[self.axis]
        for band in self.done:
            low = max(along.start, band * self.band_height)
            high = min(along.stop, (band + 1) * self.band_height)
            if low >= high:
                continue
            source, target = list(keys), [slice(None)] * len(keys)
            source[self.axis], target[self.axis] = slice(low, high), slice(low - along.start, high - along.start)
            out[tuple(target)] = self.stored[tuple(source)]
        return out

    def grown(self, low: float, high: float) -> int:
        """Return how many bands between two places along the axis, in pixels, are whole: it only ever grows."""
        first = bisect.bisect_left(self.done, int(low // self.band_height))
        return bisect.bisect_left(self.done, -int(-high // self.band_height)) - first


class GrowingImage:
    """What a run has written so far of an image that is not at its place yet.

    Parameters
    ----------
    path
        Where the finished image will appear, ``….ome.zarr``.

    Raises
    ------
    BadFileError
        If nobody has begun to write it, or it cannot be understood.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.folder = folder_of(self.path.resolve())
        try:
            self._plan = Stamp.of(self.folder / "plan.json")
            plan = json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
            parent = plan["parent"]
            axes: str = plan["axes"]
            array = ZarrArray(self.folder / "image" / "0")
            self._level = GrowingLevel(
                ZarrLevel(array, disk_axes(axes), axes), axes.index(axes.replace("c", "")[0]), plan["band_height"]
            )
            self.scan = Scan(
                levels=(self._level,),
                axes=axes,
                spacing=tuple(plan["spacing"]),
                unit=plan["unit"],
                origin=tuple(plan["origin"]),
                channels=tuple(plan["channels"]),
                name=plan["name"],
                kind=plan["kind"],
                fill=plan["fill"],
                parent=Parent(parent["name"], tuple(parent["spacing"]), tuple(parent["shape"]), parent["unit"])
                if parent
                else None,
                meta={"reader": "dhlab.io.growing", "path": str(self.path)},
            )
        except (OSError, NotFoundError, ValueError, KeyError, TypeError) as error:
            raise BadFileError(
                f"no image is being written at {self.path} ({type(error).__name__}: {error}). Begin the run that "
                "writes it, or open the finished image with dhlab.open."
            ) from error
        self.look()

    def look(self) -> bool:
        """Look for bands that became whole, and return whether there are any."""
        entries = (self.folder / "journal").glob("*.json")
        done = tuple(sorted({int(entry.stem) for entry in entries if entry.stem.isdigit()} | set(self._level.done)))
        more = done != self._level.done
        self._level.done = done
        return more

    @property
    def is_over(self) -> bool:
        """Whether the run has ended: finished, so that the image is at its place, or given up for another one."""
        try:
            return Stamp.of(self.folder / "plan.json") != self._plan
        except NotFoundError:
            return True
