"""Tiles of any scan as encoded pictures: one source for every transport, with the colours of `dhlab.display`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.cache import ByteCache
from dhlab.display import Display, channel_color, default_display, heat_colors, to_rgb
from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest
from dhlab.io.tilelevel import TileLevel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dhlab.scan import Scan

__all__ = [
    "COLOR_MAPS",
    "Style",
    "TileRequest",
    "TileSource",
    "class_names",
    "color_map",
    "read_plane",
    "read_values",
    "to_rgba",
]

JPEG_QUALITY = 85
# Beyond this reduction a tile is made of its four children, which the cache keeps.
MAX_REDUCTION = 8
STRIP_PIXELS = 1 << 24
# Stored tiles of these sides are worth a request each, and may lie this far beside their place, in their own pixels.
LEAST_SIDE, MOST_SIDE, MOST_DRIFT = 128, 1024, 0.5
# Anchors of "turbo" (https://ai.googleblog.com/2019/08/turbo-improved-rainbow-colormap-for.html) without its dark
# ends, which vanish on nuclei, and of matplotlib's "viridis".
TURBO_ANCHORS = (
    (67, 78, 186), (70, 133, 250), (40, 188, 235), (26, 228, 182), (85, 250, 118), (164, 252, 60), (217, 228, 54),
    (250, 186, 57), (251, 126, 33), (228, 69, 10),
)  # fmt: skip
VIRIDIS_ANCHORS = (
    (68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128), (94, 201, 98),
    (173, 220, 48), (253, 231, 37),
)  # fmt: skip
# The first is the default: its ends stay apart from the pink and violet of stained tissue, those of "inferno" do not.
COLOR_MAPS = ("turbo", "inferno", "viridis", "grey", "class")


@dataclass(frozen=True)
class Style:
    """How a tile is coloured.

    Parameters
    ----------
    channel
        Channel shown alone; None shows all (RGB, or the winning class of a heat map in its colour).
    colors
        Colour map of one channel of a heat map: one of `COLOR_MAPS`.
    threshold
        Scores below this share of the display range are transparent, from 0 to 1.
    low, high
        Values at the ends of the display range; None takes those of the scan's `Display`.
    """

    channel: int | None = None
    colors: str = COLOR_MAPS[0]
    threshold: float = 0.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.colors not in COLOR_MAPS:
            raise UnknownNameError(f"no colour map {self.colors!r}.{suggest(str(self.colors), COLOR_MAPS)}")
        if not 0 <= self.threshold <= 1:
            raise BadValueError(f"threshold {self.threshold}; expected a share of the display range from 0 to 1.")


@dataclass(frozen=True)
class TileRequest:
    """One tile of a source, as it is looked for.

    Parameters
    ----------
    place
        Level, row and column.
    style
        How it is coloured.
    at
        Position on every further axis.
    grown
        How much is there of what it shows, where the scan is still being written.
    """

    place: tuple[int, int, int]
    style: Style
    at: tuple[int, ...]
    grown: int = 0


class TileSource:
    """The pyramid of tiles of one scan: square pixels, each level half as fine as the one before.

    Level 0 has the scan's finest pixel; the last level fits in one tile. The scan's own levels are used where they
    fit and resampled where they do not. Levels that the file stores as JPEG keep its own grid, and their tiles are
    passed on without being decoded. Safe between threads; a tile is made once however many ask for it.

    Parameters
    ----------
    scan
        Any scan with axes ``y`` and ``x``.
    display
        Range of values shown; None is `default_display` of the scan.
    tile
        Side of a tile in pixels.
    cache
        Where tiles are kept, perhaps together with those of other sources; None keeps 64 MiB of its own.

    Raises
    ------
    BadShapeError
        If the scan has no ``y`` and ``x``.
    """

    def __init__(
        self,
        scan: Scan,
        display: Display | None = None,
        *,
        tile: int = 512,
        cache: ByteCache | None = None,
    ) -> None:
        y, x = plane_axes(scan)
        self.scan = scan
        self.tile = tile
        self._display = display
        finest = min(scan.spacing[y], scan.spacing[x])
        self.aspect = (scan.spacing[y] / finest, scan.spacing[x] / finest)
        self.shape = (max(1, round(scan.shape[y] * self.aspect[0])), max(1, round(scan.shape[x] * self.aspect[1])))
        self.level_count = 1 + max(0, math.ceil(math.log2(max(self.shape) / tile)))
        self._tiles = ByteCache(64 << 20) if cache is None else cache
        # The cache holds on to its keys: to the source itself they must not lead.
        self._identity = object()

    @property
    def display(self) -> Display:
        """Range of values shown, found at the first use."""
        if self._display is None:
            self._display = default_display(self.scan)
        return self._display

    def info(self) -> dict[str, Any]:
        """Return what a viewer needs to lay tiles out, JSON-compatible.

        Returns
        -------
        dict
            ``shape`` (height, width of the tile pyramid's level 0), ``aspect`` (its pixels per scan pixel),
            ``resolutions`` (level-0 pixels per pixel, for each level), ``tiles`` (height, width of a tile, for each
            level), ``tile`` (the side of those that are resampled), ``spacing`` and ``unit`` of a scan pixel (y, x),
            ``origin``, ``axes`` (length of every further axis), ``kind``, ``channels``, ``opaque``.
        """
        scan = self.scan
        plane = plane_axes(scan)
        return {
            "name": scan.name,
            "kind": scan.kind,
            "shape": list(self.shape),
            "aspect": list(self.aspect),
            "tile": self.tile,
            "tiles": [list(self.tile_shape(level)) for level in range(self.level_count)],
            "resolutions": [float(2**level) for level in range(self.level_count)],
            "spacing": [scan.spacing[i] for i in plane],
            "origin": [scan.origin[i] for i in plane],
            "unit": scan.unit,
            "axes": {a: n for a, n in zip(scan.window_axes, scan.shape, strict=True) if a not in "yx"},
            "channels": class_names(scan) if scan.kind in ("labels", "mask") else list(scan.channels),
            "opaque": scan.kind == "image",
        }

    def tile_shape(self, level: int) -> tuple[int, int]:
        """Return height and width of the tiles of a level, in pixels."""
        stored = self._stored.get(level)
        return (self.tile, self.tile) if stored is None else stored.tile

    def grid_shape(self, level: int) -> tuple[int, int]:
        """Return the number of rows and columns of tiles of a level."""
        if not 0 <= level < self.level_count:
            raise BadValueError(f"tile level {level} of {self.scan.name!r}; expected 0 to {self.level_count - 1}.")
        rows, columns = (
            math.ceil(n / (side << level)) for n, side in zip(self.shape, self.tile_shape(level), strict=True)
        )
        return rows, columns

    def encode(
        self,
        level: int,
        row: int,
        column: int,
        *,
        channel: int | None = None,
        colors: str = COLOR_MAPS[0],
        threshold: float = 0.0,
        low: float | None = None,
        high: float | None = None,
        index: Mapping[str, int] | None = None,
    ) -> tuple[bytes, str]:
        """Return one tile as an encoded picture.

        Parameters
        ----------
        level
            Level of the tile pyramid, 0 the finest.
        row, column
            Place of the tile on its level.
        channel, colors, threshold, low, high
            As in `Style`.
        index
            Position on every further axis (``{"z": 12}``), in pixels; the middle where it is not given.

        Returns
        -------
        bytes
            JPEG for images, PNG with transparency for heat maps, masks and labels.
        str
            MIME type.

        Raises
        ------
        BadValueError
            If there is no such tile, channel or index.
        BadFileError
            If the stored data cannot be decoded.
        """
        return self.picture(self.request((level, row, column), Style(channel, colors, threshold, low, high), index))

    def request(
        self, place: tuple[int, int, int], style: Style | None = None, index: Mapping[str, int] | None = None
    ) -> TileRequest:
        """Return what a tile is known by; tiles that look alike are one tile.

        Parameters
        ----------
        place
            Level, row and column.
        style
            How it is coloured.
        index
            Position on every further axis.

        Raises
        ------
        BadValueError
            If there is no such tile or index.
        """
        level, *corner = place
        grid = self.grid_shape(level)
        if not all(0 <= at < n for at, n in zip(corner, grid, strict=True)):
            raise BadValueError(
                f"tile {corner[0]}, {corner[1]} on level {level} of {self.scan.name!r}; it has {grid[0]} × {grid[1]} "
                "tiles."
            )
        return TileRequest(place, self._settle(style or Style()), index_of(self.scan, index), self._grown(place))

    def _grown(self, place: tuple[int, int, int]) -> int:
        """Return how much is there of what a tile shows, where the scan is still being written."""
        grown = getattr(self.scan.levels[0], "grown", None)
        if grown is None:
            return 0
        level, *corner = place
        axis = "yx".find(self.scan.window_axes[0])
        if axis < 0:
            return int(grown(0, self.scan.shape[0]))
        span = (self.tile_shape(level)[axis] << level) / self.aspect[axis]
        return int(grown(max(0.0, corner[axis] * span - 2), (corner[axis] + 1) * span + 2))

    def picture(self, request: TileRequest) -> tuple[bytes, str]:
        """Return a tile as an encoded picture and its MIME type, as `encode` does."""
        key = self._identity, request
        return self._tiles.get_or_make(key, lambda: self._make_tile(request), lambda tile: len(tile[0]))

    def kept(self, request: TileRequest) -> tuple[bytes, str] | None:
        """Return a tile if it has been made and is still kept; takes no time."""
        found: tuple[bytes, str] | None = self._tiles.get((self._identity, request))
        return found

    def clear(self) -> None:
        """Forget every tile."""
        self._tiles.drop(lambda key: key[0] is self._identity)

    @cached_property
    def _stored(self) -> dict[int, TileLevel]:
        """Levels of the scan whose stored tiles are pictures that a browser can place, by their tile level."""
        scan = self.scan
        if scan.kind != "image" or not scan.axes.endswith("yxc") or self.display != Display():
            return {}
        found: dict[int, TileLevel] = {}
        for number, level in enumerate(scan.levels):
            if not isinstance(level, TileLevel) or not level.holds_pictures:
                continue
            scale = stored_scale(scan, number, self.aspect)
            place = round(math.log2(max(*scale, 1)))
            drift = max(abs(s / 2**place - 1) * n for s, n in zip(scale, level_shape(scan, number), strict=True))
            sides = all(LEAST_SIDE <= side <= MOST_SIDE for side in level.tile)
            if drift <= MOST_DRIFT and sides and place < self.level_count:
                found.setdefault(place, level)
        return found

    def _settle(self, style: Style) -> Style:
        """Return a style without what does not show, so that tiles that look alike are one tile."""
        low = None if style.low == self.display.low else style.low
        high = None if style.high == self.display.high else style.high
        if self.scan.kind == "heatmap":
            return replace(style, low=low, high=high)
        return Style(style.channel, low=low, high=high)

    def _make_tile(self, request: TileRequest) -> tuple[bytes, str]:
        place, style, at = request.place, request.style, request.at
        level, row, column = place
        stored = self._stored.get(level) if style == Style() else None
        data = None if stored is None else stored.stored_tile(row, column, at)
        if data is not None:
            return data, "image/jpeg"
        plane = self._read_tile(place, at)
        if self.scan.kind == "image":
            rgb = _paint(plane, self.scan, _styled(self.display, style, self.scan))
            return encode_jpeg(self._bleed(rgb, place)), "image/jpeg"
        return encode_png(to_rgba(plane, self.scan, style=style, display=self.display)), "image/png"

    def _read_tile(self, place: tuple[int, int, int], at: tuple[int, ...]) -> NDArray[Any]:
        level, row, column = place
        if level > 0 and self._scale_below(level) > MAX_REDUCTION:
            key = self._identity, place, at, self._grown(place)
            return self._tiles.get_or_make(key, lambda: self._join_children(place, at), lambda plane: plane.nbytes)
        height, width = self.tile_shape(level)
        size = ((height << level) / self.aspect[0], (width << level) / self.aspect[1])
        return read_plane(self.scan, (row * size[0], column * size[1]), size, (height, width), index=at)

    def _join_children(self, place: tuple[int, int, int], at: tuple[int, ...]) -> NDArray[Any]:
        """Make a tile of the four that it covers on the finer level."""
        level, row, column = place
        rows, columns = self.grid_shape(level - 1)
        half = self.tile // 2
        plane: NDArray[Any] | None = None
        for r, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
            if 2 * row + r >= rows or 2 * column + c >= columns:
                continue
            child = self._read_tile((level - 1, 2 * row + r, 2 * column + c), at)
            if plane is None:
                plane = np.full((self.tile, self.tile, *child.shape[2:]), self.scan.fill, child.dtype)
            small = resize(child, (half, half), nearest=is_exact(self.scan))
            plane[r * half : (r + 1) * half, c * half : (c + 1) * half] = small
        assert plane is not None
        return plane

    def _bleed(self, rgb: NDArray[np.uint8], place: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Repeat the scan's last pixels to the edge of the tile: JPEG would mix the colour of what lies outside in."""
        level, *corner = place
        sides = self.tile_shape(level)
        inside = [
            min(side, math.ceil((n - (at * side << level)) / 2**level))
            for n, at, side in zip(self.shape, corner, sides, strict=True)
        ]
        if inside == list(sides):
            return rgb
        # The pixels may be those of a plane that is kept.
        rgb = rgb.copy()
        rgb[inside[0] :] = rgb[inside[0] - 1]
        rgb[:, inside[1] :] = rgb[:, inside[1] - 1, None]
        return rgb

    def _scale_below(self, level: int) -> float:
        """Return how many times the best stored level must be reduced for a tile level."""
        stored = level_below(self.scan, 2.0**level, self.aspect)
        return 2.0**level / max(stored_scale(self.scan, stored, self.aspect))


def plane_axes(scan: Scan) -> tuple[int, int]:
    """Return the places of y and x among the window axes of a scan."""
    if "y" not in scan.axes or "x" not in scan.axes:
        raise BadShapeError(f"scan {scan.name!r} has axes {scan.axes!r}; expected y and x to make tiles of.")
    return scan.window_axes.index("y"), scan.window_axes.index("x")


def index_of(scan: Scan, index: Mapping[str, int] | Sequence[int] | None) -> tuple[int, ...]:
    """Return the position on every further axis, in the order of the window axes without y and x."""
    further = [(a, n) for a, n in zip(scan.window_axes, scan.shape, strict=True) if a not in "yx"]
    known = index if isinstance(index, Mapping) else dict(zip((a for a, _ in further), index or (), strict=False))
    chosen = tuple(int(known.get(a, n // 2)) for a, n in further)
    for (axis, length), at in zip(further, chosen, strict=True):
        if not 0 <= at < length:
            raise BadValueError(f"index {at} on axis {axis} of {scan.name!r}; expected 0 to {length - 1}.")
    return chosen


def stored_scale(scan: Scan, level: int, aspect: tuple[float, float]) -> tuple[float, float]:
    """Return square display pixels per pixel of a stored level, along y and x."""
    y, x = plane_axes(scan)
    return scan.scales[level][y] * aspect[0], scan.scales[level][x] * aspect[1]


def level_below(scan: Scan, scale: float, aspect: tuple[float, float] = (1.0, 1.0)) -> int:
    """Return the coarsest stored level that is at least as fine as `scale` display pixels per pixel."""
    fits = [i for i in range(len(scan.levels)) if max(stored_scale(scan, i, aspect)) <= scale * 1.01]
    return max(fits, key=lambda i: math.prod(scan.scales[i]), default=0)


def level_shape(scan: Scan, level: int) -> tuple[int, int]:
    """Return rows and columns of a stored level."""
    y, x = plane_axes(scan)
    shape = scan.shape_of(level)
    return shape[y], shape[x]


def is_exact(scan: Scan) -> bool:
    """Return whether pixels are names (classes) that must not be averaged."""
    return scan.kind in ("mask", "labels")


def read_plane(
    scan: Scan,
    start: tuple[float, float],
    size: tuple[float, float],
    shape: tuple[int, int],
    *,
    index: Mapping[str, int] | Sequence[int] | None = None,
) -> NDArray[Any]:
    """Read a rectangle of a scan, resampled to a wanted shape, in bounded memory.

    Parameters
    ----------
    scan
        Any scan with y and x.
    start
        First corner (y, x) in level-0 pixels; fractions and places outside are allowed.
    size
        Extent (y, x) in level-0 pixels.
    shape
        Rows and columns wanted.
    index
        Position on further axes; None is the middle of each.

    Returns
    -------
    ndarray
        ``(rows, columns)``, or ``(rows, columns, channels)`` where the scan has channels; the scan's dtype, or
        float32 where OpenCV cannot average it. Pixels are averaged, classes taken by the nearest pixel.
    """
    y, x = plane_axes(scan)
    at = index_of(scan, index)
    wanted = np.array([size[0] / shape[0], size[1] / shape[1]])
    fits = [i for i in range(len(scan.levels)) if np.all(np.array(scan.scales[i])[[y, x]] <= wanted * 1.01)]
    level = max(fits, key=lambda i: scan.scales[i][y] * scan.scales[i][x], default=0)
    scale = np.array([scan.scales[level][y], scan.scales[level][x]])
    reduction = wanted / scale
    rows = max(1, int(STRIP_PIXELS / max(1.0, shape[1] * float(np.prod(reduction)))))
    strips = []
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        corner = np.array([start[0] + first * wanted[0], start[1]]) / scale
        strips.append(_read_strip(scan, level, corner, reduction, (count, shape[1]), at))
    return strips[0] if len(strips) == 1 else np.concatenate(strips)


def read_values(scan: Scan, y: int, x: int, *, index: Mapping[str, int] | Sequence[int] | None = None) -> list[float]:
    """Return what is stored at a pixel, as it is: one number per channel.

    Parameters
    ----------
    scan
        Any scan with y and x.
    y, x
        Level-0 pixel.
    index
        Position on further axes; None is the middle of each.

    Raises
    ------
    BadValueError
        If the pixel lies outside the scan.
    """
    shape = level_shape(scan, 0)
    if not (0 <= y < shape[0] and 0 <= x < shape[1]):
        raise BadValueError(f"pixel ({y}, {x}) of {scan.name!r}; it has {shape[0]} × {shape[1]} pixels.")
    window = _read_window(scan, 0, np.array([y, x]), (1, 1), index_of(scan, index))
    return [float(value) for value in window.ravel()]


def _read_strip(
    scan: Scan,
    level: int,
    corner: NDArray[np.float64],
    reduction: NDArray[np.float64],
    shape: tuple[int, int],
    at: tuple[int, ...],
) -> NDArray[Any]:
    """Read a window that starts at `corner` (pixels of `level`) and has `reduction` of them per wanted pixel."""
    exact = is_exact(scan)
    if np.all(np.abs(reduction - 1) < 1e-3):
        return _read_window(scan, level, np.rint(corner).astype(int), shape, at)
    if exact:
        first = np.floor(corner).astype(int)
        last = np.ceil(corner + np.array(shape) * reduction).astype(int)
        window = _read_window(scan, level, first, tuple((last - first).tolist()), at)
        picks = [
            np.clip((corner[i] - first[i] + (np.arange(shape[i]) + 0.5) * reduction[i]).astype(int), 0, n - 1)
            for i, n in enumerate(window.shape[:2])
        ]
        return window[np.ix_(*picks)]
    if np.all(reduction >= 1):
        first = np.rint(corner).astype(int)
        last = np.maximum(np.rint(corner + np.array(shape) * reduction).astype(int), first + 1)
        window = _read_window(scan, level, first, tuple((last - first).tolist()), at)
        edge = _extend_edges(window, first, level_shape(scan, level), margin=np.ceil(reduction).astype(int))
        return resize(edge, shape)
    import cv2

    first = np.floor(corner - 1).astype(int)
    last = np.ceil(corner + np.array(shape) * reduction + 1).astype(int)
    window = _read_window(scan, level, first, tuple((last - first).tolist()), at)
    window = averageable(_extend_edges(window, first, level_shape(scan, level), margin=np.array([2, 2])))
    offset = corner - first
    # Pixel centres: wanted (i + 0.5) * reduction + offset is source j + 0.5.
    matrix = np.array(
        [
            [reduction[1], 0, offset[1] + 0.5 * reduction[1] - 0.5],
            [0, reduction[0], offset[0] + 0.5 * reduction[0] - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    planes = window[..., None] if window.ndim == 2 else window
    # warpAffine takes at most four channels.
    parts = [
        cv2.warpAffine(
            np.ascontiguousarray(planes[..., i : i + 4]),
            matrix,
            shape[::-1],
            flags=flags,
            borderMode=cv2.BORDER_REPLICATE,
        ).reshape(*shape, -1)
        for i in range(0, planes.shape[-1], 4)
    ]
    return np.concatenate(parts, -1).reshape(*shape, *window.shape[2:])


def _read_window(
    scan: Scan, level: int, corner: NDArray[np.int_], shape: tuple[int, ...], at: tuple[int, ...]
) -> NDArray[Any]:
    """Read pixels of a level, its channels last; `corner` and `shape` (y, x) in pixels of the level."""
    further, place, size = iter(at), [], []
    plane = iter(zip(corner.tolist(), shape, strict=True))
    for axis, scale in zip(scan.window_axes, scan.scales[level], strict=True):
        if axis in "yx":
            first, length = next(plane)
            place.append(first * scale)
            size.append(length)
        else:
            place.append(next(further))
            size.append(1)
    array = scan.read(place, size, level)
    array = array[tuple(slice(None) if a in "cyx" else 0 for a in scan.axes)]
    kept = [a for a in scan.axes if a in "cyx"]
    return np.ascontiguousarray(np.moveaxis(array, kept.index("c"), -1)) if "c" in kept else array


def _extend_edges(
    window: NDArray[Any], corner: NDArray[np.int_], shape: tuple[int, int], *, margin: NDArray[np.int_]
) -> NDArray[Any]:
    """Repeat the last pixels of a level of `shape` beyond its edges, so that the average does not mix in the fill."""
    for axis in (0, 1):
        rows = window if axis == 0 else window.swapaxes(0, 1)
        before, after = -int(corner[axis]), int(shape[axis] - corner[axis])
        if 0 < before < len(rows):
            rows[max(0, before - int(margin[axis])) : before] = rows[before]
        if 0 < after < len(rows):
            rows[after : after + int(margin[axis])] = rows[after - 1]
    return window


def averageable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in a type that OpenCV resamples: itself, or float32."""
    return array if array.dtype in (np.uint8, np.uint16, np.int16, np.float32, np.float64) else array.astype(np.float32)


def resize(array: NDArray[Any], shape: tuple[int, int], *, nearest: bool = False) -> NDArray[Any]:
    """Resize ``(rows, columns[, channels])`` by averaging, or by the nearest pixel."""
    if array.shape[:2] == shape:
        return array
    if nearest:
        picks = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, array.shape[:2], strict=True)]
        return array[np.ix_(*picks)]
    import cv2

    planes = averageable(array[..., None] if array.ndim == 2 else array)
    # OpenCV averages at most four channels at once.
    parts = [
        cv2.resize(np.ascontiguousarray(planes[..., i : i + 4]), shape[::-1], interpolation=cv2.INTER_AREA)
        for i in range(0, planes.shape[-1], 4)
    ]
    return np.concatenate([part.reshape(*shape, -1) for part in parts], -1).reshape(*shape, *array.shape[2:])


def class_names(scan: Scan) -> list[str]:
    """Return the names of the classes of a heat map, mask or label map; class i of a label map has value i + 1."""
    if scan.channels:
        return list(scan.channels)
    if names := scan.meta.get("classes"):
        return [str(n) for n in names]
    if scan.kind == "mask":
        return [scan.name]
    if scan.kind != "labels":
        return []
    coarsest = np.asarray(scan.levels[-1][...])
    return [str(i) for i in range(1, 1 + min(255, int(coarsest.max(initial=0))))]


@cache
def color_map(name: str, color: tuple[int, int, int] = (0, 0, 0)) -> NDArray[np.uint8]:
    """Return a colour map, ``(256, 3)`` uint8; ``"class"`` is `color` throughout."""
    if name == "inferno":
        return heat_colors()
    if name == "class":
        return np.tile(np.array(color, np.uint8), (256, 1))
    anchors = {"viridis": VIRIDIS_ANCHORS, "turbo": TURBO_ANCHORS, "grey": ((0, 0, 0), (255, 255, 255))}.get(name)
    if anchors is None:
        raise UnknownNameError(f"no colour map {name!r}.{suggest(name, COLOR_MAPS)}")
    steps = np.linspace(0, len(anchors) - 1, 256)
    table = np.array(anchors, float)
    return np.stack([np.interp(steps, range(len(table)), table[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def to_rgba(
    plane: NDArray[Any], scan: Scan, *, style: Style | None = None, display: Display | None = None
) -> NDArray[np.uint8]:
    """Colour a plane, with transparency where a heat map, mask or label map says nothing.

    Parameters
    ----------
    plane
        ``(rows, columns[, channels])`` pixels of `scan`, channels last.
    scan
        Where the pixels come from (axes, kind, channels).
    style
        Channel, colour map, threshold and range.
    display
        Range and channel; None is `default_display` of the scan.

    Returns
    -------
    ndarray
        ``(rows, columns, 4)`` uint8; opaque for images.

    Raises
    ------
    BadValueError
        If there is no such channel.
    """
    style = style or Style()
    display = _styled(display or default_display(scan), style, scan)
    rgba = np.full((*plane.shape[:2], 4), 255, np.uint8)
    if scan.kind == "heatmap":
        style = replace(style, channel=display.channel, low=display.low, high=display.high)
        _color_scores(plane, scan, style, rgba)
        return rgba
    rgba[..., :3] = _paint(plane, scan, display)
    if is_exact(scan) and plane.ndim == 2:
        rgba[..., 3] = np.where(plane != 0, 255, 0)
    return rgba


def _styled(display: Display, style: Style, scan: Scan) -> Display:
    """Return a display with what a style changes."""
    channel = display.channel if style.channel is None else style.channel
    if channel is not None and not 0 <= channel < max(1, len(scan.channels)):
        raise BadValueError(f"channel {channel} of {scan.name!r}; expected 0 to {len(scan.channels) - 1}.")
    low = display.low if style.low is None else style.low
    high = display.high if style.high is None else style.high
    return Display(low, high, channel)


def _paint(plane: NDArray[Any], scan: Scan, display: Display) -> NDArray[np.uint8]:
    """Colour a plane, channels last, as ``(rows, columns, 3)`` uint8; RGB is returned as it is, not copied."""
    # The one colour path takes the scan's own order of axes.
    own = np.moveaxis(plane, -1, scan.axes.replace("t", "").replace("z", "").index("c")) if plane.ndim == 3 else plane
    return to_rgb(own, scan, display)


def _color_scores(plane: NDArray[Any], scan: Scan, style: Style, rgba: NDArray[np.uint8]) -> None:
    """Fill `rgba` with the colours of scores: one channel by its colour map, or the winning class in its colour."""
    assert style.low is not None
    assert style.high is not None
    scores = (plane if plane.ndim == 3 else plane[..., None]).astype(np.float32)
    unit = np.clip((np.nan_to_num(scores, nan=style.low) - style.low) / max(style.high - style.low, 1e-12), 0, 1)
    if style.channel is None and unit.shape[-1] > 1:
        winner = unit.argmax(-1)
        best = unit.max(-1)
        table = np.array([channel_color(scan, i) for i in range(unit.shape[-1])], np.uint8)
        rgba[..., :3] = table[winner]
        silent = [i for i, name in enumerate(scan.channels) if name.lower() == "background"]
        best = np.where(np.isin(winner, silent), 0, best) if silent else best
    else:
        channel = style.channel or 0
        best = unit[..., channel]
        rgba[..., :3] = color_map(style.colors, channel_color(scan, channel))[np.rint(best * 255).astype(np.uint8)]
    rgba[..., 3] = np.rint(np.minimum(1, best * 1.5) * 255 * (best >= max(style.threshold, 1 / 512)))


def encode_jpeg(rgb: NDArray[np.uint8]) -> bytes:
    """Return ``(rows, columns, 3)`` uint8 as JPEG."""
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(rgb), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
    )
    return data


def encode_png(rgba: NDArray[np.uint8]) -> bytes:
    """Return ``(rows, columns, 4)`` uint8 as PNG; a wholly transparent picture becomes a single pixel."""
    import cv2

    if not rgba[..., 3].any():
        rgba = np.zeros((1, 1, 4), np.uint8)
    good, data = cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 2])
    assert good
    return bytes(data)
