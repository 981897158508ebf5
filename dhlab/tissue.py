"""Where the tissue is: a mask from a low level, by the colour of the glass rather than by a split of the histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2 as opencv
import numpy as np

from dhlab.errors import BadShapeError, BadValueError
from dhlab.scan import Scan
from dhlab.timeline import stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["find_tissue", "tissue_mask"]

cv2: Any = opencv  # its stubs forget the dtype of what they return
WORK_PX = 1024  # longest side on which colour is judged
COARSE_PX = 512  # longest side for ink and for connected parts
GLASS_PX = 256  # longest side for the search of the glass
BAND_PX = 1 << 24  # pixels read at once where no level is coarse enough


def find_tissue(
    scan: Scan,
    *,
    spacing: float | None = None,
    min_area: float | None = None,
    max_hole: float | None = None,
    sensitivity: float = 1.0,
    background: str = "auto",
    ink: bool = False,
) -> Scan:
    """Find the tissue on a slide, a field of view or in a volume.

    Bright field: tissue is what is more coloured, or much darker, than the glass, whose white is measured on the slide
    (also where the light is uneven); a slide without any glass in view is all tissue. Pen ink, black rims and frames
    do not count. Fluorescence: tissue is what rises above the noise of the dark background. Volumes: Otsu's
    threshold on intensity.

    Parameters
    ----------
    scan
        Slide, image or volume with axes ``y`` and ``x``.
    spacing
        Pixel size at which to look, in the scan's unit; the mask's pixels are at most so large, and more than half of
        it. None: 4 µm, or what makes the longest side 2048 pixels if that is coarser (volumes: level 0).
    min_area
        Smaller pieces of tissue are left out, in the scan's unit squared. None: 0.01 mm² (without a physical
        size 1/5000 of the picture).
    max_hole
        Smaller holes are filled, in the scan's unit squared. None: as `min_area`.
    sensitivity
        Above 1 finds paler tissue, below 1 only what is clearly stained; thresholds are divided by it.
    background
        ``"bright"`` (glass), ``"dark"`` (fluorescence) or ``"auto"``.
    ink
        Count pen ink as tissue. Set it for special stains in pure blue or green (Alcian blue, light green).

    Returns
    -------
    Scan
        Mask, ``(y, x)`` (volumes ``(z, y, x)``) uint8 of 0 and 1, kind ``"mask"``; all 0 if there is no tissue.

    Raises
    ------
    BadShapeError
        If the scan has no axes ``y`` and ``x``.
    BadValueError
        If a parameter is out of range.
    """
    _check(sensitivity, background)
    for name, value in (("spacing", spacing), ("min_area", min_area), ("max_hole", max_hole)):
        if value is not None and not (math.isfinite(value) and value >= 0 and (value > 0 or name != "spacing")):
            raise BadValueError(f"{name} {value}; expected a positive, finite number in {scan.unit}.")
    if "y" not in scan.axes or "x" not in scan.axes or "t" in scan.axes:
        raise BadShapeError(f"{scan.name!r} has axes {scan.axes!r}; expected y and x, as in 'yxc' or 'zyx'.")
    with stage("data", verb="find_tissue", scan=scan.name):
        plane = [scan.window_axes.index(a) for a in "yx"]
        if spacing is None:
            spacing = _default_spacing(scan, plane)
        level = scan.level_for([spacing if i in plane else s for i, s in enumerate(scan.spacing)])
        at_level = np.asarray(scan.spacing_of(level))
        halvings = max(0, math.floor(math.log2(spacing / max(at_level[i] for i in plane) * 1.01)))
        pixel = tuple(s * 2.0**halvings if i in plane else s for i, s in enumerate(at_level.tolist()))
        area = pixel[plane[0]] * pixel[plane[1]]
        default = {"µm": 1e4, "mm": 1e-2}.get(scan.unit)
        least = default if default is not None else scan.size[plane[0]] * scan.size[plane[1]] / 5000
        limits = [(least if value is None else value) / area for value in (min_area, max_hole)]
        if "z" in scan.axes:
            mask = _volume_mask(_read_volume(scan, level, halvings), sensitivity, *limits)
        else:
            mask = tissue_mask(
                _read_plane(scan, level, halvings),
                min_area=limits[0],
                max_hole=limits[1],
                sensitivity=sensitivity,
                background=background,
                ink=ink,
            )
        return Scan(
            levels=(mask,),
            axes=scan.window_axes,
            spacing=pixel,
            unit=scan.unit,
            scales=((1.0,) * mask.ndim,),
            origin=scan.origin,
            name=f"{scan.name} tissue",
            kind="mask",
            parent=scan.as_parent(),
            meta={"reader": "memory", "level": level, "sensitivity": sensitivity, "share": float(mask.mean())},
        )


def tissue_mask(
    image: NDArray[Any],
    *,
    min_area: float = 256,
    max_hole: float = 256,
    sensitivity: float = 1.0,
    background: str = "auto",
    ink: bool = False,
) -> NDArray[np.uint8]:
    """Find tissue in one picture; `find_tissue` on an array.

    Parameters
    ----------
    image
        ``(height, width, 3 or 4)`` uint8 RGB (pixels of alpha 0 are glass); ``(height, width)`` or
        ``(height, width, channels)`` of any other kind is fluorescence, unless a grey uint8 picture is mostly bright.
    min_area
        Smaller pieces are left out, in pixels.
    max_hole
        Smaller holes are filled, in pixels.
    sensitivity
        As in `find_tissue`.
    background
        As in `find_tissue`.
    ink
        As in `find_tissue`.

    Returns
    -------
    ndarray
        ``(height, width)`` uint8 of 0 and 1.

    Raises
    ------
    BadShapeError
        If the picture has no such shape.
    BadValueError
        If a parameter is out of range.
    """
    _check(sensitivity, background)
    image = np.asarray(image)
    if image.ndim not in (2, 3) or min(image.shape) < 1 or (image.ndim == 3 and image.shape[2] > 512):
        raise BadShapeError(f"image has shape {image.shape}; expected (height, width) or (height, width, channels).")
    grey = image.ndim == 2 or image.shape[2] == 1
    if grey:
        image = image.reshape(image.shape[:2])
    colour = image.dtype == np.uint8 and (grey or image.shape[2] in (3, 4))
    work = image
    halvings = 0
    while max(work.shape[:2]) > WORK_PX:
        work, halvings = _halve_any(work), halvings + 1
    if colour:
        work = np.repeat(work[..., None], 3, axis=2) if grey else _flatten_alpha(work)
        coarse = work
        while max(coarse.shape[:2]) > COARSE_PX:
            coarse = _halve(coarse)
        glass = _find_glass(coarse)
        bright = background == "bright" or (background == "auto" and _is_bright(work, glass))
    else:
        bright = False
    mask = _bright_mask(work, coarse, glass, sensitivity, ink) if bright else _dark_mask(work, sensitivity)
    scale = 4**halvings
    mask = _drop_small(mask, min_area / scale, max_hole / scale)
    return np.ascontiguousarray(_enlarge(mask, image.shape))


@dataclass(frozen=True)
class _Glass:
    """White of the glass, ``(6, 3)`` coefficients over x and y in -1 … 1, its share, noise in chroma and shades."""

    surface: NDArray[np.float32]
    share: float
    noise: float
    shade: float

    @property
    def white(self) -> NDArray[np.float32]:
        """White in the middle of the picture, ``(3,)``."""
        return np.asarray(self.surface[0], np.float32)


def _terms(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _find_glass(image: NDArray[np.uint8]) -> _Glass:
    """Measure the white of the glass: bright, smooth, hardly coloured and never pink."""
    small = image
    while max(small.shape[:2]) > GLASS_PX:
        small = _halve(small)
    red, green, blue = cv2.split(small)
    high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    box = np.ones((3, 3), np.uint8)
    rough = cv2.subtract(cv2.dilate(green, box), cv2.erode(green, box))
    pink = cv2.subtract(cv2.min(red, blue), green)
    found = (high >= 160) & (cv2.subtract(high, low) <= 36) & (pink <= 6) & (rough <= 12)
    pure = found & (low == 255)
    # Unscanned parts are often filled with pure white; the glass is what the scanner saw.
    if (found & ~pure).sum() > max(32, 0.01 * found.size):
        found &= ~pure
    if found.sum() < max(16, 0.002 * found.size):
        return _Glass(np.pad(np.full((1, 3), 245, np.float32), ((0, 5), (0, 0))), 0.0, 1.5, 0.0)
    y, x = np.nonzero(found)
    step = max(1, len(y) // 2048)
    y, x = y[::step], x[::step]
    colors = small[y, x].astype(np.float32)
    places = 2 * np.stack([y / max(1, small.shape[0] - 1), x / max(1, small.shape[1] - 1)]).astype(np.float32) - 1
    light = colors.mean(1)
    terms = _terms(places[1], places[0])
    keep = light >= np.quantile(light, 0.98) - 60
    terms, light, colors, places = terms[keep], light[keep], colors[keep], places[:, keep]
    # The glass is the upper envelope of what is found: residuals above count twenty times those below.
    weight = np.ones_like(light)
    for _ in range(4):
        residual = light - terms @ _solve(terms, light[:, None], weight)[:, 0]
        weight = np.where(residual > 0, 1, 0.05).astype(np.float32)
    keep = residual > -10
    for _ in range(2):
        residual = light - terms @ _solve(terms[keep], light[keep, None])[:, 0]
        spread = max(1.0, 1.5 * float(np.median(np.abs(residual[keep]))))
        keep = np.abs(residual) < 3 * spread
    if keep.sum() < 16:
        keep = light >= np.quantile(light, 0.5)
    surface = _solve(terms[keep], colors[keep])
    edge = np.linspace(-1, 1, 9, dtype=np.float32)
    field = _terms(*np.meshgrid(edge, edge)) @ surface
    inside = terms[keep] @ surface
    wide = all(np.ptp(places[axis][keep]) > 1 for axis in (0, 1)) and keep.mean() > 0.3
    flat = np.ptp(field.mean(-1)) < 8 or field.max() > inside.max() + 12 or field.min() < inside.min() - 25
    share = field / np.maximum(field.mean((0, 1)), 1)
    # Light that falls off keeps its colour; what changes in colour from place to place is stained.
    tinted = np.ptp(share - share.mean(-1, keepdims=True), axis=(0, 1)).max() > 0.018
    if flat or tinted or not wide:
        keep = light >= np.quantile(light, 0.98) - 8
        surface = np.pad(np.median(colors[keep], axis=0, keepdims=True), ((0, 5), (0, 0)))
    else:
        tint = np.median(colors[keep] / light[keep, None], axis=0)
        surface = _solve(terms[keep], light[keep, None]) * tint
    off = terms[keep] @ surface - colors[keep]
    chroma = np.median(off.max(1) - off.min(1))
    shade = np.median(np.abs(off.mean(1)))
    return _Glass(surface.astype(np.float32), float(found.mean()), float(chroma), float(np.clip(3 * shade - 3, 0, 40)))


def _solve(
    terms: NDArray[np.float32], values: NDArray[np.float32], weight: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Least squares with a little weight against curvature where the glass does not show it."""
    weighted = terms if weight is None else terms * weight[:, None]
    ridge = np.diag([0, 1e-3, 1e-3, 1e-2, 1e-2, 1e-2]) * float(weighted[:, 0].sum())
    return np.asarray(np.linalg.solve(weighted.T @ terms + ridge, weighted.T @ values), np.float32)


def _is_bright(image: NDArray[np.uint8], glass: _Glass) -> bool:
    """Tell bright field from fluorescence: glass in view, or pixels that let light through in every channel."""
    if glass.share >= 0.01:
        return True
    sample = image[:: max(1, image.shape[0] // 128), :: max(1, image.shape[1] // 128)].reshape(-1, 3)
    high, low = sample.max(1), sample.min(1)
    lit = high > 40
    if lit.mean() < 0.01:
        return False
    absorbs_green = np.median(sample[:, 0].astype(np.int16) - sample[:, 1]) > 8
    if absorbs_green and np.quantile(high, 0.1) > 25 and np.median(high) > 40:
        return True
    return bool(np.quantile(high[lit], 0.75) > 140 and np.quantile(low[lit], 0.75) > 35)


def _bright_mask(
    image: NDArray[np.uint8], coarse: NDArray[np.uint8], glass: _Glass, sensitivity: float, ink: bool
) -> NDArray[np.uint8]:
    absorbed = _absorb(image, glass)
    red, green, blue = cv2.split(cv2.blur(absorbed, (3, 3)))
    high = cv2.max(cv2.max(red, green), blue)
    chroma = cv2.subtract(high, cv2.min(cv2.min(red, green), blue))
    # Stains colour what they darken; shadows and dust only darken, so colour counts twice.
    score = cv2.blur(cv2.addWeighted(chroma, 2, high, 1, -glass.shade), (3, 3))
    limit = max(18.0, 12 * glass.noise) / sensitivity
    mask = cv2.threshold(score, limit, 1, cv2.THRESH_BINARY)[1]
    foreign = _find_ink(coarse, glass, ink)
    if foreign is not None:
        mask = cv2.min(mask, 1 - _enlarge(foreign, mask.shape))
    return _majority(mask)


def _absorb(image: NDArray[np.uint8], glass: _Glass) -> NDArray[np.uint8]:
    """Return white minus image, not below 0, with the white of each place."""
    if not glass.surface[1:].any():
        missing = (255 - np.rint(glass.white)).clip(0, 255).tolist()
        even: NDArray[np.uint8] = cv2.bitwise_not(cv2.add(image, (*missing, 0.0)))
        return even
    side = np.linspace(-1, 1, 33, dtype=np.float32)
    y, x = np.meshgrid(side, side, indexing="ij")
    coarse = np.rint(np.clip(_terms(x, y) @ glass.surface, 0, 255)).astype(np.uint8)
    white = cv2.resize(coarse, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    uneven: NDArray[np.uint8] = cv2.subtract(white, image)
    return uneven


def _find_ink(coarse: NDArray[np.uint8], glass: _Glass, ink_is_tissue: bool) -> NDArray[np.uint8] | None:
    """Find pen ink and black frames on a coarse grid by the hue of what they absorb; None if there is none."""
    levels = np.arange(256, dtype=np.float32)[:, None]
    table = np.log10(np.maximum(glass.white, 1) / np.maximum(levels, 1)).clip(0).reshape(1, 256, 3)
    red, green, blue = cv2.split(cv2.LUT(coarse, table.astype(np.float32)))
    high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    black = high - low < 0.3 * high
    kinds = [(black & (low > 0.55), black & (high > 0.03))]
    if not ink_is_tissue:
        # Of the stains of H&E and of brown and red immunohistochemistry only haematoxylin stops red, and green as well.
        cold = (green < 0.66 * red) & ((blue < 0.4 * red) | (blue > green))
        cold |= (green < 0.9 * red) & (blue < 0.3 * red)
        # Blue ink over tissue: as blue as haematoxylin alone would be, and denser than nuclei are at this scale.
        cold |= (red > 0.55) & (green < 1.1 * red) & (blue < 0.46 * red)
        hot = (red < 0.35 * green) & (blue > 0.8 * green) & (blue < 1.3 * green)
        kinds += [(cold & (red > 0.22), cold & (red > 0.03)), (hot & (green > 0.4), hot & (green > 0.05))]
    total = np.zeros(coarse.shape[:2], np.uint8)
    least = max(12, total.size // 10000)
    for strong, weak in kinds:
        if np.count_nonzero(strong) < least:
            continue
        seeds = cv2.morphologyEx(strong.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
        seeds = _drop_small(cv2.morphologyEx(seeds, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)), least, 0)
        if seeds.any():
            # The rim of a stroke is a mixture of ink and glass of any hue; further out only what still looks like ink.
            near = cv2.dilate(seeds, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
            total |= near | (cv2.dilate(near, np.ones((5, 5), np.uint8)) & weak)
    return total if total.any() else None


def _dark_mask(image: NDArray[Any], sensitivity: float) -> NDArray[np.uint8]:
    """Find what rises above a dark background in any channel, in units of that channel's noise."""
    planes = np.nan_to_num(image.astype(np.float32)).reshape(*image.shape[:2], -1)
    best = np.zeros(image.shape[:2], np.float32)
    for index in range(planes.shape[2]):
        plane = cv2.blur(np.ascontiguousarray(planes[..., index]), (3, 3))
        sample = np.sort(plane[:: max(1, plane.shape[0] // 128), :: max(1, plane.shape[1] // 128)], axis=None)
        span = max(1, len(sample) // 4)
        narrow = int(np.argmin(sample[span:] - sample[:-span])) if len(sample) > span else 0
        floor = float(sample[narrow : narrow + span].mean())
        below = sample[sample <= floor]
        top = float(sample[-1 - len(sample) // 1000])
        quantum = 1.0 if np.issubdtype(image.dtype, np.integer) else 0.0
        noise = max(float(np.sqrt(np.mean((below - floor) ** 2))), 0.3 * quantum, 0.004 * (top - floor), 1e-12)
        if top - floor > 8 * noise:
            cv2.max(best, (plane - floor) / noise, dst=best)
    if best.max() <= 0:
        return best.astype(np.uint8)
    scaled = np.log1p(best.clip(0))
    eight = cv2.convertScaleAbs(scaled, alpha=255 / float(scaled.max()))
    split = math.expm1(cv2.threshold(eight, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0] * float(scaled.max()) / 255)
    # Otsu alone would split noise, or nuclei from cytoplasm; the noise bounds it on both sides.
    return _majority((best > min(max(split, 6), 25) / sensitivity).astype(np.uint8))


def _volume_mask(volume: NDArray[Any], sensitivity: float, min_area: float, max_hole: float) -> NDArray[np.uint8]:
    data = np.nan_to_num(volume.astype(np.float32))
    low, high = (float(v) for v in np.quantile(data, (0.001, 0.999)))
    if high <= low:
        return np.zeros(data.shape, np.uint8)
    eight = ((data - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    split, _ = cv2.threshold(eight.reshape(eight.shape[0], -1), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = np.asarray(eight > split / sensitivity, np.uint8)
    for plane in mask.reshape(-1, *mask.shape[-2:]):
        plane[...] = _drop_small(plane, min_area, max_hole)
    return mask


def _majority(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take the majority of 5 × 5 neighbours: the median of a binary picture, by a box filter."""
    smooth: NDArray[np.uint8] = cv2.threshold(cv2.blur(mask * 250, (5, 5)), 124, 1, cv2.THRESH_BINARY)[1]
    return smooth


def _drop_small(mask: NDArray[np.uint8], min_area: float, max_hole: float) -> NDArray[np.uint8]:
    """Fill holes below `max_hole` pixels and drop parts below `min_area` pixels, judged on a coarse grid."""
    coarse, halvings = mask, 0
    while max(coarse.shape) > COARSE_PX:
        coarse, halvings = cv2.threshold(_halve(coarse * 200), 99, 1, cv2.THRESH_BINARY)[1], halvings + 1
    holes = _small_parts(1 - coarse, max_hole / 4**halvings, inside=True)
    if holes is not None:
        coarse = coarse | holes
    specks = _small_parts(coarse, min_area / 4**halvings)
    if specks is not None:
        coarse = coarse & (1 - specks)
    if not halvings:
        return coarse
    box = np.ones((3, 3), np.uint8)
    # What is thinner than a coarse pixel belongs to what it touches, if that stays: bit 1 is "may be", bit 0 "is".
    code: NDArray[np.uint8] = cv2.dilate(coarse, box) << np.uint8(1)
    if holes is not None:
        code = code | (cv2.dilate(holes, box) & coarse)
    code = _enlarge(code, mask.shape)
    return (mask | code) & (code >> np.uint8(1))


def _small_parts(mask: NDArray[np.uint8], limit: float, *, inside: bool = False) -> NDArray[np.uint8] | None:
    if limit <= 1 or not mask.any():
        return None
    # Counting labels afterwards is quicker than the statistics that OpenCV would gather.
    count, labels = cv2.connectedComponents(mask, connectivity=4 if inside else 8)
    small = np.bincount(labels.ravel(), minlength=count) < limit
    small[0] = False
    if inside:
        small[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    return small.astype(np.uint8).take(labels, mode="clip") if small.any() else None


def _enlarge(mask: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Double a mask until it covers `shape`, and cut it there."""
    while mask.shape[0] < shape[0] or mask.shape[1] < shape[1]:
        # Two equal bytes at once: a third of the time of a nearest-neighbour resize.
        mask = np.repeat((mask.astype(np.uint16) * 257).view(np.uint8), 2, axis=0)
    return mask[: shape[0], : shape[1]]


def _halve(image: NDArray[Any]) -> NDArray[Any]:
    """Halve a picture by the mean of 2 × 2; odd edges repeat."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    size = ((width + 1) // 2, (height + 1) // 2)
    half: NDArray[Any] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return half


def _flatten_alpha(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.shape[2] == 3:
        return np.ascontiguousarray(image)
    flat = np.ascontiguousarray(image[..., :3])
    flat[image[..., 3] == 0] = 255
    return flat


def _default_spacing(scan: Scan, plane: list[int]) -> float:
    if "z" in scan.axes:
        return max(scan.spacing[i] for i in plane)
    longest = max(scan.size[i] for i in plane) / 2048
    return max(longest, {"µm": 4.0, "mm": 0.004}.get(scan.unit, 1.0), *(scan.spacing[i] for i in plane))


def _read_plane(scan: Scan, level: int, halvings: int) -> NDArray[Any]:
    """Read a level in bands and halve each, so that memory stays flat where no level is coarse enough."""
    height, width = scan.shape_of(level)
    block = 2**halvings
    rows = height if not halvings else max(block, BAND_PX // max(1, width) // block * block)
    bands = []
    for top in range(0, height, rows):
        size = (min(rows, height - top), width)
        band = scan.read((round(top * scan.scales[level][0]), 0), size, level)
        if scan.axes.startswith("c"):
            band = np.moveaxis(band, 0, -1)
        elif scan.axes == "ycx":
            band = np.moveaxis(band, 1, -1)
        band = np.ascontiguousarray(band if band.dtype != np.bool_ else band.astype(np.uint8))
        for _ in range(halvings):
            band = _halve_any(band)
        bands.append(band)
    return bands[0] if len(bands) == 1 else np.concatenate(bands)


def _read_volume(scan: Scan, level: int, halvings: int) -> NDArray[Any]:
    data = np.asarray(scan.levels[level][...])
    if "c" in scan.axes:
        data = data.astype(np.float32).max(axis=scan.axes.index("c"))
    for _ in range(halvings):
        data = np.stack([_halve_any(np.ascontiguousarray(plane)) for plane in data])
    return data


def _halve_any(image: NDArray[Any]) -> NDArray[Any]:
    """Halve pixels of any dtype and number of channels; OpenCV knows a few of either."""
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        image = image.astype(np.float32)
    if image.ndim == 3 and image.shape[2] > 4:
        return np.stack([_halve(np.ascontiguousarray(image[..., i])) for i in range(image.shape[2])], axis=-1)
    half = _halve(image)
    return half.reshape(*half.shape[:2], *image.shape[2:])


def _check(sensitivity: float, background: str) -> None:
    if not (math.isfinite(sensitivity) and 0 < sensitivity <= 100):
        raise BadValueError(f"sensitivity {sensitivity}; expected a positive number, 1 is usual.")
    if background not in ("auto", "bright", "dark"):
        raise BadValueError(f"background {background!r}; expected 'bright', 'dark' or 'auto'.")
