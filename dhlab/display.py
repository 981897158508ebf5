"""From pixels of any scan to 8-bit RGB for a person's eye: one colour path for thumbnails, viewer and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.scan import Scan

__all__ = ["Display", "channel_color", "class_color", "default_display", "thumbnail", "to_rgb"]

# Okabe and Ito's colour-blind safe palette, darkest last (https://jfly.uni-koeln.de/color/).
CLASS_COLORS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (110, 110, 110),
)
# Seven anchors of matplotlib's "inferno", interpolated to 256 steps.
HEAT_ANCHORS = ((0, 0, 4), (51, 10, 95), (120, 28, 109), (187, 55, 84), (237, 105, 37), (252, 181, 25), (252, 255, 164))


@dataclass(frozen=True)
class Display:
    """How a scan is shown.

    Parameters
    ----------
    low, high
        Values shown as black and white (or as the ends of the heat colours).
    channel
        Channel shown alone; None shows all (RGB, additive colours, or the largest score).
    """

    low: float = 0.0
    high: float = 255.0
    channel: int | None = None


def class_color(index: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class by its index."""
    return CLASS_COLORS[index % len(CLASS_COLORS)]


def channel_color(scan: Scan, index: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class of a heat map: what ``meta["class_colors"]`` says, else that of its index."""
    known = scan.meta.get("class_colors") or ()
    if index >= len(known):
        return class_color(index)
    red, green, blue = known[index]
    return red, green, blue


def default_display(scan: Scan) -> Display:
    """Choose how to show a scan: its full range for 8 bit, the 1 to 99.8 % quantiles of the coarsest level else."""
    if scan.kind == "heatmap":
        return Display(0.0, 255.0 if scan.dtype == np.uint8 else 1.0)
    if scan.dtype == np.uint8 or scan.kind in ("mask", "labels"):
        return Display(0.0, 255.0)
    coarsest = np.asarray(scan.levels[-1][...], np.float32)
    low, high = np.nanquantile(coarsest, (0.01, 0.998)) if coarsest.size else (0.0, 1.0)
    return Display(float(low), float(high if high > low else low + 1))


def to_rgb(array: NDArray[Any], scan: Scan, display: Display | None = None) -> NDArray[np.uint8]:
    """Turn one plane of a scan into 8-bit RGB.

    Parameters
    ----------
    array
        Pixels of `scan` with axes ``y``, ``x`` and perhaps ``c``, in the scan's own order, any dtype.
    scan
        The scan that the pixels come from (axes, kind, channels).
    display
        Range and channel; None is `default_display`.

    Returns
    -------
    ndarray
        ``(height, width, 3)`` uint8.
    """
    display = display or default_display(scan)
    if scan.kind in ("mask", "labels") and "c" not in scan.axes:
        table = np.array([(255, 255, 255), *(class_color(i) for i in range(255))], np.uint8)
        return table[np.asarray(array).astype(np.int64) % 256]
    planes = np.asarray(array)
    if "c" in scan.axes:
        order = [a for a in scan.axes if a in "cyx"]
        planes = np.moveaxis(planes, order.index("c"), -1)
    else:
        planes = planes[..., None]
    if scan.kind == "image" and planes.shape[-1] in (3, 4) and planes.dtype == np.uint8 and display.channel is None:
        return np.ascontiguousarray(planes[..., :3])
    span = max(display.high - display.low, 1e-12)
    unit = np.clip((np.nan_to_num(planes.astype(np.float32)) - display.low) / span, 0, 1)
    if display.channel is not None:
        unit = unit[..., display.channel : display.channel + 1]
    if scan.kind == "heatmap":
        return heat_colors()[np.rint(unit.max(-1) * 255).astype(np.uint8)]
    if unit.shape[-1] == 1:
        return np.repeat(np.rint(unit * 255).astype(np.uint8), 3, axis=-1)
    if unit.shape[-1] == 3:
        return np.rint(unit * 255).astype(np.uint8)
    colors = np.array([class_color(i) for i in range(unit.shape[-1])], np.float32)
    return np.clip(np.rint(unit @ colors), 0, 255).astype(np.uint8)


def heat_colors() -> NDArray[np.uint8]:
    """Return the heat colour map, ``(256, 3)`` uint8, from black over red to pale yellow."""
    steps = np.linspace(0, len(HEAT_ANCHORS) - 1, 256)
    anchors = np.array(HEAT_ANCHORS, float)
    return (
        np.stack([np.interp(steps, range(len(anchors)), anchors[:, c]) for c in range(3)], -1).round().astype(np.uint8)
    )


def thumbnail(scan: Scan, max_px: int = 512) -> NDArray[np.uint8]:
    """Return a picture of a whole scan, ``(height, width, 3)`` uint8, longest side at most `max_px` pixels.

    Volumes and series show the middle of every further axis; signals show a trace per channel.
    """
    from PIL import Image

    if "y" not in scan.axes or "x" not in scan.axes:
        return _draw_traces(scan, max_px)
    y, x = (scan.window_axes.index(a) for a in "yx")
    height, width = scan.shape[y], scan.shape[x]
    # Physical proportions: anisotropic pixels must not squeeze the picture.
    aspect = (height * scan.spacing[y]) / (width * scan.spacing[x])
    rows, columns = (max_px, max(1, round(max_px / aspect))) if aspect > 1 else (max(1, round(max_px * aspect)), max_px)
    rows, columns = (rows, columns) if height > rows or width > columns else (height, max(1, round(height / aspect)))
    fine = [i for i in range(len(scan.levels)) if scan.shape_of(i)[y] >= rows and scan.shape_of(i)[x] >= columns]
    level = max(fine, default=0)
    key = tuple(
        slice(None) if a in "cyx" else int(n) // 2 for a, n in zip(scan.axes, scan.levels[level].shape, strict=True)
    )
    image = Image.fromarray(to_rgb(np.asarray(scan.levels[level][key]), scan))
    exact = scan.kind in ("mask", "labels")
    resample = Image.Resampling.NEAREST if exact else Image.Resampling.BOX
    return np.asarray(image.resize((columns, rows), resample))


def _draw_traces(scan: Scan, max_px: int) -> NDArray[np.uint8]:
    data = np.asarray(scan.levels[-1][...], np.float32)
    if "c" in scan.axes:
        data = np.moveaxis(data, scan.axes.index("c"), 0)
    data = np.atleast_2d(data.reshape(data.shape[0], -1) if data.ndim > 1 else data)[:16]
    height = max(24, max_px // 3 // len(data))
    picture = np.full((height * len(data), max_px, 3), 255, np.uint8)
    edges = np.linspace(0, data.shape[1], max_px + 1).astype(int)
    for row, trace in enumerate(data):
        low, high = np.nanmin(trace), np.nanmax(trace)
        unit = (np.nan_to_num(trace) - low) / max(high - low, 1e-12)
        for column in range(max_px):
            part = unit[edges[column] : max(edges[column + 1], edges[column] + 1)]
            if part.size:
                top, bottom = (int((1 - v) * (height - 3)) + 1 for v in (part.max(), part.min()))
                picture[row * height + top : row * height + bottom + 1, column] = class_color(4)
    return picture
