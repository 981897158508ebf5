"""Samples in files: decoded when they are read, a batch on all threads, straight into one array."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.datasets.pictures import Layout, decode, read_layout, resize
from dhlab.errors import BadFileError, BadShapeError, BadValueError, NotFoundError, UnknownNameError
from dhlab.io import READERS, suffix_of
from dhlab.io.pool import run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dhlab.datasets.masks import MaskFiles
    from dhlab.datasets.samples import Batch

__all__ = ["FileSamples", "PictureFiles", "list_files", "read_each"]


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """Pictures or volumes, each of one file or of several stacked.

    Parameters
    ----------
    paths
        The files of each sample.
    size
        Height and width in pixels that each picture is resized to; None leaves them, and then all must be alike.
    channels
        1 for grey, 3 for colour without alpha; None leaves them, and then all must be alike.
    stack
        Axis along which the files of a sample are stacked, ``"z"`` or ``"c"``; None chooses ``"z"`` for pictures and
        ``"c"`` for volumes.
    given
        What a window looks like, where that is known; else the first sample's files tell.
    """

    paths: tuple[tuple[str, ...], ...]
    size: tuple[int, int] | None = None
    channels: int | None = None
    stack: str | None = None
    given: Layout | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise BadValueError(f"channels {self.channels}; expected 1 (grey), 3 (colour) or None (as they are).")
        if self.stack not in (None, "z", "c"):
            raise BadValueError(f"stack {self.stack!r}; expected 'z' (a volume), 'c' (channels) or None.")

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def layout(self) -> Layout:
        """What a window looks like: that of the first sample, after conversion and resizing."""
        return self.given or self._window(0)

    def check(self) -> PictureFiles:
        """Read every header and return the same files with their layout known.

        Raises
        ------
        BadShapeError
            If two samples differ in size, channels, type or number of files.
        NotFoundError
            If a file is not there.
        BadFileError
            If one is no picture.
        """
        for index in range(1, len(self)):
            window = self._window(index)
            if window != self.layout:
                raise BadShapeError(self._difference(index, window))
        return replace(self, given=self.layout)

    def read(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return windows ``(B, *window)`` by index."""
        out = np.empty((len(indices), *self.layout.shape), self.layout.dtype)
        read_each(self._read, indices, out)
        return out

    def _read(self, index: int, out: NDArray[Any]) -> None:
        files = self.paths[index]
        if len(files) == 1:
            self._read_file(index, files[0], out)
            return
        if len(files) != len(out) or self.layout.axes[0] != self._stacked(self.layout.axes[1:]):
            raise BadShapeError(self._difference(index, self._window(index)))
        for plane, path in zip(out, files, strict=True):
            self._read_file(index, path, plane)

    def _read_file(self, index: int, path: str, out: NDArray[Any]) -> None:
        pixels, axes = decode(path, channels=self.channels, least=self.size, into=out)
        if pixels is out:
            return
        if self.size is not None:
            pixels = resize(pixels, axes, self.size)
        wanted = self.layout.axes if len(self.paths[index]) == 1 else self.layout.axes[1:]
        if axes != wanted or pixels.shape != out.shape or pixels.dtype != out.dtype:
            raise BadShapeError(self._difference(index, self._window(index)))
        out[...] = pixels

    def _window(self, index: int) -> Layout:
        """Return what a window of one sample looks like, from the headers of its files."""
        files = self.paths[index]
        layouts = [self._fit(read_layout(path), path) for path in files]
        for path, layout in zip(files, layouts, strict=True):
            if layout != layouts[0]:
                raise BadShapeError(
                    f"sample {index}: {path} is {layout}, {files[0]} {layouts[0]}; files of one sample must be alike. "
                    f"{_remedy(layout, layouts[0])}"
                )
        if len(files) == 1:
            return layouts[0]
        axis = self._stacked(layouts[0].axes)
        if axis in layouts[0].axes:
            raise BadShapeError(f"sample {index}: {files[0]} has axis {axis!r} already; stack along the other.")
        return Layout((len(files), *layouts[0].shape), axis + layouts[0].axes, layouts[0].dtype)

    def _stacked(self, axes: str) -> str:
        return self.stack or ("c" if "z" in axes else "z")

    def _fit(self, layout: Layout, path: str) -> Layout:
        """Return the layout of a file after conversion and resizing."""
        shape, axes = layout.shape, layout.axes
        if self.channels is not None:
            if axes not in ("yx", "yxc"):
                raise BadShapeError(f"{path} is {layout}; channels={self.channels} is for pictures, axes yx or yxc.")
            shape, axes = (shape[:2], "yx") if self.channels == 1 else ((*shape[:2], 3), "yxc")
        if self.size is not None:
            if not {"y", "x"} <= set(axes):
                raise BadShapeError(f"{path} is {layout}; size is for files with axes y and x.")
            new = dict(zip("yx", self.size, strict=True))
            shape = tuple(new.get(a, n) for a, n in zip(axes, shape, strict=True))
        return Layout(shape, axes, layout.dtype)

    def _difference(self, index: int, window: Layout) -> str:
        return (
            f"sample {index} ({self.paths[index][0]}) is {window}, sample 0 ({self.paths[0][0]}) {self.layout}; "
            f"samples of one dataset must be alike. {_remedy(window, self.layout)}"
        )


@dataclass(frozen=True, eq=False)
class FileSamples:
    """Samples whose pixels lie in files.

    Parameters
    ----------
    pictures
        The files of the windows.
    aims
        Targets ``(N, …)`` in the shape and type of the task, or files of masks.
    """

    pictures: PictureFiles
    aims: NDArray[Any] | MaskFiles

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return windows and targets by index."""
        return self.pictures.read(indices), self.targets(indices)

    def targets(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return targets by index; reads masks, not pictures."""
        if isinstance(self.aims, np.ndarray):
            return self.aims[indices]
        space = tuple(n for n, a in zip(self.pictures.layout.shape, self.pictures.layout.axes, strict=True) if a != "c")
        return self.aims.read(indices, space)

    def fresh(self, index: int) -> None:
        """Return None: files do not overlap."""
        return


def read_each(read: Callable[[int, NDArray[Any]], None], indices: NDArray[np.int64], out: NDArray[Any]) -> None:
    """Read samples into an array on all threads; what is read does not depend on how many there are.

    Parameters
    ----------
    read
        Takes the index of a sample and its place in `out`.
    indices
        Indices of samples, ``(B,)``.
    out
        ``(B, …)``, one place per sample.

    Raises
    ------
    DHLabError
        The fault of the first sample, in the order of `indices`, that cannot be read; it names the sample.
    """

    def work(places: Sequence[int]) -> None:
        for place in places:
            index = int(indices[place])
            try:
                read(index, out[place, ...])
            except (BadFileError, NotFoundError, UnknownNameError) as error:
                raise type(error)(f"sample {index}: {error}") from error

    run_all(work, range(len(indices)), least=4)


def list_files(where: str | Path | Sequence[str | Path]) -> list[str]:
    """Return picture files: those of a folder and below, those that match a pattern, or those given.

    Parameters
    ----------
    where
        Folder, pattern with ``*`` or ``?``, or the files themselves.

    Returns
    -------
    list of str
        Sorted by name, unless the files themselves are given.

    Raises
    ------
    NotFoundError
        If there is none.
    """
    if not isinstance(where, str | Path):
        return [str(Path(path).expanduser().absolute()) for path in where]
    place = Path(where).expanduser().absolute()
    if place.is_dir():
        found = [p for p in place.rglob("*") if is_picture(p.relative_to(place)) and p.is_file()]
    elif any(mark in str(where) for mark in "*?["):
        fixed = [part for part in place.parts if not any(mark in part for mark in "*?[")]
        base = Path(*place.parts[: next(i for i, p in enumerate(place.parts) if p not in fixed)])
        found = [p for p in base.glob(str(place.relative_to(base))) if is_picture(p.relative_to(base)) and p.is_file()]
    else:
        raise NotFoundError(f"no folder at {place}; expected one with pictures, a pattern such as 'a/*.png', or files.")
    if not found:
        raise NotFoundError(f"no pictures in {place}; expected files such as .png, .jpg or .tif.")
    return sorted(map(str, found))


def is_picture(path: Path) -> bool:
    """Tell whether a reader knows a file by its name; hidden files are none."""
    return not any(part.startswith(".") for part in path.parts) and suffix_of(path, READERS) is not None


def check_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return height and width in pixels."""
    if size is None:
        return None
    values = (size, size) if isinstance(size, int) else tuple(size)
    if len(values) != 2 or min(values) < 1:
        raise BadValueError(f"size {size}; expected pixels, one number or (height, width).")
    return values[0], values[1]


def _remedy(first: Layout, second: Layout) -> str:
    told = []
    if any(first.size(a) != second.size(a) for a in "yx"):
        told.append("give size=(height, width) to resize them")
    if first.size("c") != second.size("c"):
        told.append("give channels=1 or channels=3 to convert them")
    if not told:
        told.append("leave out those that differ, or convert them")
    text = ", or ".join(told) if len(told) == 1 else " and ".join(told)
    return f"{text[0].upper()}{text[1:]}."
