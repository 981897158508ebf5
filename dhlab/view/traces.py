"""Signals as pages: traces of a few seconds, drawn as a picture that can be zoomed, one page for each step in time."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.display import class_color
from dhlab.errors import BadShapeError
from dhlab.scan import Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TraceLevel", "TracePages", "as_pages"]

# What is read at once: ten seconds, as recordings are paged at the bedside; or so many samples where time is unknown.
PAGE_S, PAGE_SAMPLES = 10.0, 2000
WIDTH, ROW, LEAST_ROW = 4096, 256, 12
LEAST_HEIGHT, USUAL_HEIGHT = 512, 2048
NAMES, FOOT = 0.07, 0.05
LEVELS = 3
# Ranges are taken from so many windows of so many samples each.
LOOKS, LOOK = 16, 4096
SHIFT = 4  # cv2 draws at 1/16 pixel
INK, GRID, PAPER = (70, 70, 70), (226, 226, 226), (255, 255, 255)


def as_pages(signal: Scan, *, seconds: float | None = None) -> Scan:
    """Show a signal as a scan of pages.

    Parameters
    ----------
    signal
        Any scan whose only window axis is ``t``.
    seconds
        Length of a page, in the signal's unit; None is ten seconds, or 2000 samples where the unit is unknown.

    Returns
    -------
    Scan
        ``tyxc`` uint8: a picture for each page, its x axis in the signal's unit, drawn when it is read. Channels lie
        above one another in one scale, names at the left; louder ones are made to fit.

    Raises
    ------
    BadShapeError
        If the scan has other axes than ``c`` and ``t``.
    """
    if signal.window_axes != "t":
        raise BadShapeError(f"scan {signal.name!r} has axes {signal.axes!r}; expected a signal: 't' or 'ct'.")
    samples = PAGE_SAMPLES if signal.unit == "px" and seconds is None else (seconds or PAGE_S) / signal.spacing[0]
    length = max(1, min(signal.shape[0], round(samples)))
    pages = TracePages(signal, length)
    pixel = length * signal.spacing[0] / pages.plot_width(0)
    return Scan(
        levels=tuple(TraceLevel(pages, level) for level in range(LEVELS)),
        axes="tyxc",
        spacing=(length * signal.spacing[0], pixel, pixel),
        unit=signal.unit,
        scales=tuple((1.0, 2.0**level, 2.0**level) for level in range(LEVELS)),
        name=signal.name,
        fill=255,
        meta=dict(signal.meta),
    )


class TracePages:
    """Draws the pages of a signal.

    Parameters
    ----------
    signal
        The signal.
    length
        Samples on a page.
    """

    def __init__(self, signal: Scan, length: int) -> None:
        self.signal, self.length = signal, length
        self.names = signal.channels or (signal.name,)
        self.count = math.ceil(signal.shape[0] / length)
        self.height = max(min(max(ROW * len(self.names), LEAST_HEIGHT), USUAL_HEIGHT), LEAST_ROW * len(self.names))
        self.height = -(-self.height // 2**LEVELS) * 2**LEVELS
        self.middles, self.range = self._measure()
        self.draw = lru_cache(maxsize=4)(self._draw)

    def shape(self, level: int) -> tuple[int, int]:
        """Return height and width of a page on a level, in pixels."""
        return self.height >> level, WIDTH >> level

    def plot_width(self, level: int) -> int:
        """Return the width of the part of a page that holds the traces, in pixels."""
        return round((WIDTH >> level) * (1 - NAMES))

    def read(self, start: int, length: int) -> NDArray[np.float32]:
        """Return ``(channels, length)`` samples as float32, NaN beyond the end."""
        window = self.signal.read((start,), (length,)).astype(np.float32)
        window = window.reshape(len(self.names), length) if self.signal.axes != "tc" else window.T
        window[:, max(0, self.signal.shape[0] - start) :] = np.nan
        return window

    def _measure(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the middle of every channel, and the range that fills its row."""
        total = self.signal.shape[0]
        length = min(LOOK, total)
        starts = np.unique(np.linspace(0, total - length, LOOKS).astype(int))
        seen = np.concatenate([self.read(int(start), length) for start in starts], 1)
        seen[~np.isfinite(seen)] = np.nan
        silent = np.isnan(seen).all(1)
        seen[silent] = 0
        low, middle, high = np.nanquantile(seen, (0.005, 0.5, 0.995), axis=1)
        spread = 2 * np.maximum(high - middle, middle - low)
        usual = float(np.median(spread[spread > 0])) if (spread > 0).any() else 1.0
        return middle.astype(np.float32), np.maximum(spread, usual).astype(np.float32)

    def _draw(self, page: int, level: int) -> NDArray[np.uint8]:
        height, width = self.shape(level)
        left = width - self.plot_width(level)
        picture = np.full((height, width, 3), PAPER, np.uint8)
        bottom = height - round(height * FOOT)
        self._draw_grid(picture, page, (left, bottom))
        samples = self.read(page * self.length, self.length)
        row = bottom / len(samples)
        for channel, trace in enumerate(samples):
            middle = (channel + 0.5) * row
            # A little overlap is usual: peaks may reach into the neighbours' rows.
            y = middle - (trace - self.middles[channel]) / self.range[channel] * row * 0.9
            _draw_trace(picture[:bottom], y, left, thickness=max(1, 3 >> level))
            _write(picture, self.names[channel], (round(left * 0.08), round(middle)), room=left, row=row)
        return picture

    def _draw_grid(self, picture: NDArray[np.uint8], page: int, corner: tuple[int, int]) -> None:
        left, bottom = corner
        step = self.signal.spacing[0]
        begin, span = page * self.length * step, self.length * step
        ticks = 10.0 ** math.floor(math.log10(span / 5))
        ticks *= next(f for f in (1, 2, 5, 10) if span / (ticks * f) <= 12)
        for number in range(math.ceil(begin / ticks - 1e-9), math.floor((begin + span) / ticks + 1e-9) + 1):
            x = left + round((number * ticks - begin) / span * (picture.shape[1] - left))
            x = min(x, picture.shape[1] - 1)
            picture[:bottom, x : x + max(1, picture.shape[1] >> 11)] = GRID
            foot = picture.shape[0] - bottom
            unit = "" if self.signal.unit == "px" else f" {self.signal.unit}"
            _write(
                picture, f"{number * ticks:g}{unit}", (x, bottom + foot // 2), room=left, row=foot * 1.4, middle=True
            )


class TraceLevel:
    """The pages of a signal at one size, as a level of a scan ``tyxc``.

    Parameters
    ----------
    pages
        What draws them.
    level
        How often the size is halved.
    """

    def __init__(self, pages: TracePages, level: int) -> None:
        self.pages, self.level = pages, level
        self.shape = (pages.count, *pages.shape(level), 3)
        self.dtype = np.dtype(np.uint8)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys = (*keys[:at], *(slice(None),) * (5 - len(keys)), *keys[at + 1 :])
        keys = (*keys, *(slice(None),) * (4 - len(keys)))
        if not isinstance(keys[0], slice):
            return self.pages.draw(range(self.shape[0])[keys[0]], self.level)[keys[1:]]
        pages = [self.pages.draw(page, self.level)[keys[1:]] for page in range(*keys[0].indices(self.shape[0]))]
        return np.stack(pages) if pages else np.empty((0, *self.shape[1:]), np.uint8)[(slice(None), *keys[1:])]


def _draw_trace(picture: NDArray[np.uint8], y: NDArray[np.float32], left: int, *, thickness: int) -> None:
    """Draw a trace from `left` to the right edge: the least and the largest value of every column of pixels."""
    import cv2

    columns = picture.shape[1] - left
    if len(y) > 2 * columns:
        edges = np.linspace(0, len(y), columns + 1)[:-1].astype(int)
        with np.errstate(invalid="ignore"):
            y = np.stack([np.fmin.reduceat(y, edges), np.fmax.reduceat(y, edges)], 1).ravel()
        x = np.repeat(np.arange(columns) + 0.5, 2)
    else:
        x = (np.arange(len(y)) + 0.5) * columns / len(y)
    points = np.stack([left + x, np.clip(y, -1, picture.shape[0])], 1)
    known = np.isfinite(points[:, 1])
    runs = np.split(np.arange(len(points)), np.flatnonzero(np.diff(known)) + 1)
    lines = [np.rint(points[run] * (1 << SHIFT)).astype(np.int32) for run in runs if known[run[0]]]
    if lines:
        cv2.polylines(picture, lines, False, class_color(4), thickness, cv2.LINE_AA, SHIFT)


def _write(
    picture: NDArray[np.uint8], text: str, place: tuple[int, int], *, room: float, row: float, middle: bool = False
) -> None:
    """Write at a place (x, y): from there to the right, or about it; as large as room and row allow."""
    import cv2

    text = text.encode("ascii", "replace").decode()  # cv2's letters
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1, 1)
    scale = min(picture.shape[1] / 1600, 0.85 * room / max(1, width), 0.5 * row / height)
    if scale < 0.15:
        return
    x = place[0] - round(width * scale / 2) * middle
    x = max(0, min(x, picture.shape[1] - math.ceil(width * scale)))
    origin = (x, place[1] + round(height * scale / 2))
    thickness = max(1, round(scale * 1.6))
    cv2.putText(picture, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, INK, thickness, cv2.LINE_AA)
