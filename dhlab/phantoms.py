"""Phantoms: slides, a volume and a signal made from a seed, whose truth is known at every pixel.

Slides are painted as stain concentrations and turned into light by the law of Beer and Lambert, so that whatever
works on optical density works on them. They test software; they teach nothing about disease.
"""

from __future__ import annotations

import math
import os
import secrets
import struct
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cv2
import numpy as np
import tifffile

from dhlab.errors import BadShapeError, BadValueError, StorageError
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "CLASSES",
    "FLUOROPHORES",
    "SIGNAL_CLASSES",
    "STAINS",
    "VERSION",
    "VOLUME_CLASSES",
    "LargeSlide",
    "draw_pen",
    "draw_rim",
    "make_icc_profile",
    "make_signal",
    "make_volume",
    "paint_fluorescence",
    "paint_large_slide",
    "paint_slide",
    "write_slide",
]

VERSION = 1  # raise it when any pixel of a generated phantom changes: caches are keyed by it
CLASSES = ("background", "stroma", "epithelium", "adipose")
VOLUME_CLASSES = ("air", "soft tissue", "lung", "bone", "nodule")
SIGNAL_CLASSES = ("rest", "burst")
FLUOROPHORES = ("DAPI", "FITC", "TRITC")

# Optical density (red, green, blue) per unit of stain: Macenko et al. 2009 (H&E), Ruifrok and Johnston 2001 (DAB).
STAINS = {
    "haematoxylin": (0.5626, 0.7201, 0.4062),
    "eosin": (0.2159, 0.8012, 0.5581),
    "dab": (0.2680, 0.5700, 0.7760),
}
GLASS = 243.0
BACKGROUND, STROMA, EPITHELIUM, ADIPOSE = 1, 2, 3, 4

Stain = Literal["h&e", "ihc", "pale"]
Vendor = Literal["aperio", "generic", "ome"]


class Raster(Protocol):
    """What `write_slide` writes: an array, or anything that has a shape, a dtype and slicing."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, key: Any, /) -> Any: ...


def paint_slide(
    shape: tuple[int, int] = (2048, 2048),
    *,
    rng: int | np.random.Generator = 0,
    spacing: float = 0.5,
    stain: Stain = "h&e",
    whole: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Paint a bright-field slide: glands in stroma beside fat, on glass.

    Parameters
    ----------
    shape
        Height and width in pixels.
    rng
        Seed or generator; the same seed gives the same pixels.
    spacing
        Pixel size in µm; structures keep their physical size.
    stain
        ``"h&e"``, ``"pale"`` (the same at a third of the concentration) or ``"ihc"`` (haematoxylin, and DAB on the
        membranes of some glands).
    whole
        Fill the whole picture with tissue, no glass around it.

    Returns
    -------
    tuple of ndarray
        Image ``(height, width, 3)`` uint8 and label map ``(height, width)`` uint8: 0 unlabelled, else index + 1 into
        `CLASSES`. The lumen of a gland counts as background.

    Raises
    ------
    BadValueError
        If a size or the spacing is not positive, or the stain is unknown.
    """
    if min(shape) < 1:
        raise BadShapeError(f"shape {shape}; expected a positive height and width in pixels.")
    if not (math.isfinite(spacing) and spacing > 0):
        raise BadValueError(f"spacing {spacing}; expected a positive number of µm per pixel.")
    if stain not in ("h&e", "ihc", "pale"):
        raise BadValueError(f"stain {stain!r}; expected 'h&e', 'ihc' or 'pale'.")
    random = np.random.default_rng(rng)
    labels = np.full(shape, STROMA, np.uint8)
    marker = np.zeros(shape, np.float32)

    blue, pink = _paint_stroma(shape, random, spacing=spacing)
    field = _noise(shape, random, size=420 / spacing)
    fat = field > np.quantile(field, 0.9)
    membrane = _paint_fat(shape, random, spacing=spacing)
    labels[fat] = ADIPOSE
    blue[fat] = 0.06 * membrane[fat]
    pink[fat] = 0.02 + 0.45 * membrane[fat]
    _paint_glands((blue, pink, marker), labels, random, spacing=spacing)
    if not whole:
        outline = _outline(shape, random, spacing=spacing)
        glass = outline < 0.5
        labels[glass] = BACKGROUND
        ragged = np.clip((outline - 0.5) * 24 * max(1.0, min(shape) * spacing / 1000), 0, 1)
        blue, pink, marker = blue * ragged, pink * ragged, marker * ragged

    coarse, fine = (cv2.GaussianBlur(random.standard_normal(shape, np.float32), (0, 0), s) for s in (0.9, 0.45))
    texture = 1 + 0.7 * coarse + 0.55 * fine
    strength = 0.33 if stain == "pale" else 1.0
    if stain == "ihc":
        density = _density(0.75 * blue * texture, "haematoxylin") + _density(marker * texture + 0.04 * pink, "dab")
    else:
        density = _density(blue * texture, "haematoxylin") + _density(pink * texture, "eosin")
    blurred = np.asarray(cv2.GaussianBlur(density, (0, 0), max(0.3, 0.1 / spacing)), np.float32)
    return _expose(strength * blurred, random), labels


@dataclass(frozen=True, eq=False)
class LargeSlide:
    """A slide of any size painted on demand from one phantom reflected again and again; it holds no pixels of its own.

    Parameters
    ----------
    shape
        Height, width and 3, in pixels.
    image
        The phantom that is repeated, ``(height, width, 3)`` uint8.
    glass
        Empty glass of the same shape.
    truth
        Label map of `image`, ``(height, width)`` uint8.
    outline
        Field that is at least one half where there is tissue, coarse, ``(rows, columns)`` float32, stretched over the
        slide.
    """

    shape: tuple[int, int, int]
    image: NDArray[np.uint8]
    glass: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    outline: NDArray[np.float32]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels, uint8."""
        return np.dtype(np.uint8)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """Return a window, ``(height, width, channels)`` uint8; key is up to three slices."""
        rows, columns, channels = self._slices(key)
        inside = self._inside(rows, columns)
        if inside is None:
            return self._repeat(self.image, rows, columns)[..., channels]
        if not inside.any():
            return self._repeat(self.glass, rows, columns)[..., channels]
        tissue, glass = (self._repeat(bank, rows, columns) for bank in (self.image, self.glass))
        return np.where(inside[..., None], tissue, glass)[..., channels]

    def labels(self, key: Any) -> NDArray[np.uint8]:
        """Return the label map of a window, ``(height, width)`` uint8; key is up to two slices."""
        rows, columns, _ = self._slices(key)
        truth, inside = self._repeat(self.truth, rows, columns), self._inside(rows, columns)
        return truth if inside is None else np.where(inside, truth, np.uint8(BACKGROUND))

    def _slices(self, key: Any) -> tuple[range, range, slice]:
        parts = [slice(None) if p is Ellipsis else p for p in (key if isinstance(key, tuple) else (key,))]
        rows, columns, channels = parts + [slice(None)] * (3 - len(parts))
        return range(self.shape[0])[rows], range(self.shape[1])[columns], channels

    def _inside(self, rows: range, columns: range) -> NDArray[np.bool_] | None:
        """Return where there is tissue, or None if everywhere: the outline, interpolated linearly."""
        places = []
        for picks, length, cells in zip((rows, columns), self.shape, self.outline.shape, strict=False):
            place = (np.asarray(picks, np.float32) + 0.5) * (cells / length) - 0.5
            places.append(np.clip(place, 0, cells - 1))
        low = [p.astype(np.int64) for p in places]
        high = [np.minimum(a + 1, n - 1) for a, n in zip(low, self.outline.shape, strict=True)]
        cover = self.outline[low[0].min() : high[0].max() + 1, low[1].min() : high[1].max() + 1]
        if cover.min() >= 0.5:
            return None
        if cover.max() < 0.5:
            return np.zeros((len(rows), len(columns)), np.bool_)
        down, across = (p - a for p, a in zip(places, low, strict=True))
        upper, lower = (self.outline.take(a, 0) for a in (low[0], high[0]))
        line = upper + (lower - upper) * down[:, None]
        left, right = line.take(low[1], 1), line.take(high[1], 1)
        return np.asarray(left + (right - left) * across >= 0.5)

    @staticmethod
    def _repeat(bank: NDArray[np.uint8], rows: range, columns: range) -> NDArray[np.uint8]:
        indices = []
        for places, length in ((rows, bank.shape[0]), (columns, bank.shape[1])):
            folded = np.asarray(places) % (2 * length)
            indices.append(np.where(folded < length, folded, 2 * length - 1 - folded))
        part: NDArray[np.uint8] = bank.take(indices[0], 0).take(indices[1], 1)
        return part


def paint_large_slide(
    shape: tuple[int, int] = (40_000, 40_000), *, rng: int | np.random.Generator = 0, spacing: float = 0.25
) -> LargeSlide:
    """Paint a slide of any size in bounded memory: pixels are made when they are read.

    Parameters
    ----------
    shape
        Height and width in pixels.
    rng
        Seed or generator.
    spacing
        Pixel size in µm.

    Returns
    -------
    LargeSlide
        Slices like an array ``(height, width, 3)`` uint8 and knows its label map.
    """
    random = np.random.default_rng(rng)
    side = int(min(2048, max(shape)))
    image, truth = paint_slide((side, side), rng=random, spacing=spacing, whole=True)
    glass = _expose(np.zeros((side, side, 3), np.float32), random)
    coarse = tuple(max(1, math.ceil(n / 64)) for n in shape)
    outline = _outline((coarse[0], coarse[1]), random, spacing=spacing * 64)
    return LargeSlide((*shape, 3), image, glass, truth, outline)


def paint_fluorescence(
    shape: tuple[int, int] = (1024, 1024), *, rng: int | np.random.Generator = 0, spacing: float = 0.5
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Paint a fluorescence slide: nuclei, cytoplasm and a sparse marker on a dark ground, with shot noise.

    Parameters
    ----------
    shape
        Height and width in pixels.
    rng
        Seed or generator.
    spacing
        Pixel size in µm.

    Returns
    -------
    tuple of ndarray
        Image ``(3, height, width)`` uint16, channels `FLUOROPHORES`, and label map ``(height, width)`` uint8: 1
        outside cells, 2 cytoplasm, 3 nucleus.
    """
    random = np.random.default_rng(rng)
    tissue = _outline(shape, random, spacing=spacing) >= 0.5
    labels = np.ones(shape, np.uint8)
    marked = np.zeros(shape, np.float32)
    for y, x in _scatter(shape, random, distance=14 / spacing):
        if not tissue[y, x]:
            continue
        angle = float(random.uniform(0, 180))
        long, short = random.uniform(4.5, 6.5) / spacing, random.uniform(3.5, 4.5) / spacing
        top, left, body = _stamp(shape, (y, x), (1.5 * long, 1.5 * short), angle)
        window = labels[top : top + body.shape[0], left : left + body.shape[1]]
        window[(body > 0) & (window == 1)] = 2
        if random.random() < 0.25:
            marked[top : top + body.shape[0], left : left + body.shape[1]][body > 0] = random.uniform(0.5, 1)
        top, left, body = _stamp(shape, (y, x), (long, short), angle)
        labels[top : top + body.shape[0], left : left + body.shape[1]][body > 0] = 3
    nucleus, cell = (labels == 3).astype(np.float32), (labels >= 2).astype(np.float32)
    mottle = 0.6 + 0.8 * _noise(shape, random, size=3 / spacing)
    signal = np.stack(
        [9000 * nucleus * mottle + 250, 3000 * (cell - 0.7 * nucleus) * mottle + 400, 12000 * marked * mottle + 150]
    )
    spread = np.stack([cv2.GaussianBlur(s, (0, 0), max(0.3, 0.35 / spacing)) for s in signal.astype(np.float32)])
    noisy = random.poisson(np.maximum(spread, 0) / 4) * 4 + random.normal(100, 12, spread.shape)
    image: NDArray[np.uint16] = np.clip(np.rint(noisy), 0, 65535).astype(np.uint16)
    return image, labels


def draw_pen(image: NDArray[np.uint8], *, rng: int | np.random.Generator = 0) -> NDArray[np.uint8]:
    """Return a copy with felt-pen strokes (blue, green, black) across it, as pathologists leave on slides.

    Parameters
    ----------
    image
        ``(height, width, 3)`` uint8.
    rng
        Seed or generator.

    Returns
    -------
    ndarray
        ``(height, width, 3)`` uint8.
    """
    random = np.random.default_rng(rng)
    height, width = image.shape[:2]
    thick = max(2, min(height, width) // 60)
    shade = np.ones((height, width, 3), np.float32)
    for colour in ((0.10, 0.16, 0.62), (0.05, 0.45, 0.25), (0.08, 0.08, 0.10)):
        centre = random.uniform(0.2, 0.8, 2) * (width, height)
        steps = np.linspace(0, random.uniform(2.5, 5.5), 40) + random.uniform(0, 6)
        radius = min(height, width) * random.uniform(0.12, 0.3)
        wobble = 1 + 0.08 * np.sin(5 * steps)
        curve = centre + radius * wobble[:, None] * np.stack([np.cos(steps), np.sin(steps)], 1)
        stroke = np.zeros((height, width), np.float32)
        cv2.polylines(stroke, [np.rint(curve).astype(np.int32)], False, 1.0, thick, cv2.LINE_AA)
        soft = cv2.GaussianBlur(stroke, (0, 0), thick / 8 + 0.5)[..., None]
        shade *= 1 - 0.92 * soft * (1 - np.asarray(colour, np.float32))
    return np.asarray(np.clip(np.rint(image * shade), 0, 255), np.uint8)


def draw_rim(image: NDArray[np.uint8], *, width: int = 32) -> NDArray[np.uint8]:
    """Return a copy with a black rim, as scanners leave where the camera saw no glass.

    Parameters
    ----------
    image
        ``(height, width, 3)`` uint8.
    width
        Width of the rim in pixels.

    Returns
    -------
    ndarray
        ``(height, width, 3)`` uint8.
    """
    out = image.copy()
    if width > 0:
        for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
            out[edge] = out[edge] // 40
    return out


def make_volume(
    shape: tuple[int, int, int] = (40, 128, 128),
    *,
    rng: int | np.random.Generator = 0,
    spacing: tuple[float, float, float] = (5.0, 2.8, 2.8),
    nodules: int = 6,
) -> tuple[Scan, Scan]:
    """Make a CT-like chest: body, lungs, spine, and nodules of known place and size, in Hounsfield units.

    Parameters
    ----------
    shape
        Slices, rows and columns.
    rng
        Seed or generator.
    spacing
        Slice distance and pixel size in mm (z, y, x).
    nodules
        How many nodules to place in the lungs.

    Returns
    -------
    tuple of Scan
        Volume ``zyx`` int16 (HU) and label map ``zyx`` uint8 with `VOLUME_CLASSES`; ``meta["nodules"]`` lists centre
        (voxels) and diameter (mm) of each.
    """
    random = np.random.default_rng(rng)
    grids = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    z, y, x = grids
    labels = np.where((x / 0.92) ** 2 + (y / 0.72) ** 2 <= 1, 2, 1).astype(np.uint8)
    for side in (-1, 1):
        lung = ((x - 0.42 * side) / 0.34) ** 2 + ((y + 0.05) / 0.5) ** 2 + (z / 1.05) ** 2 <= 1
        labels[lung] = 3
    labels[(x / 0.12) ** 2 + ((y - 0.5) / 0.13) ** 2 <= 1] = 4
    size = np.asarray(shape) * spacing
    millimetres = [g * s / 2 for g, s in zip(grids, size, strict=True)]
    lungs = np.argwhere(labels == 3)
    found = []
    for _ in range(nodules if len(lungs) else 0):
        centre = lungs[random.integers(len(lungs))]
        diameter = float(random.uniform(12, 34))
        place = [axis[tuple(centre)] for axis in millimetres]
        distance = sum((axis - p) ** 2 for axis, p in zip(millimetres, place, strict=True))
        labels[(distance <= (diameter / 2) ** 2) & (labels == 3)] = 5
        found.append({"centre": [int(c) for c in centre], "diameter": round(diameter, 2)})
    values = np.array([0, -1000, 45, -840, 620, 55], np.float32)[labels]
    values = np.stack([cv2.GaussianBlur(s, (0, 0), 0.7) for s in values])
    values += random.normal(0, 14, shape).astype(np.float32)
    meta = {"reader": "phantom", "phantom": VERSION, "nodules": found}
    volume = Scan.from_array(
        np.rint(values).astype(np.int16), "zyx", spacing=spacing, unit="mm", name="phantom-ct", fill=-1000
    ).replace(meta=meta)
    truth = Scan.from_array(labels, "zyx", spacing=spacing, unit="mm", name="phantom-ct-labels", kind="labels")
    return volume, truth.replace(parent=volume.as_parent(), meta={**meta, "classes": list(VOLUME_CLASSES)})


def make_signal(
    seconds: float = 60.0,
    *,
    rng: int | np.random.Generator = 0,
    rate: float = 256.0,
    channels: Sequence[str] = ("Fp1", "Fp2", "C3", "C4", "P3", "P4", "O1", "O2"),
    bursts: int = 4,
) -> tuple[Scan, Scan]:
    """Make an EEG-like recording: pink noise, an occipital alpha rhythm, and 3 Hz spike-and-wave bursts at known times.

    Parameters
    ----------
    seconds
        Length in seconds.
    rng
        Seed or generator.
    rate
        Samples per second.
    channels
        Electrode names; the alpha rhythm grows from the first to the last.
    bursts
        How many bursts of 2 to 5 s to place, at most one per equal share of the recording.

    Returns
    -------
    tuple of Scan
        Signal ``ct`` float32 in µV and label map ``t`` uint8 with `SIGNAL_CLASSES`; ``meta["bursts"]`` lists start
        and stop in seconds.
    """
    random = np.random.default_rng(rng)
    count = round(seconds * rate)
    if count < 1 or not channels:
        raise BadShapeError(f"{count} samples of {len(channels)} channels; expected at least one of each.")
    time = np.arange(count) / rate
    spectrum = np.fft.rfft(random.standard_normal((len(channels), count)))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / rate), 0.5)
    signal = np.fft.irfft(spectrum / np.sqrt(frequency), count)
    signal *= 12 / max(float(signal.std()), 1e-9)
    wax = 0.5 + 0.5 * np.sin(2 * np.pi * 0.1 * time + random.uniform(0, 6))
    weight = np.linspace(2, 18, len(channels))[:, None]
    signal += weight * wax * np.sin(2 * np.pi * 10 * time + random.uniform(0, 6, (len(channels), 1)))
    labels = np.ones(count, np.uint8)
    found = []
    share = seconds / max(bursts, 1)
    for number in range(bursts):
        length = float(min(random.uniform(2, 5), 0.8 * share))
        start = number * share + float(random.uniform(0, share - length))
        inside = (time >= start) & (time < start + length)
        phase = (time[inside] - start) * 3 % 1
        wave = 90 * np.sin(np.pi * phase) ** 2 - 160 * np.exp(-(((phase - 0.12) / 0.035) ** 2))
        signal[:, inside] += wave * random.uniform(0.7, 1.2, (len(channels), 1))
        labels[inside] = 2
        found.append([round(start, 4), round(start + length, 4)])
    meta = {"reader": "phantom", "phantom": VERSION, "bursts": found, "value_unit": "µV"}
    scan = Scan.from_array(
        signal.astype(np.float32), "ct", spacing=1 / rate, unit="s", name="phantom-eeg", channels=tuple(channels)
    ).replace(meta=meta)
    truth = Scan.from_array(labels, "t", spacing=1 / rate, unit="s", name="phantom-eeg-labels", kind="labels")
    return scan, truth.replace(parent=scan.as_parent(), meta={**meta, "classes": list(SIGNAL_CLASSES)})


def make_icc_profile(gamma: float = 1.8) -> bytes:
    """Make an RGB display profile (sRGB primaries, plain power law) whose conversion to sRGB visibly changes colours.

    Parameters
    ----------
    gamma
        Exponent of the tone curve.

    Returns
    -------
    bytes
        An ICC version 2.1 matrix/TRC profile (ICC.1:2001-04).
    """

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    name = b"dhlab phantom\x00"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0CC0\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249),
        b"rXYZ": b"XYZ \0\0\0\0" + fixed(0.4361, 0.2225, 0.0139),
        b"gXYZ": b"XYZ \0\0\0\0" + fixed(0.3851, 0.7169, 0.0971),
        b"bXYZ": b"XYZ \0\0\0\0" + fixed(0.1431, 0.0606, 0.7141),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for signature, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += signature + struct.pack(">II", offset + len(body), len(data))
        body += padded
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head + bytes(128 - len(head)) + table + body


def write_slide(
    path: str | os.PathLike[str],
    image: Raster,
    *,
    tile: int = 256,
    quality: int = 80,
    levels: Sequence[int] = (1, 4, 16),
    spacing: float | None = 0.25,
    magnification: float | None = None,
    vendor: Vendor = "aperio",
    subsampling: tuple[int, int] = (2, 2),
    icc: bytes | None = None,
    label: bool = False,
    channels: Sequence[str] = (),
    corrupt_level: int | None = None,
    keep: float = 1.0,
) -> Path:
    """Write a pyramidal tiled TIFF as scanners do, row of tiles by row of tiles, in bounded memory.

    Parameters
    ----------
    path
        Where to; it appears whole.
    image
        ``(height, width, 3)`` uint8, stored as JPEG, or ``(channels, height, width)`` of any unsigned type, stored
        with deflate (``vendor="ome"`` only). Read in horizontal bands.
    tile
        Tile side in pixels, a multiple of 16.
    quality
        JPEG quality.
    levels
        Down-sampling of each level, the first 1, each a multiple of the one before.
    spacing
        Pixel size in µm, written as it is, sense or not; None leaves it out.
    magnification
        Objective power, written as it is (``"aperio"``); None leaves it out.
    vendor
        ``"aperio"`` (SVS: description, thumbnail, optional label and macro pages), ``"generic"`` (resolution tags) or
        ``"ome"`` (OME-XML, levels as SubIFDs).
    subsampling
        JPEG chroma subsampling (horizontal, vertical).
    icc
        Colour profile to embed.
    label
        Add label and macro pages that show an invented patient (``"aperio"``).
    channels
        Channel names (``"ome"``).
    corrupt_level
        Index of a level whose tiles are overwritten with noise after writing.
    keep
        Share of the file's bytes kept; below 1 the file is truncated.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    BadShapeError
        If image and vendor do not fit, or the image is smaller than its coarsest level allows.
    BadValueError
        If tile, levels or keep are out of range.
    StorageError
        If it cannot be written.
    """
    target = Path(path)
    planar = len(image.shape) == 3 and image.shape[2] != 3
    if len(image.shape) != 3 or (planar and vendor != "ome") or (not planar and np.dtype(image.dtype) != np.uint8):
        raise BadShapeError(
            f"image {tuple(image.shape)} {image.dtype} as {vendor!r}; expected (height, width, 3) uint8, "
            "or (channels, height, width) with vendor='ome'."
        )
    steps = [b // a for a, b in pairwise(levels)]
    if tile < 16 or tile % 16 or tuple(levels[:1]) != (1,) or any(b % a for a, b in pairwise(levels)):
        raise BadValueError(f"tile {tile}, levels {tuple(levels)}; expected a multiple of 16 and 1, then multiples.")
    if not 0 < keep <= 1:
        raise BadValueError(f"keep {keep}; expected a share above 0, at most 1.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with tempfile.TemporaryDirectory(prefix=".dhlab-", dir=target.parent) as folder:
            pyramid: list[Raster] = [image]
            for step in steps:
                pyramid.append(_allocate(pyramid[-1], step, Path(folder) / f"{len(pyramid)}.raw", planar=planar))
            options: dict[str, Any] = {"tile": (tile, tile), "iccprofile": icc, "metadata": None}
            if planar:
                options |= {"compression": "zlib", "photometric": "minisblack"}
            else:
                options |= {
                    "compression": "jpeg",
                    "compressionargs": {"level": quality},
                    "photometric": "rgb",
                    "subsampling": subsampling,
                }
            bands = _Bands(pyramid, steps, tile, planar)
            big = math.prod(image.shape) * np.dtype(image.dtype).itemsize > 8 << 30
            with tifffile.TiffWriter(temporary, bigtiff=big, ome=vendor == "ome") as file:
                if vendor == "aperio":
                    _write_aperio(file, bands, options, spacing=spacing, magnification=magnification, label=label)
                else:
                    _write_plain(file, bands, options, vendor=vendor, spacing=spacing, channels=channels)
        if corrupt_level is not None:
            _corrupt(temporary, corrupt_level)
        if keep < 1:
            os.truncate(temporary, int(temporary.stat().st_size * keep))
        temporary.replace(target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error}. Check space and rights of the folder.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


@dataclass(frozen=True)
class _Bands:
    """The levels of a pyramid as streams of tiles; reading one level fills the next."""

    pyramid: list[Raster]
    steps: list[int]
    tile: int
    planar: bool

    def tiles(self, number: int) -> Iterator[NDArray[Any]]:
        level = self.pyramid[number]
        planes = range(level.shape[0]) if self.planar else (None,)
        for plane in planes:
            yield from self._plane(number, plane)

    def _plane(self, number: int, plane: int | None) -> Iterator[NDArray[Any]]:
        level, side = self.pyramid[number], self.tile
        height, width = level.shape[1:] if self.planar else level.shape[:2]
        step = self.steps[number] if number < len(self.steps) else 1
        below = self.pyramid[number + 1] if number < len(self.steps) else None
        rest: list[NDArray[Any]] = []
        done = 0
        for top in range(0, height, side):
            rows = slice(top, min(top + side, height))
            band = np.asarray(level[rows] if plane is None else level[plane, rows])
            if below is not None:
                rest.append(band)
                have = sum(len(r) for r in rest)
                use = have - have % step
                if use:
                    joined = np.concatenate(rest)
                    small = _shrink(joined[:use], step)
                    rest = [joined[use:]]
                    stop = min(done + len(small), below.shape[1 if self.planar else 0])
                    target: Any = below if plane is None else below[plane]
                    target[done:stop] = small[: stop - done]
                    done = stop
            for left in range(0, width, side):  # last, for the consumer stops at the last tile
                yield np.ascontiguousarray(band[:, left : left + side])


def _allocate(above: Raster, step: int, path: Path, *, planar: bool) -> Raster:
    height, width = above.shape[1:] if planar else above.shape[:2]
    if min(height, width) < step:
        raise BadShapeError(f"a level of {height} × {width} px cannot be shrunk {step} times. Ask for fewer levels.")
    size = (height // step, width // step)
    shape = (above.shape[0], *size) if planar else (*size, above.shape[2])
    return np.memmap(path, np.dtype(above.dtype), "w+", shape=shape)


def _shrink(band: NDArray[Any], step: int) -> NDArray[Any]:
    size = (band.shape[1] // step, band.shape[0] // step)
    cut = np.ascontiguousarray(band[: size[1] * step, : size[0] * step])
    small: NDArray[Any] = cv2.resize(cut, size, interpolation=cv2.INTER_AREA)
    return small.reshape(size[1], size[0], *band.shape[2:])


def _write_aperio(
    file: tifffile.TiffWriter,
    bands: _Bands,
    options: dict[str, Any],
    *,
    spacing: float | None,
    magnification: float | None,
    label: bool,
) -> None:
    head = "Aperio Image Library v12.0.15\r\n"
    facts = f"|AppMag = {magnification:g}" if magnification is not None else ""
    facts += f"|MPP = {spacing:.6g}" if spacing is not None else ""
    facts += "|ScanScope ID = SS0000|User = 00000000-0000-0000-0000-000000000000|Filename = phantom"
    height, width = bands.pyramid[0].shape[:2]
    quality = options["compressionargs"]["level"]
    for number, level in enumerate(bands.pyramid):
        size = f"{width}x{height} [0,0 {width}x{height}] ({bands.tile}x{bands.tile})"
        if number:
            size += f" -> {level.shape[1]}x{level.shape[0]}"
        about = f"{head}{size} JPEG/RGB Q={quality}{facts}"
        file.write(
            bands.tiles(number), shape=level.shape, dtype=level.dtype, description=about, software=False, **options
        )
        if number == 0:
            above = bands.pyramid[min(1, len(bands.pyramid) - 1)]
            step = max(1, math.ceil(max(above.shape[:2]) / 1024))
            thumbnail = np.concatenate([above[row : row + 1, ::step] for row in range(0, above.shape[0], step)])
            size_px = thumbnail.shape[1::-1]
            about = f"{head}{width}x{height} -> {size_px[0]}x{size_px[1]} - |ScanScope ID = SS0000"
            _write_strip(file, thumbnail, about, subfiletype=0)
    if label:
        picture = np.full((463, 387, 3), 250, np.uint8)
        for line, text in enumerate(("PHANTOM LABEL", "NOBODY, Nora", "born 1900-01-01", "MRN 000-0000")):
            cv2.putText(
                picture, text, (20, 80 + 70 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (20, 20, 20), 2, cv2.LINE_AA
            )
        _write_strip(file, picture, f"{head}label 387x463", subfiletype=1)
        macro = np.full((431, 1280, 3), 225, np.uint8)
        macro[20:411, 20:340] = cv2.resize(picture, (320, 391))
        cv2.ellipse(macro, (800, 215), (240, 140), 0, 0, 360, (190, 110, 160), -1, cv2.LINE_AA)
        _write_strip(file, macro, f"{head}macro 1280x431", subfiletype=9)


def _write_strip(file: tifffile.TiffWriter, picture: NDArray[np.uint8], about: str, *, subfiletype: int) -> None:
    file.write(
        picture,
        photometric="rgb",
        compression="jpeg",
        rowsperstrip=16,
        description=about,
        subfiletype=subfiletype,
        software=False,
        metadata=None,
    )


def _write_plain(
    file: tifffile.TiffWriter,
    bands: _Bands,
    options: dict[str, Any],
    *,
    vendor: Vendor,
    spacing: float | None,
    channels: Sequence[str],
) -> None:
    for number, level in enumerate(bands.pyramid):
        scale = level.shape[-1 if bands.planar else 1] / bands.pyramid[0].shape[-1 if bands.planar else 1]
        here = dict(options)
        if vendor == "ome" and number == 0:
            about: dict[str, Any] = {"axes": "CYX" if bands.planar else "YXS"}
            if spacing is not None:
                about |= {f"PhysicalSize{a}": spacing for a in "XY"}
                about |= {f"PhysicalSize{a}Unit": "µm" for a in "XY"}
            if channels:
                about["Channel"] = {"Name": list(channels)}
            here |= {"metadata": about, "subifds": len(bands.pyramid) - 1}
        elif number:
            here["subfiletype"] = 1
        if vendor == "generic" and spacing is not None and spacing > 0:
            per_cm = 1e4 / spacing * scale
            here |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
        file.write(bands.tiles(number), shape=level.shape, dtype=level.dtype, software=False, **here)


def _corrupt(path: Path, number: int) -> None:
    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        if not -len(levels) <= number < len(levels):
            raise BadValueError(f"corrupt_level {number}; expected 0 to {len(levels) - 1}.")
        page: Any = levels[number].pages[0]
        spans = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    random = np.random.default_rng(number)
    with path.open("r+b") as stream:
        for offset, count in spans:
            stream.seek(offset)
            stream.write(random.integers(0, 255, count, np.uint8).tobytes())


def _density(amount: NDArray[np.float32], stain: str) -> NDArray[np.float32]:
    return np.maximum(amount, 0)[..., None] * np.asarray(STAINS[stain], np.float32)


def _expose(density: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.uint8]:
    light = np.exp(-density) * np.float32(GLASS)
    light += random.standard_normal(light.shape, np.float32) * (0.6 + 0.22 * np.sqrt(np.maximum(light, 0)) * 0.35)
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def _noise(shape: tuple[int, int], random: np.random.Generator, *, size: float) -> NDArray[np.float32]:
    """Return smooth noise in 0..1 whose features are about `size` pixels."""
    grid = tuple(max(2, math.ceil(n / size) + 3) for n in shape)
    coarse = random.random(grid, np.float32)
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) / np.float32(size) + 0.5 for n in shape), indexing="ij")
    field = cv2.remap(coarse, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(np.clip(field, 0, 1), np.float32)


def _outline(shape: tuple[int, int], random: np.random.Generator, *, spacing: float) -> NDArray[np.float32]:
    """Return a field that is above one half inside a ragged piece of tissue in the middle."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    distance = np.sqrt((y[:, None] / 0.86) ** 2 + (x[None, :] / 0.86) ** 2)
    wobble = _noise(shape, random, size=max(2.0, min(shape) / 5)) - 0.5
    fray = _noise(shape, random, size=max(1.0, 30 / spacing)) - 0.5
    return np.asarray(0.5 + (1 - distance) + 0.35 * wobble + 0.03 * fray, np.float32)


def _scatter(shape: tuple[int, int], random: np.random.Generator, *, distance: float) -> NDArray[np.int64]:
    """Return points (y, x) on a shaken grid, about `distance` apart, in random order."""
    rows, columns = (np.arange(0.5 * distance, n, distance) for n in shape)
    points = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    points = points + random.uniform(-0.32, 0.32, points.shape) * distance
    points = np.clip(np.rint(points), 0, np.asarray(shape) - 1).astype(np.int64)
    return random.permutation(points)


def _stamp(
    shape: tuple[int, int], centre: tuple[float, float], axes: tuple[float, float], angle: float
) -> tuple[int, int, NDArray[np.uint8]]:
    """Return top, left and a small picture (0..255) of a filled ellipse, cut at the border of `shape`."""
    reach = math.ceil(max(axes)) + 2
    y, x = round(float(centre[0])), round(float(centre[1]))
    patch = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    fixed = (reach << 4, reach << 4)
    cv2.ellipse(patch, fixed, (round(axes[0] * 16), round(axes[1] * 16)), angle, 0, 360, 255, -1, cv2.LINE_AA, 4)
    top, left = max(0, y - reach), max(0, x - reach)
    bottom, right = max(top, min(shape[0], y + reach + 1)), max(left, min(shape[1], x + reach + 1))
    if bottom == top or right == left:
        return 0, 0, patch[:0, :0]
    return top, left, patch[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]


def _paint_nucleus(
    blue: NDArray[np.float32], centre: tuple[float, float], axes: tuple[float, float], *, angle: float, amount: float
) -> None:
    top, left, patch = _stamp((blue.shape[0], blue.shape[1]), centre, axes, angle)
    window = blue[top : top + patch.shape[0], left : left + patch.shape[1]]
    np.maximum(window, patch * np.float32(amount / 255), out=window)


def _paint_stroma(
    shape: tuple[int, int], random: np.random.Generator, *, spacing: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return haematoxylin and eosin of collagen: wavy fibres, clefts and spindle nuclei along them."""
    bend = (_noise(shape, random, size=180 / spacing) - 0.5) * 90 / spacing
    bend += (_noise(shape, random, size=50 / spacing) - 0.5) * 22 / spacing
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    thin, long = max(1.0, 2.4 / spacing), 70 / spacing
    tall = (shape[0] + math.ceil(220 / spacing), shape[1])
    coarse = random.random((math.ceil(tall[0] / thin) + 3, math.ceil(tall[1] / long) + 3), np.float32)
    across, along = (y + bend + 100 / spacing) / thin, x / long
    fibre = cv2.remap(coarse, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    bundle = cv2.remap(coarse, along * 0.7 + 1, across * 0.22 + 1, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    fine = cv2.remap(coarse, along * 2.3 + 2, across * 2.6, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    pink = 0.08 + 0.4 * fibre + 0.3 * bundle + 0.34 * fine
    pink[bundle < 0.2] *= 0.12
    blue = 0.05 + 0.05 * fibre
    slope = cv2.Sobel(bend, cv2.CV_32F, 1, 0, ksize=3) / 8
    for cy, cx in _scatter(shape, random, distance=26 / spacing):
        if random.random() < 0.55:
            angle = -math.degrees(math.atan(float(slope[cy, cx])))
            axes = (random.uniform(4, 8) / spacing, random.uniform(0.9, 1.6) / spacing)
            _paint_nucleus(blue, (cy, cx), axes, angle=angle, amount=float(random.uniform(0.8, 1.15)))
    return blue, pink


def _paint_fat(shape: tuple[int, int], random: np.random.Generator, *, spacing: float) -> NDArray[np.float32]:
    """Return the thin walls between fat cells, 0..1: the borders of a Voronoi diagram."""
    seeds = np.full(shape, 255, np.uint8)
    points = _scatter(shape, random, distance=52 / spacing)
    seeds[points[:, 0], points[:, 1]] = 0
    _, owner = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    wall = np.zeros(shape, np.uint8)
    wall[1:] |= owner[1:] != owner[:-1]
    wall[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    distance = cv2.distanceTransform(1 - wall, cv2.DIST_L2, 5) if wall.any() else np.full(shape, 99, np.float32)
    return np.asarray(np.exp(-((distance * spacing / 1.6) ** 2)), np.float32)


def _paint_glands(
    layers: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    labels: NDArray[np.uint8],
    random: np.random.Generator,
    *,
    spacing: float,
) -> None:
    """Paint glands over stroma: a lumen, a ring of cytoplasm, and nuclei at its base pointing to the lumen."""
    blue, pink, marker = layers
    shape = (labels.shape[0], labels.shape[1])
    for cy, cx in _scatter(shape, random, distance=150 / spacing):
        if labels[cy, cx] != STROMA or random.random() < 0.1:
            continue
        radius = float(random.uniform(42, 74)) / spacing
        turns = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        stretch, tilt = random.uniform(0.72, 1.0), random.uniform(0, np.pi)
        wave = 1 + sum(random.uniform(0, 0.07) * np.cos(k * turns + random.uniform(0, 6)) for k in (2, 3, 4, 5))
        local = np.stack([np.cos(turns), stretch * np.sin(turns)]) * wave
        turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
        ring = (turn @ local).T  # (x, y) on the basement membrane, unit radius
        inner = 1 - float(random.uniform(20, 27)) / spacing / radius
        reach = math.ceil(radius * 1.4) + 2
        top, left = max(0, cy - reach), max(0, cx - reach)
        window = np.s_[top : min(shape[0], cy + reach), left : min(shape[1], cx + reach)]
        here = labels[window]
        body, hole = np.zeros(here.shape, np.uint8), np.zeros(here.shape, np.uint8)
        for target, factor in ((body, 1.0), (hole, inner)):
            outline = np.rint((ring * radius * factor + (cx - left, cy - top)) * 16).astype(np.int32)
            cv2.fillPoly(target, [outline], 1, cv2.LINE_8, 4)
        if (here[cv2.dilate(body, np.ones((5, 5), np.uint8)) == 1] != STROMA).any():
            continue
        cells, lumen = (body == 1) & (hole == 0), hole == 1
        blue[window][body == 1] = 0
        depth = cv2.distanceTransform(body, cv2.DIST_L2, 5) * spacing
        pink[window][cells] = 0.42 + 0.1 * np.sin(depth[cells] / 3)
        blue[window][cells] += 0.2
        pink[window][lumen] = 0.015
        here[cells], here[lumen] = EPITHELIUM, BACKGROUND
        positive = random.random() < 0.6
        edge = (np.abs(depth - 2.0) < 1.6) | (np.abs(depth - depth[cells].max()) < 1.5)
        marker[window][cells] = 0.3 if positive else 0.03
        marker[window][cells & edge] = 1.1 if positive else 0.05
        nuclei = np.zeros_like(blue[window])
        arc = np.linalg.norm(np.roll(ring, -1, 0) - ring, axis=1).sum() * radius * spacing
        count = max(6, int(arc / 6.2))
        for number in range(count):
            place = (number + random.uniform(-0.25, 0.25)) / count * len(turns)
            low = int(place) % len(turns)
            outward = ring[low] + (ring[(low + 1) % len(turns)] - ring[low]) * (place % 1)
            base = 1 - float(random.uniform(6.5, 11.0)) / spacing / radius
            x, y = outward * radius * base + (cx - left, cy - top)
            angle = math.degrees(math.atan2(outward[1], outward[0]))
            axes = (random.uniform(4.2, 5.8) / spacing, random.uniform(2.3, 3.0) / spacing)
            _paint_nucleus(nuclei, (y, x), axes, angle=angle, amount=float(random.uniform(0.9, 1.3)))
        blue[window][cells] = np.maximum(blue[window], nuclei)[cells]
