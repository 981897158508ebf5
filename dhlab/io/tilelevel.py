"""`TileLevel`: one resolution of a file that stores tiles or strips, read by decoding each stored tile once."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dhlab.errors import BadFileError, BadShapeError
from dhlab.io.jpeg import JpegDecoder
from dhlab.io.pool import run_all
from dhlab.io.tilecache import TILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Layout", "Plane", "TileLevel", "TileSource", "blocks_of", "read_key"]

_scratch = threading.local()


class Decoder(Protocol):
    """Makes pixels of a stored tile's bytes."""

    def decode(self, data: bytes, index: int, into: NDArray[Any], /) -> NDArray[Any]:
        """Return pixels ``(height, width, channels)`` of tile `index`, in the memory of `into` if that is possible."""


@dataclass
class Plane:
    """Where the tiles of one two-dimensional image lie in the file.

    Parameters
    ----------
    load
        Returns offsets and byte counts of the tiles, row by row; called once, at the first read.
    """

    load: Callable[[], tuple[NDArray[Any], NDArray[Any]]]
    _table: tuple[NDArray[Any], NDArray[Any]] | None = None

    def table(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return offsets and byte counts."""
        if self._table is None:
            self._table = self.load()
        return self._table


@dataclass(frozen=True)
class Layout:
    """How a level is stored.

    Parameters
    ----------
    outer
        Lengths of the axes before y, which number the planes.
    size
        Height and width of the level in pixels.
    tile
        Height and width of a decoded tile.
    channels
        Samples per pixel; the level has no channel axis behind x if `trailing` is off.
    trailing
        Whether the samples are the last axis of the level.
    dtype
        Data type of the pixels.
    planes
        One per position of the outer axes, in C order.
    decoders
        One per plane, or one for all.
    """

    outer: tuple[int, ...]
    size: tuple[int, int]
    tile: tuple[int, int]
    channels: int
    trailing: bool
    dtype: np.dtype[Any]
    planes: tuple[Plane, ...] = field(repr=False)
    decoders: tuple[Decoder, ...] = field(repr=False)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Number of tiles along y and x."""
        return -(-self.size[0] // self.tile[0]), -(-self.size[1] // self.tile[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the level."""
        return (*self.outer, *self.size, *((self.channels,) if self.trailing else ()))


class TileSource(Protocol):
    """An open file with one or more levels; pickles by path."""

    @property
    def name(self) -> str:
        """Name of the file, for messages."""

    def layout(self, level: int) -> Layout:
        """Return how a level is stored; opens the file if it is not open."""

    def fetch(self, offset: int, count: int) -> bytes:
        """Return stored bytes."""

    @property
    def converts(self) -> bool:
        """Whether `finish` changes pixels."""

    def finish(self, pixels: NDArray[Any]) -> None:
        """Do to freshly decoded pixels what the reader was asked for (colour profile), in place."""


class TileLevel:
    """One resolution: has a shape, a dtype and slicing, and reads batches of windows tile by tile.

    Parameters
    ----------
    source
        The file.
    number
        Which level of it.
    axes
        Axis letters, outer axes first, then ``yx``, then ``c`` if the samples of a pixel lie together.
    fill
        Value outside the image and in tiles that are not stored.
    """

    def __init__(self, source: TileSource, number: int, *, axes: str, fill: float) -> None:
        layout = source.layout(number)
        self.source = source
        self.number = number
        self.axes = axes
        self.fill = fill
        self.shape: tuple[int, ...] = layout.shape
        self.dtype: np.dtype[Any] = layout.dtype
        self.tile: tuple[int, int] = layout.tile
        self._identity = object()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_identity"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_identity": object()}

    def __repr__(self) -> str:
        return f"TileLevel {self.number} of {self.source.name!r}: {self.shape} {self.dtype}, tiles of {self.tile}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a level lies in a file: an array of it is always a copy.")
        return np.asarray(self[...], dtype)

    def __getitem__(self, key: Any, /) -> NDArray[Any]:
        return read_key(self.shape, key, self._read_block)

    def _read_block(self, starts: Sequence[int], stops: Sequence[int]) -> NDArray[Any]:
        shape = [stop - start for start, stop in zip(starts, stops, strict=True)]
        trailing = self.axes.endswith("c")
        if trailing:
            shape[-1] = self.shape[-1]
        block = np.empty(shape, self.dtype)
        outer = len(shape) - 2 - trailing
        y, x = starts[outer], starts[outer + 1]
        if block.size:
            jobs = []
            for index in product(*(range(n) for n in shape[:outer])):
                place = [first + i for first, i in zip(starts, index, strict=False)]
                jobs.append((self._plane(place), y, x, block[index]))
            self._read_jobs(jobs)
        return block[..., starts[-1] : stops[-1]] if trailing else block

    def _plane(self, place: Sequence[int]) -> int:
        number = 0
        for at, length in zip(place, self.shape, strict=False):
            number = number * length + at
        return number

    @property
    def holds_pictures(self) -> bool:
        """Whether stored tiles are JPEG of the pixels that reading gives, so that they may be passed on as they are."""
        decoder = self.source.layout(self.number).decoders[0]
        return isinstance(decoder, JpegDecoder) and decoder.factor == 1 and not self.source.converts

    def stored_tile(self, row: int, column: int, place: Sequence[int] = ()) -> bytes | None:
        """Return a stored tile as a JPEG file, not decoded.

        Parameters
        ----------
        row, column
            Place of the tile on the level's grid.
        place
            Position on the axes before y; the first where it is not given.

        Returns
        -------
        bytes or None
            None where the tile is not stored, or does not show by itself what reading gives.

        Raises
        ------
        BadShapeError
            If there is no such tile.
        BadFileError
            If the file ends before the tile does.
        """
        layout = self.source.layout(self.number)
        if not (0 <= row < layout.grid[0] and 0 <= column < layout.grid[1]):
            raise BadShapeError(f"tile {row}, {column} of {self!r}; it has {layout.grid[0]} × {layout.grid[1]} tiles.")
        plane = self._plane(place or (0,) * len(layout.outer))
        decoder = layout.decoders[plane if len(layout.decoders) > 1 else 0]
        if not self.holds_pictures or not isinstance(decoder, JpegDecoder):
            return None
        key = plane, row * layout.grid[1] + column
        found = self._locate(layout, key)
        if found is None:
            return None
        try:
            return decoder.picture(self.source.fetch(*found))
        except BadFileError as error:
            raise self._damaged(layout, key, str(error)) from error

    def read_windows(self, starts: NDArray[np.int64], size: Sequence[int], out: NDArray[Any]) -> None:
        """Read many windows; each stored tile that they need is decoded once.

        Parameters
        ----------
        starts
            ``(N, ndim)`` int64, first corners along the window axes in pixels of this level; may lie outside.
        size
            Window size in pixels, per window axis.
        out
            ``(N, *window)`` of the level's dtype, C-contiguous windows in the order of the axes.

        Raises
        ------
        BadFileError
            If a tile cannot be decoded.
        """
        outer_axes = self.axes.rstrip("c")[:-2]
        if not outer_axes:
            ys, xs = starts[:, 0].tolist(), starts[:, 1].tolist()
            self._read_jobs([(0, y, x, window) for y, x, window in zip(ys, xs, out, strict=True)])
            return
        jobs = []
        outer_shape = self.shape[: len(outer_axes)]
        for start, window in zip(starts.tolist(), out, strict=True):
            corner = iter(start)
            lows = [0 if axis == "c" else next(corner) for axis in outer_axes]
            y, x = corner
            for index in product(*(range(n) for n in window.shape[: len(outer_axes)])):
                place = [low + i for low, i in zip(lows, index, strict=True)]
                if all(0 <= p < n for p, n in zip(place, outer_shape, strict=True)):
                    jobs.append((self._plane(place), y, x, window[index]))
                else:
                    window[index] = self.fill
        self._read_jobs(jobs)

    def _read_jobs(self, jobs: Sequence[tuple[int, int, int, NDArray[Any]]]) -> None:
        """Fill two-dimensional windows, each given by plane, first row, first column and the array to fill."""
        if not jobs:
            return
        layout = self.source.layout(self.number)
        (height, width), (tile_height, tile_width) = layout.size, layout.tile
        columns = layout.grid[1]
        needs: dict[tuple[int, int], list[int]] = {}
        for number, (plane, y, x, window) in enumerate(jobs):
            rows_wanted, columns_wanted = window.shape[:2]
            low_y, low_x = max(y, 0), max(x, 0)
            high_y, high_x = min(y + rows_wanted, height), min(x + columns_wanted, width)
            if high_y - low_y < rows_wanted or high_x - low_x < columns_wanted:
                window[...] = self.fill
                if high_y <= low_y or high_x <= low_x:
                    continue
            for row in range(low_y // tile_height, (high_y - 1) // tile_height + 1):
                for column in range(low_x // tile_width, (high_x - 1) // tile_width + 1):
                    needs.setdefault((plane, row * columns + column), []).append(number)
        tables = {plane: layout.planes[plane].table() for plane in {plane for plane, _ in needs}}

        def position(key: tuple[int, int]) -> int:
            offsets = tables[key[0]][0]
            return int(offsets[key[1]]) if key[1] < len(offsets) else 0

        def work(keys: Sequence[tuple[int, int]]) -> None:
            for key in keys:
                self._read_tile(layout, key, [jobs[i] for i in needs[key]])

        run_all(work, sorted(needs, key=position))

    def _read_tile(
        self, layout: Layout, key: tuple[int, int], jobs: Sequence[tuple[int, int, int, NDArray[Any]]]
    ) -> None:
        row, column = divmod(key[1], layout.grid[1])
        top, left = row * layout.tile[0], column * layout.tile[1]
        bottom, right = min(top + layout.tile[0], layout.size[0]), min(left + layout.tile[1], layout.size[1])
        _, y, x, window = jobs[0]
        whole = (bottom - top, right - left) == layout.tile == window.shape[:2]
        if whole and len(jobs) == 1 and (y, x) == (top, left):
            # The stored tile is the window: decode straight into it.
            pixels = self._decode(layout, key, window)
            if pixels is not window:
                self._place(pixels, (top, left), (bottom, right), jobs)
            return
        # What these windows leave unread of a tile, the next ones are likely to want.
        leftover = (
            min(y for _, y, _, _ in jobs) > top
            or min(x for _, _, x, _ in jobs) > left
            or max(y + window.shape[0] for _, y, _, window in jobs) < bottom
            or max(x + window.shape[1] for _, _, x, window in jobs) < right
        )
        self._place(self._decode(layout, key, None, keep=leftover), (top, left), (bottom, right), jobs)

    def _place(
        self,
        pixels: NDArray[Any] | None,
        low: tuple[int, int],
        high: tuple[int, int],
        jobs: Sequence[tuple[int, int, int, NDArray[Any]]],
    ) -> None:
        """Copy one decoded tile to every window that needs a part of it."""
        (top, left), (bottom, right) = low, high
        for _, y, x, window in jobs:
            rows, columns = window.shape[:2]
            y0 = max(top, y)
            x0 = max(left, x)
            y1 = min(bottom, y + rows)
            x1 = min(right, x + columns)
            target = window[y0 - y : y1 - y, x0 - x : x1 - x]
            if pixels is None:
                target[...] = self.fill
                continue
            part = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
            if part.shape[:2] != target.shape[:2]:
                target[...] = self.fill
                target = target[: part.shape[0], : part.shape[1]]
            target[...] = part if target.ndim == 3 else part[..., 0]

    def _decode(
        self, layout: Layout, key: tuple[int, int], window: NDArray[Any] | None, *, keep: bool = False
    ) -> NDArray[Any] | None:
        """Return a tile's pixels ``(height, width, channels)``, `window` itself if it took them, None if not stored."""
        plane, index = key
        known = TILES.get((self._identity, key))
        if known is not None:
            return known
        found = self._locate(layout, key)
        if found is None:
            return None
        into = window
        if into is None or into.dtype != layout.dtype or not into.flags.c_contiguous:
            shape = (*layout.tile, layout.channels)
            into = np.empty(shape, layout.dtype) if keep else _scratch_array(shape, layout.dtype)
        try:
            data = self.source.fetch(*found)
            decoder = layout.decoders[plane if len(layout.decoders) > 1 else 0]
            pixels = decoder.decode(data, index, into)
        except BadFileError as error:
            raise self._damaged(layout, key, str(error)) from error
        # Codecs raise what they like; whatever it is, the tile is damaged.
        except Exception as error:
            raise self._damaged(layout, key, f"{type(error).__name__}: {error}") from error
        if pixels.ndim != 3 or pixels.shape[2] != layout.channels:
            raise self._damaged(layout, key, f"it decodes to shape {pixels.shape}")
        self.source.finish(pixels)
        if keep:
            TILES.put((self._identity, key), pixels)
        if pixels is into or into is not window or not np.may_share_memory(pixels, window):
            return pixels
        return window if pixels.shape[:2] == window.shape[:2] else pixels.copy()

    def _locate(self, layout: Layout, key: tuple[int, int]) -> tuple[int, int] | None:
        """Return where a tile begins in the file and how many bytes it has; None if it is not stored."""
        plane, index = key
        offsets, counts = layout.planes[plane].table()
        if index >= len(offsets) or index >= len(counts):
            raise self._damaged(layout, key, f"the file lists {min(len(offsets), len(counts))} tiles only")
        return (int(offsets[index]), int(counts[index])) if counts[index] else None

    def _damaged(self, layout: Layout, key: tuple[int, int], reason: str) -> BadFileError:
        row, column = divmod(key[1], layout.grid[1])
        return BadFileError(
            f"{self.source.name}: cannot decode level {self.number}, tile (row {row}, column {column}): {reason}. "
            "The file is damaged or truncated: copy it again from its source."
        )


def read_key(
    shape: tuple[int, ...], key: Any, read: Callable[[Sequence[int], Sequence[int]], NDArray[Any]]
) -> NDArray[Any]:
    """Answer ``level[key]`` for whole numbers, slices and ``...`` by reading the block that the key spans.

    Parameters
    ----------
    shape
        Shape of the level.
    key
        What stands between the brackets.
    read
        Reads the block from first to last (excluded) indices per axis.

    Returns
    -------
    ndarray
        As NumPy would return it.

    Raises
    ------
    BadShapeError
        If the key holds anything else, or too many indices.
    IndexError
        If a whole number lies outside.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    spare = len(shape) - sum(k is not Ellipsis for k in keys)
    if spare < 0 or sum(k is Ellipsis for k in keys) > 1:
        raise BadShapeError(f"index {key!r} has more parts than the axes of a level of shape {shape}.")
    place = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    keys[place : place + 1] = [slice(None)] * spare
    starts: list[int] = []
    stops: list[int] = []
    inner: list[int | slice] = []
    for number, (part, length) in enumerate(zip(keys, shape, strict=True)):
        if isinstance(part, slice):
            indices = range(*part.indices(length))
            low, high = (min(indices[0], indices[-1]), max(indices[0], indices[-1]) + 1) if indices else (0, 0)
            starts.append(low)
            stops.append(high)
            inner.append(slice(None, None, indices.step))
        elif isinstance(part, (int, np.integer)):
            at = int(part)
            if not -length <= at < length:
                raise IndexError(f"index {at} is out of bounds for axis {number} of length {length}")
            starts.append(at % length)
            stops.append(at % length + 1)
            inner.append(0)
        else:
            raise BadShapeError(f"cannot index a level with {part!r}; expected whole numbers, slices and '...'.")
    return read(starts, stops)[tuple(inner)]


def blocks_of(shape: tuple[int, int], block: int) -> Iterator[tuple[int, int]]:
    """Yield the first corners of square blocks that cover a plane, row by row."""
    yield from product(range(0, shape[0], block), range(0, shape[1], block))


def _scratch_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return memory of this thread that the next tile may overwrite."""
    size = math.prod(shape) * dtype.itemsize
    memory = getattr(_scratch, "memory", None)
    if memory is None or memory.nbytes < size:
        memory = _scratch.memory = np.empty(size, np.uint8)
    return memory[:size].view(dtype).reshape(shape)
