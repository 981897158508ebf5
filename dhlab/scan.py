"""`Scan`: any raster, lazily read, in several resolutions, with named axes and physical spacing."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Level", "Parent", "Scan"]

AXES = "tczyx"


@runtime_checkable
class Level(Protocol):
    """One resolution of a scan: anything with a shape, a dtype and N-d slicing (NumPy, zarr, a reader's own).

    A level may also offer ``read_windows(starts, size, out)``: read many windows of `size` level pixels at `starts`
    (int64, ``(N, ndim)`` over the window axes, in level pixels, wholly or partly outside allowed) into `out`,
    decoding each stored tile once. `Scan.read_many` uses it where it exists.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels."""

    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class Parent:
    """The scan that a heat map, a mask or a label map was made from.

    Parameters
    ----------
    name
        Name of the parent scan.
    spacing
        Physical size of a level-0 pixel of the parent, per window axis, in `unit`.
    shape
        Shape of the parent's level 0 along the window axes, in pixels.
    unit
        Unit of `spacing`.
    """

    name: str
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    unit: str


@dataclass(frozen=True, eq=False)
class Scan:
    """A lazily read, multiscale raster with named axes and physical spacing.

    A whole slide, a photograph, a CT volume, an EEG recording, a heat map and a mask are all scans. Arrays keep the
    scan's own axis order and dtype. Positions are level-0 pixels, sizes are pixels of the thing asked for, and
    tuples follow `axes` without ``c`` (the *window axes*).

    Parameters
    ----------
    levels
        Resolutions from finest to coarsest; each has a `shape`, a `dtype` and slicing.
    axes
        Axis letters of every level, among ``t c z y x``: ``"yxc"`` slide, ``"zyx"`` volume, ``"ct"`` signal,
        ``"cyx"`` heat map.
    spacing
        Physical size of a level-0 pixel along each window axis, in `unit`.
    unit
        ``"µm"``, ``"mm"``, ``"s"``, or ``"px"`` where the physical size is unknown.
    scales
        Level-0 pixels per level pixel, for each level and window axis. Stored, never derived from shapes, where the
        file states them.
    origin
        Physical position of the outer corner of the first pixel, in `unit`, in the frame of the parent or patient.
    channels
        Channel names, one per index of ``c``; empty if there is no ``c``.
    name
        Short name for people and files.
    kind
        ``"image"``, ``"heatmap"`` (scores per class), ``"mask"`` (binary) or ``"labels"`` (class indices).
    fill
        Value read outside the scan (255 for bright-field slides).
    parent
        Where a derived scan comes from.
    meta
        What the reader found: ``reader``, ``reader_version``, ``spacing_source``, ``path``, ``vendor`` … Values are
        JSON-compatible.
    """

    levels: tuple[Level, ...]
    axes: str
    spacing: tuple[float, ...]
    unit: str = "px"
    scales: tuple[tuple[float, ...], ...] = ()
    origin: tuple[float, ...] = ()
    channels: tuple[str, ...] = ()
    name: str = "scan"
    kind: str = "image"
    fill: int | float = 0
    parent: Parent | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_axes(self.axes)
        if not self.levels:
            raise BadShapeError("a scan has at least one level; got none.")
        for number, level in enumerate(self.levels):
            if len(level.shape) != len(self.axes):
                raise BadShapeError(
                    f"level {number} has shape {tuple(level.shape)}; expected {len(self.axes)} axes {self.axes!r}."
                )
            if min(level.shape) < 1:
                raise BadShapeError(f"level {number} is empty: shape {tuple(level.shape)}.")
            if np.dtype(level.dtype) != np.dtype(self.levels[0].dtype):
                raise BadShapeError(
                    f"level {number} has dtype {level.dtype}; expected {self.levels[0].dtype} as in level 0."
                )
        ndim = len(self.window_axes)
        object.__setattr__(self, "spacing", _check_spacing(self.spacing, ndim))
        object.__setattr__(self, "origin", tuple(map(float, self.origin)) or (0.0,) * ndim)
        if not self.scales:
            shape = np.array(self.shape_of(0), float)
            scales = tuple(tuple((shape / self.shape_of(i)).tolist()) for i in range(len(self.levels)))
            object.__setattr__(self, "scales", scales)
        if len(self.scales) != len(self.levels) or any(len(s) != ndim for s in self.scales):
            raise BadShapeError(f"expected {len(self.levels)} scales of length {ndim}; got {self.scales}.")
        if not self.channels and "c" in self.axes:
            count = int(self.levels[0].shape[self.axes.index("c")])
            names = ("red", "green", "blue") if count == 3 and self.kind == "image" else map(str, range(count))
            object.__setattr__(self, "channels", tuple(names))

    @classmethod
    def from_array(
        cls,
        array: ArrayLike,
        axes: str,
        *,
        spacing: float | Sequence[float] = 1.0,
        unit: str = "px",
        name: str = "array",
        kind: str = "image",
        channels: Sequence[str] = (),
        fill: float = 0,
        pyramid: bool = True,
    ) -> Scan:
        """Make a scan of an array in memory.

        Parameters
        ----------
        array
            Pixels, any dtype, one axis per letter of `axes`.
        axes
            Axis letters, as in `Scan`.
        spacing
            Physical size of a pixel along each window axis, in `unit`; one number counts for all.
        unit
            Unit of `spacing`; ``"px"`` if unknown.
        name
            Name of the scan.
        kind
            ``"image"``, ``"heatmap"``, ``"mask"`` or ``"labels"``.
        channels
            Channel names.
        fill
            Value read outside.
        pyramid
            Add coarser levels by halving y and x until they fit in 1024 pixels (mean for images and heat maps,
            nearest for masks and labels).

        Returns
        -------
        Scan
            A scan over the array (not copied).

        Raises
        ------
        BadShapeError
            If array and axes do not fit.
        BadValueError
            If a spacing is not positive and finite.
        """
        base = np.asarray(array)
        _check_axes(axes)
        if base.ndim != len(axes):
            raise BadShapeError(f"array has shape {base.shape}; expected {len(axes)} axes {axes!r}.")
        ndim = len(axes.replace("c", ""))
        per_axis = (float(spacing),) * ndim if isinstance(spacing, (int, float)) else tuple(map(float, spacing))
        levels, scales = [base], [(1.0,) * ndim]
        plane = [axes.index(a) for a in "yx" if a in axes]
        while pyramid and len(plane) == 2 and max(levels[-1].shape[i] for i in plane) > 1024:
            levels.append(halve(levels[-1], plane, nearest=kind in ("mask", "labels")))
            factor = 2.0 ** (len(levels) - 1)
            scales.append(tuple(factor if a in "yx" else 1.0 for a in axes.replace("c", "")))
        return cls(
            levels=tuple(levels),
            axes=axes,
            spacing=per_axis,
            unit=unit,
            scales=tuple(scales),
            channels=tuple(channels),
            name=name,
            kind=kind,
            fill=fill,
            meta={"reader": "memory"},
        )

    @property
    def window_axes(self) -> str:
        """Axes along which windows are cut: all but ``c``."""
        return self.axes.replace("c", "")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of level 0 along the window axes, in pixels."""
        return self.shape_of(0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels."""
        return np.dtype(self.levels[0].dtype)

    @property
    def size(self) -> tuple[float, ...]:
        """Physical size along the window axes, in `unit`."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))

    def shape_of(self, level: int) -> tuple[int, ...]:
        """Return the shape of a level along the window axes, in pixels."""
        return tuple(int(n) for n, a in zip(self.levels[level].shape, self.axes, strict=True) if a != "c")

    def spacing_of(self, level: int) -> tuple[float, ...]:
        """Return the physical size of a level's pixel along the window axes, in `unit`."""
        return tuple(a * b for a, b in zip(self.spacing, self.scales[level], strict=True))

    def window_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the array shape of a window of `size` (window axes), channels included, in the order of `axes`."""
        sizes = iter(size)
        return tuple(self.levels[0].shape[i] if a == "c" else int(next(sizes)) for i, a in enumerate(self.axes))

    def level_for(self, spacing: float | Sequence[float]) -> int:
        """Return the coarsest level that is at least as fine as `spacing`.

        Parameters
        ----------
        spacing
            Wanted physical pixel size, in `unit`, for all window axes or each.

        Returns
        -------
        int
            Level index; 0 if even the finest level is too coarse. Levels up to 1 % coarser count as fine enough.
        """
        wanted = np.broadcast_to(np.asarray(spacing, float), (len(self.window_axes),))
        fits = [i for i in range(len(self.levels)) if np.all(np.asarray(self.spacing_of(i)) <= wanted * 1.01)]
        return max(fits, key=lambda i: math.prod(self.scales[i]), default=0)

    def read(self, start: Sequence[int], size: Sequence[int], level: int = 0) -> NDArray[Any]:
        """Read one window.

        Parameters
        ----------
        start
            First corner in level-0 pixels, one number per window axis; may lie outside the scan.
        size
            Window size in pixels of `level`, one number per window axis.
        level
            Level to read.

        Returns
        -------
        ndarray
            Pixels in the order of `axes`, dtype of the scan; `fill` outside the scan.

        Raises
        ------
        BadValueError
            If there is no such level.
        BadShapeError
            If `start` or `size` do not fit the axes.
        BadFileError
            If the stored data cannot be decoded.
        """
        return self.read_many([start], size, level)[0]

    def read_many(
        self, starts: ArrayLike, size: Sequence[int], level: int = 0, *, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Read many windows of one size; each stored tile is decoded once.

        Parameters
        ----------
        starts
            ``(N, ndim)`` first corners in level-0 pixels, along the window axes; may lie outside the scan.
        size
            Window size in pixels of `level`, one number per window axis.
        level
            Level to read.
        out
            C-contiguous array ``(N, *window)`` of the scan's dtype to read into. Reuse
            it: fresh memory costs more than copying.

        Returns
        -------
        ndarray
            ``(N, *window)``, windows in the order of `axes`; `fill` outside the scan.

        Raises
        ------
        BadValueError
            If there is no such level.
        BadShapeError
            If `starts`, `size` or `out` do not fit.
        BadFileError
            If the stored data cannot be decoded.
        """
        if not 0 <= level < len(self.levels):
            raise BadValueError(f"level {level} of {self.name!r}; expected 0 to {len(self.levels) - 1}.")
        ndim = len(self.window_axes)
        corners = np.asarray(starts)
        if corners.size == 0:
            corners = corners.reshape(0, ndim)
        if corners.ndim != 2 or corners.shape[1] != ndim or len(size) != ndim or min(size) < 1:
            raise BadShapeError(
                f"starts {corners.shape} and size {tuple(size)}; expected (N, {ndim}) and {ndim} positive numbers "
                f"for window axes {self.window_axes!r}."
            )
        at_level = np.rint(corners / np.asarray(self.scales[level])).astype(np.int64)
        shape = (len(corners), *self.window_shape(size))
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype:
            raise BadShapeError(f"out is {out.shape} {out.dtype}; expected {shape} {self.dtype}.")
        source = self.levels[level]
        if hasattr(source, "read_windows"):
            source.read_windows(at_level, tuple(int(s) for s in size), out)
        else:
            for corner, window in zip(at_level, out, strict=True):
                self._read_window(source, corner, window)
        return out

    def _read_window(self, source: Level, corner: NDArray[np.int64], window: NDArray[Any]) -> None:
        corners = iter(corner.tolist())
        inside, target = [], []
        for axis, length, size in zip(self.axes, source.shape, window.shape, strict=True):
            first = 0 if axis == "c" else next(corners)
            low, high = max(first, 0), min(first + size, length)
            inside.append(slice(low, max(high, low)))
            target.append(slice(low - first, max(high, low) - first))
        if any(s.stop <= s.start for s in inside):
            window[...] = self.fill
            return
        if any(t.stop - t.start != n for t, n in zip(target, window.shape, strict=True)):
            window[...] = self.fill
        window[tuple(target)] = np.asarray(source[tuple(inside)])

    def thumbnail(self, max_px: int = 512) -> NDArray[np.uint8]:
        """Return a small picture of the whole scan, for people.

        Parameters
        ----------
        max_px
            Longest side in pixels.

        Returns
        -------
        ndarray
            ``(height, width, 3)`` uint8. Volumes show their middle slice, signals their traces, heat maps and labels
            a colour map.
        """
        from dhlab.display import thumbnail

        return thumbnail(self, max_px)

    def replace(self, **changes: Any) -> Scan:
        """Return a copy with some fields changed, for example ``scan.replace(name="case 7")``."""
        return replace(self, **changes)

    def as_parent(self) -> Parent:
        """Return the reference that a scan derived from this one keeps as its `parent`."""
        return Parent(self.name, self.spacing, self.shape, self.unit)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.shape))
        pixel = " × ".join(f"{s:g}" for s in dict.fromkeys(self.spacing))
        channels = f", {len(self.channels)} channels" if self.channels and len(self.channels) != 3 else ""
        noun = "level" if len(self.levels) == 1 else "levels"
        return (
            f"Scan {self.name!r}: {shape} px ({self.window_axes}), {pixel} {self.unit}/px, {self.dtype}{channels}, "
            f"{len(self.levels)} {noun}, {self.kind}"
        )

    def _repr_html_(self) -> str:
        from html import escape

        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self.thumbnail(256)).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        rows = {
            "size": " × ".join(f"{n:,} px" for n in self.shape)
            + (f" ({' × '.join(f'{s:,.4g}' for s in self.size)} {self.unit})" if self.unit != "px" else ""),
            "spacing": " × ".join(f"{s:g}" for s in self.spacing)
            + f" {self.unit}/px"
            + (f", from {self.meta['spacing_source']}" if "spacing_source" in self.meta else ""),
            "axes": f"{self.axes} {self.dtype}",
            "levels": ", ".join(f"1/{max(s):.4g}" for s in self.scales),
            "reader": f"{self.meta.get('reader', '')} {self.meta.get('reader_version', '')}",
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{key}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for key, value in rows.items()
        )
        return (
            "<div style='display:flex;gap:1em;align-items:flex-start'>"
            f"<img alt='thumbnail' style='border:1px solid #8884' src='data:image/png;base64,{data}'>"
            f"<div><b>{escape(self.name)}</b> · {self.kind}<table>{cells}</table></div></div>"
        )


def halve(array: NDArray[Any], plane: Sequence[int], *, nearest: bool = False) -> NDArray[Any]:
    """Halve an array along two axes: mean of 2 × 2 (odd edges repeat), or every second pixel if `nearest`.

    Parameters
    ----------
    array
        Any array.
    plane
        Indices of the two axes to halve.
    nearest
        Take every second pixel instead of the mean (masks, labels).

    Returns
    -------
    ndarray
        Same dtype, ``ceil(n / 2)`` along the two axes.
    """
    if nearest:
        return array[tuple(slice(None, None, 2) if i in plane else slice(None) for i in range(array.ndim))]
    pad = [(0, array.shape[i] % 2 if i in plane else 0) for i in range(array.ndim)]
    if any(p[1] for p in pad):
        array = np.pad(array, pad, mode="edge")
    total = np.zeros((), np.float32)
    for first in (0, 1):
        for second in (0, 1):
            offset = {plane[0]: first, plane[1]: second}
            part = array[tuple(slice(offset.get(i), None, 2 if i in offset else None) for i in range(array.ndim))]
            total = total + part.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    mean = total / 4
    return (np.rint(mean) if np.issubdtype(array.dtype, np.integer) else mean).astype(array.dtype)


def _check_axes(axes: str) -> None:
    if not axes or any(a not in AXES for a in axes) or len(set(axes)) != len(axes) or axes == "c":
        raise BadShapeError(f"axes {axes!r}; expected distinct letters among {AXES!r}, as in 'yxc', 'zyx' or 'ct'.")


def _check_spacing(spacing: Sequence[float], ndim: int) -> tuple[float, ...]:
    values = tuple(map(float, spacing))
    if len(values) != ndim:
        raise BadShapeError(f"spacing {values}; expected {ndim} numbers, one per window axis.")
    if not all(math.isfinite(v) and v > 0 for v in values):
        raise BadValueError(f"spacing {values}; expected positive, finite numbers. Give the right one with spacing=…")
    return values
