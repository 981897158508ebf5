"""One static picture of a scan with heat maps and annotations on top, for reports and places without widgets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.annotations import Annotations
from dhlab.display import channel_color, class_color, default_display, thumbnail
from dhlab.errors import BadShapeError, BadValueError
from dhlab.scan import Scan
from dhlab.view.layers import LENGTHS, Placement, locate, shapes_of
from dhlab.view.tiles import Style, class_names, color_map, index_of, plane_axes, read_plane, to_rgba

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from PIL import Image, ImageDraw, ImageFont

__all__ = ["compose"]

SHIFT = 4  # cv2 draws at 1/16 pixel
SMALLEST_WITH_LEGEND = 200


@dataclass(frozen=True)
class Window:
    """A rectangle of the base scan in level-0 pixels (y, x), and the picture's pixels per base pixel."""

    start: tuple[float, float]
    size: tuple[float, float]
    shape: tuple[int, int]

    @property
    def zoom(self) -> tuple[float, float]:
        """Picture pixels per base pixel, along y and x."""
        return self.shape[0] / self.size[0], self.shape[1] / self.size[1]


def compose(
    base: Scan,
    *overlays: Scan | Annotations,
    max_px: int = 1200,
    region: tuple[Sequence[float], Sequence[float]] | None = None,
    opacity: float | Sequence[float] = 0.5,
    legend: bool = True,
    styles: Mapping[int, Style] | None = None,
    index: Mapping[str, int] | None = None,
) -> NDArray[np.uint8]:
    """Draw a scan with everything that lies on it.

    Parameters
    ----------
    base
        The scan at the bottom; a volume shows its middle slice, a signal its traces.
    overlays
        Heat maps, masks, label maps, further scans and annotations, from bottom to top; placed by spacing, origin
        and parent.
    max_px
        Longest side of the picture in pixels; it is never enlarged beyond the finest level.
    region
        First corner and size (y, x) of the part to draw, in level-0 pixels of the base; None draws all.
    opacity
        Of the overlays, from 0 to 1; one number for all or one for each. Annotations are filled with half of it.
    legend
        Draw class names with their colours, and a scale bar.
    styles
        Colouring of single overlays by their number, or of the base by -1.
    index
        Position on further axes of the base (``{"z": 12}``).

    Returns
    -------
    ndarray
        ``(height, width, 3)`` uint8.

    Raises
    ------
    BadValueError
        If an overlay is neither `Scan` nor `Annotations`, or a number is out of range.
    BadShapeError
        If the region is empty.
    """
    if max_px < 1:
        raise BadValueError(f"max_px {max_px}; expected a positive number of pixels.")
    shares = [float(opacity)] if isinstance(opacity, (int, float)) else [float(o) for o in opacity]
    opacities = shares * len(overlays) if isinstance(opacity, (int, float)) else shares
    if len(opacities) != len(overlays) or not all(0 <= o <= 1 for o in shares):
        raise BadValueError(f"opacity {opacity}; expected a number from 0 to 1, or one for each of {len(overlays)}.")
    if "y" not in base.axes or "x" not in base.axes:
        return thumbnail(base, max_px)
    styles = styles or {}
    window = _window(base, max_px, region)
    at = index_of(base, index)
    plane = read_plane(base, window.start, window.size, window.shape, index=at)
    rgba = to_rgba(plane, base, style=styles.get(-1))
    picture = _blend(np.full(rgba[..., :3].shape, 255, np.uint8), rgba, 1.0)
    entries: list[_Entry] = _entries(base, styles.get(-1)) if base.kind != "image" else []
    for number, (thing, share) in enumerate(zip(overlays, opacities, strict=True)):
        style = styles.get(number)
        if isinstance(thing, Annotations):
            entries += _draw_shapes(picture, thing, base, window=window, opacity=share)
        elif isinstance(thing, Scan):
            rgba = _read_overlay(thing, base, window, style=style)
            picture = _blend(picture, rgba, share)
            entries += _entries(thing, style)
        else:
            raise BadValueError(f"cannot draw {type(thing).__name__}; expected a Scan or Annotations.")
    if legend and min(picture.shape[:2]) >= SMALLEST_WITH_LEGEND:
        spacing = base.spacing[plane_axes(base)[1]] / window.zoom[1]
        return _draw_legend(picture, entries, spacing, base.unit)
    return picture


def _window(base: Scan, max_px: int, region: tuple[Sequence[float], Sequence[float]] | None) -> Window:
    y, x = plane_axes(base)
    start, size = region or ((0, 0), (base.shape[y], base.shape[x]))
    if len(start) != 2 or len(size) != 2 or not all(n > 0 for n in size):
        raise BadShapeError(f"region {region}; expected ((y, x), (height, width)) with a positive size.")
    finest = min(base.spacing[y], base.spacing[x])
    height, width = size[0] * base.spacing[y] / finest, size[1] * base.spacing[x] / finest
    reduction = max(1.0, max(height, width) / max_px)
    shape = (max(1, round(height / reduction)), max(1, round(width / reduction)))
    return Window((float(start[0]), float(start[1])), (float(size[0]), float(size[1])), shape)


def _read_overlay(scan: Scan, base: Scan, window: Window, *, style: Style | None) -> NDArray[np.uint8]:
    """Return the part of an overlay that lies in the window as ``(rows, columns, 4)`` uint8."""
    place = locate(scan, base)
    start = tuple((s - o) / k for s, o, k in zip(window.start, place.offset, place.scale, strict=True))
    size = tuple(n / k for n, k in zip(window.size, place.scale, strict=True))
    plane = read_plane(scan, (start[0], start[1]), (size[0], size[1]), window.shape)
    rgba = to_rgba(plane, scan, style=style)
    # Outside the overlay nothing is drawn, whatever its fill.
    y, x = plane_axes(scan)
    for axis, which in ((0, y), (1, x)):
        middle = start[axis] + (np.arange(window.shape[axis]) + 0.5) * size[axis] / window.shape[axis]
        outside = (middle < 0) | (middle >= scan.shape[which])
        rgba[(outside, slice(None), 3) if axis == 0 else (slice(None), outside, 3)] = 0
    return rgba


def _blend(picture: NDArray[np.uint8], rgba: NDArray[np.uint8], opacity: float) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:].astype(np.float32) * (opacity / 255)
    mixed = picture + (rgba[..., :3].astype(np.float32) - picture) * alpha
    return np.rint(mixed).astype(np.uint8)


def _draw_shapes(
    picture: NDArray[np.uint8], annotations: Annotations, base: Scan, *, window: Window, opacity: float
) -> list[_Entry]:
    """Draw filled areas with crisp outlines on a white halo, lines and points, into `picture`; return the legend."""
    import cv2
    import shapely

    shapes = shapes_of(annotations)
    place = locate(annotations, base)
    low = [(window.start[i] - place.offset[i]) / place.scale[i] for i in (0, 1)]
    high = [(window.start[i] + window.size[i] - place.offset[i]) / place.scale[i] for i in (0, 1)]
    view = shapely.box(low[1], low[0], high[1], high[0])
    seen = np.flatnonzero(shapely.intersects(shapes.geometries, view)) if len(shapes.geometries) else np.arange(0)
    thickness = max(2, round(max(picture.shape[:2]) / 500))
    fills: dict[int, list[list[NDArray[np.int32]]]] = {}
    outlines: list[tuple[list[NDArray[np.int32]], bool, int]] = []
    for i in seen:
        for part in shapely.get_parts(shapes.geometries[i]):
            kind = int(shapely.get_type_id(part))
            if kind == 3:
                rings = [_pixels(ring, place, window) for ring in (part.exterior, *part.interiors)]
                fills.setdefault(int(shapes.labels[i]), []).append(rings)
                outlines.append((rings, True, int(shapes.labels[i])))
            elif kind in (1, 2):
                outlines.append(([_pixels(part, place, window)], False, int(shapes.labels[i])))
            elif kind == 0:
                center = _pixels(part, place, window)[0]
                color = shapes.colors[int(shapes.labels[i])]
                for radius, paint in ((2 * thickness + 2, (255, 255, 255)), (2 * thickness + 1, color)):
                    cv2.circle(picture, center, radius << SHIFT, paint, -1, cv2.LINE_AA, SHIFT)
    for label, areas in fills.items():
        layer = picture.copy()
        for rings in areas:
            cv2.fillPoly(layer, rings, shapes.colors[label], cv2.LINE_AA, SHIFT)
        cv2.addWeighted(layer, opacity / 2, picture, 1 - opacity / 2, 0, dst=picture)
    layer = picture.copy()
    for rings, closed, _ in outlines:
        cv2.polylines(layer, rings, closed, (255, 255, 255), thickness + 2, cv2.LINE_AA, SHIFT)
    cv2.addWeighted(layer, 0.6, picture, 0.4, 0, dst=picture)
    for rings, closed, label in outlines:
        cv2.polylines(picture, rings, closed, shapes.colors[label], thickness, cv2.LINE_AA, SHIFT)
    used = np.unique(shapes.labels[seen]).tolist()
    return [_Entry(shapes.names[i], shapes.colors[i], outlined=True) for i in used]


def _pixels(line: Any, place: Placement, window: Window) -> NDArray[np.int32]:
    """Return the vertices of a line as cv2's fixed-point (x, y) picture pixels."""
    import shapely

    xy = shapely.get_coordinates(line)
    scale = np.array([place.scale[1] * window.zoom[1], place.scale[0] * window.zoom[0]])
    offset = np.array(
        [(place.offset[1] - window.start[1]) * window.zoom[1], (place.offset[0] - window.start[0]) * window.zoom[0]]
    )
    # cv2 counts from the middle of the first pixel, annotations from its outer corner.
    fixed = np.clip((xy * scale + offset - 0.5) * (1 << SHIFT), -(2**30), 2**30)
    vertices: NDArray[np.int32] = np.rint(fixed).astype(np.int32)
    return vertices


@dataclass(frozen=True)
class _Entry:
    """One line of the legend: a class with its colour, or a colour map with its ends."""

    name: str
    color: tuple[int, int, int] = (0, 0, 0)
    colors: str | None = None
    low: float = 0.0
    high: float = 1.0
    outlined: bool = False


def _entries(scan: Scan, style: Style | None) -> list[_Entry]:
    style = style or Style()
    names = class_names(scan)
    if scan.kind == "mask":
        return [_Entry(names[0], class_color(0))]
    if scan.kind == "labels":
        return [_Entry(name, class_color(i)) for i, name in enumerate(names)]
    if scan.kind == "heatmap":
        if style.channel is None and len(names) > 1:
            return [_Entry(n, channel_color(scan, i)) for i, n in enumerate(names) if n.lower() != "background"]
        channel = style.channel or 0
        name = names[channel] if names else scan.name
        display, one = default_display(scan), 255 if scan.dtype == np.uint8 else 1  # uint8 stores a score of 1 as 255
        return [_Entry(name, channel_color(scan, channel), style.colors, display.low / one, display.high / one)]
    return []


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from pathlib import Path

    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size) if path.exists() else ImageFont.load_default(size)


def _draw_legend(picture: NDArray[np.uint8], entries: list[_Entry], spacing: float, unit: str) -> NDArray[np.uint8]:
    """Draw the legend at the lower right and the scale bar at the lower left, on pale plates."""
    from PIL import Image, ImageDraw

    # The same class in a heat map and in annotations is one line.
    lines = list({(e.name, e.color, e.colors): e for e in entries}.values())[:16]
    height, width = picture.shape[:2]
    size = max(11, min(22, round(max(height, width) / 62)))
    font, pad = _font(size), round(size * 0.6)
    image = Image.fromarray(picture).convert("RGBA")
    plate = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(plate)
    if lines:
        gradient = any(e.colors for e in lines)
        swatch = size * 6 if gradient else size
        text = max(pen.textlength(_fitted(e.name, pen, font, width * 0.4), font=font) for e in lines)
        step = round(size * 1.5)
        box = (width - pad * 4 - swatch - round(text), height - pad * 3 - step * len(lines), width - pad, height - pad)
        pen.rounded_rectangle(box, radius=pad // 2, fill=(255, 255, 255, 215), outline=(0, 0, 0, 60))
        for number, entry in enumerate(lines):
            top = box[1] + pad + number * step + (step - size) // 2
            left = box[0] + pad
            _draw_swatch(plate, entry, (left, top), (swatch, size))
            name = _fitted(entry.name, pen, font, width * 0.4)
            pen.text((left + swatch + pad, top + size / 2), name, fill=(20, 20, 20, 255), font=font, anchor="lm")
    if unit != "s":  # traces have their own axis
        _draw_scale_bar(pen, (height, width), spacing=spacing, unit=unit, size=size)
    return np.asarray(Image.alpha_composite(image, plate).convert("RGB")).copy()


def _draw_swatch(plate: Image.Image, entry: _Entry, corner: tuple[int, int], size: tuple[int, int]) -> None:
    from PIL import Image, ImageDraw

    pen = ImageDraw.Draw(plate)
    left, top = corner
    box = (left, top, left + size[0] - 1, top + size[1] - 1)
    if entry.colors is None:
        # A class needs a square only; it stands beside its name.
        box = (left + size[0] - size[1], top, left + size[0] - 1, top + size[1] - 1)
        fill = (*entry.color, 110 if entry.outlined else 255)
        pen.rectangle(box, fill=fill, outline=(*entry.color, 255), width=2)
        return
    ramp = color_map(entry.colors, entry.color)[np.linspace(0, 255, size[0]).astype(int)]
    plate.paste(Image.fromarray(np.repeat(ramp[None], size[1], 0)), (left, top))
    pen.rectangle(box, outline=(0, 0, 0, 120))
    font = _font(max(8, round(size[1] * 0.75)))
    middle = top + size[1] / 2
    for value, where, anchor, paint in (
        (entry.low, left + 3, "lm", (255, 255, 255, 255)),
        (entry.high, left + size[0] - 4, "rm", (0, 0, 0, 255)),
    ):
        pen.text((where, middle), f"{value:g}", fill=paint, font=font, anchor=anchor)


def _fitted(name: str, pen: ImageDraw.ImageDraw, font: Any, room: float) -> str:
    if pen.textlength(name, font=font) <= room:
        return name
    while name and pen.textlength(name + "…", font=font) > room:
        name = name[:-1]
    return name + "…"


def _draw_scale_bar(pen: ImageDraw.ImageDraw, shape: tuple[int, int], *, spacing: float, unit: str, size: int) -> None:
    length, label = nice_length(shape[1] * spacing * 0.2, unit)
    bar = length / spacing
    font, pad = _font(size), round(size * 0.6)
    text = pen.textlength(label, font=font)
    room = round(max(bar, text))
    box = (pad, shape[0] - pad * 4 - size - 4, pad * 3 + room, shape[0] - pad)
    pen.rounded_rectangle(box, radius=pad // 2, fill=(255, 255, 255, 215), outline=(0, 0, 0, 60))
    middle = (box[0] + box[2]) / 2
    pen.text((middle, box[1] + pad), label, fill=(20, 20, 20, 255), font=font, anchor="ma")
    bottom = box[3] - pad
    pen.rectangle((middle - bar / 2, bottom - max(3, size // 5), middle + bar / 2, bottom), fill=(20, 20, 20, 255))


def nice_length(wanted: float, unit: str) -> tuple[float, str]:
    """Return the largest of 1, 2, 5 × 10ⁿ that does not exceed `wanted`, and how to write it.

    Parameters
    ----------
    wanted
        Length in `unit`.
    unit
        ``"µm"``, ``"mm"`` … or ``"px"``.

    Returns
    -------
    float
        Length in `unit`.
    str
        Length with a unit that people read easily: 1 mm rather than 1000 µm.
    """
    power = 10.0 ** math.floor(math.log10(wanted))
    length = max(f * power for f in (1, 2, 5) if f * power <= wanted * (1 + 1e-9))
    if unit not in LENGTHS:
        return length, f"{length:g} {unit}"
    metres = length * LENGTHS[unit]
    name, factor = next(((n, f) for n, f in (("mm", 1e-3), ("µm", 1e-6)) if metres >= f * 0.9999), ("nm", 1e-9))
    return length, f"{metres / factor:g} {name}"
