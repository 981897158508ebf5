"""TIFF in all the forms that slides take: SVS, tiled pyramids, OME-TIFF, stacks and plain pictures."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from dhlab.errors import BadFileError, BadValueError, DHLabError
from dhlab.io.icc import apply_profile, check_profile, state_of
from dhlab.io.ifd import Directory, DirectoryReader
from dhlab.io.jpeg import FACTORS, JpegDecoder, tile_header
from dhlab.io.ometiff import write
from dhlab.io.pool import Stamp
from dhlab.io.segments import RawDecoder, SegmentDecoder
from dhlab.io.spacing import Spacing, resolve_spacing
from dhlab.io.tilelevel import Layout, Plane, TileLevel
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dhlab.io.tilelevel import Decoder

__all__ = ["TiffSource", "read", "write"]

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, X_RESOLUTION, Y_RESOLUTION = 273, 277, 278, 279, 282, 283
PLANAR, RESOLUTION_UNIT, SOFTWARE, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT = 284, 296, 305, 320, 322, 323
TILE_OFFSETS, TILE_COUNTS, SUBDIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 324, 325, 330, 338, 339, 347
FILL_ORDER, XMP, TILE_DEPTH, ICC_PROFILE = 266, 700, 32998, 34675

JPEG, APERIO_JPEG2000 = 7, (33003, 33005)
WHITE_IS_ZERO, RGB, PALETTE, YCBCR = 0, 2, 3, 6
# Resolutions that programs write when they know none, in dots per inch.
PLACEHOLDER_DPI = (1, 72, 75, 96, 100, 120, 150, 200, 240, 300, 400, 600, 1200)
TO_MICROMETRES = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6,
    "inch": 25400.0,
}  # fmt: skip
# Plain values in one strip are read in pieces of about this size.
STRIP_BYTES = 1 << 18
MOST_TILE_BYTES = 1 << 31
# A further level is worth reading in scaled form until it fits this many pixels.
OVERVIEW = 1024


class ForeignTiff(Exception):  # noqa: N818 - it is no error
    """A TIFF whose vendor's ways OpenSlide knows and this reader does not; says which."""


@dataclass(frozen=True)
class Contents:
    """What the directories of one image in a TIFF file say."""

    layouts: tuple[Layout, ...]
    axes: str
    scales: tuple[float, ...]
    native: tuple[int, ...]
    vendor: str
    photometric: int
    profile: bytes = field(default=b"", repr=False)
    channels: tuple[str, ...] = ()
    vendor_spacing: tuple[float, float] | None = None
    tag_spacing: tuple[float, float] | None = None
    magnification: float | None = None
    depth_spacing: float = 1.0


class TiffSource:
    """An open TIFF file; pickles by path, opens when first read, and refuses a file that has changed.

    Parameters
    ----------
    path
        The file.
    series
        Which image of it.
    icc
        Convert to sRGB with the embedded profile.
    """

    def __init__(self, path: Path, *, series: int, icc: bool) -> None:
        self.path = path
        self.series = series
        self.icc = icc
        self.stamp = Stamp.of(path)
        self._lock = threading.Lock()
        self._open: tuple[DirectoryReader, Contents] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "series": self.series, "icc": self.icc, "stamp": self.stamp}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock(), "_open": None}

    @property
    def name(self) -> str:
        """Name of the file, for messages."""
        return str(self.path)

    @property
    def contents(self) -> Contents:
        """What the file says; opens it if it is not open."""
        return self._opened()[1]

    def layout(self, level: int) -> Layout:
        """Return how a level is stored."""
        return self._opened()[1].layouts[level]

    def fetch(self, offset: int, count: int) -> bytes:
        """Return stored bytes."""
        return self._opened()[0].read(offset, count)

    @property
    def converts(self) -> bool:
        """Whether there is a colour profile and it was asked to be applied."""
        return self.icc and bool(self.contents.profile)

    def finish(self, pixels: NDArray[Any]) -> None:
        """Apply the colour profile in place, if that was asked for and there is one."""
        if self.converts:
            apply_profile(pixels, self.contents.profile)

    def _opened(self) -> tuple[DirectoryReader, Contents]:
        if self._open is not None:
            return self._open
        with self._lock:
            if self._open is None:
                self.stamp.check(self.path)
                try:
                    descriptor = os.open(self.path, os.O_RDONLY)
                except OSError as error:
                    raise BadFileError(f"cannot open {self.path}: {error.strerror}. Check its permissions.") from error
                try:
                    reader = DirectoryReader(self.path, descriptor)
                    contents = _parse(reader, self.series)
                except OSError as error:
                    os.close(descriptor)
                    raise BadFileError(f"cannot read {self.path}: {error.strerror}. Check what it is.") from error
                except BaseException:
                    os.close(descriptor)
                    raise
                weakref.finalize(self, os.close, descriptor)
                self._open = reader, contents
        return self._open


def read(path: Path, *, spacing: float | Sequence[float] | None, icc: bool, series: int) -> Scan:
    """Open a TIFF file as a scan without reading its pixels.

    Parameters
    ----------
    path
        SVS, tiled or striped TIFF, BigTIFF, OME-TIFF. What OpenSlide knows better (Philips, Trestle, Ventana, JPEG 2000
        of Aperio) goes there.
    spacing
        Overrides the pixel size, µm.
    icc
        Convert to sRGB while reading.
    series
        Which image of the file. Label and macro images are not among them: see
        `dhlab.io.openslide.associated_images`.

    Returns
    -------
    Scan
        Slides as ``yxc`` uint8; channels stored apart as ``cyx``; stacks with ``z`` and ``t`` in front.

    Raises
    ------
    BadFileError
        If the file is damaged, truncated, not a TIFF, or of a kind that neither this reader nor OpenSlide reads.
    BadValueError
        If there is no such series, or the spacing is not positive and finite.
    """
    if spacing is not None:
        resolve_spacing(override=spacing)
    source = TiffSource(path, series=series, icc=icc)
    try:
        found = source.contents
    except ForeignTiff as reason:
        from dhlab.io import openslide

        try:
            return openslide.read(path, spacing=spacing, icc=icc, series=series)
        except BadFileError as error:
            raise BadFileError(f"{path}: {reason}; OpenSlide cannot read it either: {error}") from error
    if icc and found.profile:
        check_profile(found.profile)
    pixel = resolve_spacing(
        override=spacing,
        vendor=found.vendor_spacing,
        tags=found.tag_spacing,
        magnification=found.magnification,
    )
    if pixel.unit == "px" and found.vendor == "ome" and found.vendor_spacing is not None:
        # OME-XML names its unit, so a size that no microscope has is a volume's and counts as it stands.
        pixel = Spacing((found.vendor_spacing[0] / 1000, found.vendor_spacing[1] / 1000), "mm", "vendor metadata")
        found = replace(found, depth_spacing=found.depth_spacing / 1000)
    fill = 0
    if found.axes == "yxc" and found.photometric in (RGB, YCBCR, PALETTE) and found.layouts[0].dtype.kind == "u":
        fill = int(np.iinfo(found.layouts[0].dtype).max)
    along = {"y": pixel.value[0], "x": pixel.value[1], "z": found.depth_spacing}
    window_axes = found.axes.replace("c", "")
    return Scan(
        levels=tuple(TileLevel(source, i, axes=found.axes, fill=fill) for i in range(len(found.layouts))),
        axes=found.axes,
        spacing=tuple(along.get(a, 1.0) for a in window_axes),
        unit=pixel.unit,
        scales=tuple(tuple(scale if a in "yx" else 1.0 for a in window_axes) for scale in found.scales),
        channels=found.channels,
        name=path.name,
        fill=fill,
        meta={
            "reader": "dhlab.io.tiff",
            "reader_version": _version(found),
            "path": str(path),
            "vendor": found.vendor,
            "objective": found.magnification,
            "spacing_source": pixel.source,
            "levels_native": list(found.native),
            "icc": state_of(found.profile, applied=icc),
            "bounds": None,
        },
    )


def _version(found: Contents) -> str:
    if isinstance(found.layouts[0].decoders[0], JpegDecoder):
        return f"simplejpeg {simplejpeg.__version__}"
    import tifffile

    return f"tifffile {tifffile.__version__}"


def _parse(reader: DirectoryReader, series: int) -> Contents:
    pages = reader.pages()
    description = pages[0].text(DESCRIPTION)
    foreign = _foreign_vendor(pages[0])
    if foreign:
        raise ForeignTiff(f"a TIFF of {foreign}")
    if description.startswith("Aperio"):
        return _aperio(pages, description, series)
    if "<OME" in description[:4096] or description.startswith("ImageJ="):
        return _known_series(reader, series, description)
    return _plain(reader, pages, series)


def _foreign_vendor(page: Directory) -> str:
    software = page.text(SOFTWARE)
    for start, vendor in (("Philips", "Philips"), ("MedScan", "Trestle")):
        if software.startswith(start):
            return vendor
    return "Ventana" if XMP in page and b"<iScan" in page.data(XMP) else ""


def _aperio(pages: list[Directory], description: str, series: int) -> Contents:
    _check_series(series, 1, pages[0].reader.path)
    levels = [page for page in pages if TILE_OFFSETS in page]
    if not levels:
        raise BadFileError(f"{pages[0].reader.path}: an Aperio file without a tiled image. Copy it again.")
    if any(page.number(COMPRESSION) in APERIO_JPEG2000 for page in levels):
        raise ForeignTiff("an Aperio slide in JPEG 2000")
    levels.sort(key=lambda page: -page.number(WIDTH))
    pairs = (part.split("=", 1) for part in description.split("|") if "=" in part)
    properties = {key.strip(): value.strip() for key, value in pairs}
    spacing = _float(properties.get("MPP"))
    return replace(
        _pyramid(levels),
        vendor="aperio",
        vendor_spacing=(spacing, spacing) if spacing else None,
        magnification=_float(properties.get("AppMag")),
    )


def _plain(reader: DirectoryReader, pages: list[Directory], series: int) -> Contents:
    """Sort the pages of a TIFF that says nothing about itself into images and their reduced forms."""
    images: list[list[Directory]] = []
    for page in pages:
        kind = page.number(SUBFILE)
        if kind & 4:
            continue
        if images and _is_reduced(page, images[0], flagged=bool(kind & 1)):
            images[0].append(page)
        elif not kind & 1 or not images:
            images.append([page, *_subdirectories(reader, page)])
    firsts = [image[0] for image in images]
    if len(firsts) > 1 and len({_form(page) for page in firsts}) == 1:
        return _known_series(reader, series, "")
    _check_series(series, len(images), reader.path)
    found = _pyramid(images[series])
    software = images[series][0].text(SOFTWARE)
    return replace(found, vendor="dhlab" if software.startswith("dhlab") else "generic")


def _is_reduced(page: Directory, image: list[Directory], *, flagged: bool) -> bool:
    """Tell whether a page is a coarser form of an image: smaller than its last level, of the same proportions."""
    full, last = image[0], image[-1]
    if page.number(WIDTH) >= last.number(WIDTH) or page.number(HEIGHT) >= last.number(HEIGHT):
        return False
    if not flagged and ((TILE_OFFSETS in page) != (TILE_OFFSETS in full) or _form(page)[2:] != _form(full)[2:]):
        return False
    if not flagged and TILE_OFFSETS not in page:
        return False
    ratio = full.number(WIDTH) / page.number(WIDTH)
    return abs(full.number(HEIGHT) / ratio - page.number(HEIGHT)) <= 1.5


def _form(page: Directory) -> tuple[Any, ...]:
    return (
        page.number(WIDTH),
        page.number(HEIGHT),
        page.number(SAMPLES, 1),
        tuple(page.array(BITS).tolist()),
        page.number(SAMPLE_FORMAT, 1),
    )


def _subdirectories(reader: DirectoryReader, page: Directory) -> list[Directory]:
    found = [reader.directory(int(offset)) for offset in page.array(SUBDIRECTORIES)]
    return [d for d in found if d.number(WIDTH) < page.number(WIDTH)]


def _pyramid(levels: list[Directory]) -> Contents:
    """Return the contents of an image whose levels are one directory each."""
    layouts, axes = zip(*(_layout([level], (), "") for level in levels), strict=True)
    for number, layout in enumerate(layouts):
        if (layout.dtype, layout.channels, layout.outer) != (layouts[0].dtype, layouts[0].channels, layouts[0].outer):
            raise BadFileError(
                f"{levels[0].reader.path}: level {number} holds {layout.channels} × {layout.dtype}; expected "
                f"{layouts[0].channels} × {layouts[0].dtype} as in level 0. Write the file again with equal levels."
            )
    all_layouts, scales, native = _fill_gaps(list(layouts))
    first = levels[0]
    rgba = axes[0] == "yxc" and layouts[0].channels == 4 and first.number(PHOTOMETRIC) in (RGB, YCBCR)
    return Contents(
        layouts=tuple(all_layouts),
        axes=axes[0],
        scales=tuple(scales),
        native=tuple(native),
        vendor="generic",
        photometric=first.number(PHOTOMETRIC),
        profile=_profile(first, layouts[0]),
        channels=("red", "green", "blue", "alpha") if rgba else (),
        tag_spacing=_tag_spacing(first),
    )


def _fill_gaps(layouts: list[Layout]) -> tuple[list[Layout], list[float], list[int]]:
    """Add scaled forms of JPEG levels where the next stored level is more than twice as coarse, and at the end."""
    filled: list[Layout] = []
    scales: list[float] = []
    native: list[int] = []
    for number, layout in enumerate(layouts):
        scale = _scale(layouts[0].size, layout.size)
        native.append(len(filled))
        filled.append(layout)
        scales.append(scale)
        if not isinstance(layout.decoders[0], JpegDecoder) or any(n % 8 for n in layout.tile):
            continue
        following = _scale(layouts[0].size, layouts[number + 1].size) if number + 1 < len(layouts) else float("inf")
        for factor in FACTORS:
            height, width = (n // factor for n in layout.size)
            small = max(layout.size) * 2 / factor <= OVERVIEW
            if scale * factor > following / 1.5 or min(height, width) < 1 or (following == float("inf") and small):
                break
            filled.append(_scaled(layout, factor))
            scales.append(scale * factor)
    return filled, scales, native


def _scaled(layout: Layout, factor: int) -> Layout:
    decoders = tuple(d.scaled(factor) for d in layout.decoders if isinstance(d, JpegDecoder))
    return replace(
        layout,
        size=(layout.size[0] // factor, layout.size[1] // factor),
        tile=(layout.tile[0] // factor, layout.tile[1] // factor),
        decoders=decoders,
    )


def _scale(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Return by how much a level is coarser: the whole number that its rounded size hides, if there is one."""
    ratio = sum(a / b for a, b in zip(full, size, strict=True)) / 2
    whole = max(1, round(ratio))
    fits = all(n in (full_n // whole, -(-full_n // whole)) for full_n, n in zip(full, size, strict=True))
    return float(whole) if fits else ratio


def _layout(planes: Sequence[Directory | None], outer: tuple[int, ...], outer_axes: str) -> tuple[Layout, str]:
    """Return how one level is stored, and its axes; a plane that the file does not hold is None."""
    first = next(plane for plane in planes if plane is not None)
    size, samples = (first.number(HEIGHT), first.number(WIDTH)), first.number(SAMPLES, 1)
    rows = first.number(ROWS_PER_STRIP) or size[0]
    tile = (min(rows, size[0]), size[1])
    if TILE_OFFSETS in first:
        tile = first.number(TILE_HEIGHT), first.number(TILE_WIDTH)
    if min(*size, *tile, samples) < 1 or first.number(TILE_DEPTH, 1) > 1:
        raise BadFileError(
            f"{first.reader.path}: an image of {size} px in tiles of {tile} px; expected positive sizes and flat tiles."
        )
    apart = samples > 1 and first.number(PLANAR, 1) == 2
    decoders, dtype, channels = _decoders(planes, first, tile, 1 if apart else samples)
    count = -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    located = [_plane(plane, count, sample) for plane in planes for sample in range(samples if apart else 1)]
    if apart:
        outer, outer_axes = (*outer, samples), outer_axes + "c"
        decoders = tuple(d for d in decoders for _ in range(samples)) if len(decoders) > 1 else decoders
    if isinstance(decoders[0], RawDecoder) and count == 1 and TILE_OFFSETS not in first:
        # One long strip of plain values: cut it, so that a window reads what it needs.
        step = max(1, STRIP_BYTES // (size[1] * channels * dtype.itemsize))
        located = [_cut(plane, size, step, size[1] * channels * dtype.itemsize) for plane in located]
        tile = min(step, size[0]), size[1]
    if tile[0] * tile[1] * channels * dtype.itemsize > MOST_TILE_BYTES:
        raise BadFileError(
            f"{first.reader.path}: its pixels are stored in pieces of {tile[0]:,} × {tile[1]:,}, which must be decoded "
            "whole. The file is damaged, or wants converting: vips tiffsave in.tif out.tif --tile --pyramid."
        )
    trailing = channels > 1
    layout = Layout(outer, size, tile, channels, trailing, dtype, tuple(located), decoders)
    return layout, outer_axes + "yx" + ("c" if trailing else "")


def _decoders(
    planes: Sequence[Directory | None], first: Directory, tile: tuple[int, int], samples: int
) -> tuple[tuple[Decoder, ...], np.dtype[Any], int]:
    """Return what decodes the tiles (one for all planes or one per plane), the data type and channels of a pixel."""
    bits, compression, photometric = first.array(BITS), first.number(COMPRESSION, 1), first.number(PHOTOMETRIC, 1)
    even = not len(bits) or bool((bits == bits[0]).all())
    depth = int(bits[0]) if len(bits) else 1
    if photometric == YCBCR and compression != JPEG:
        raise ForeignTiff(f"YCbCr pixels in compression {compression}")
    if compression == JPEG and even and depth == 8 and (samples, photometric) in ((1, 1), (3, RGB), (3, YCBCR)):
        colour = "RGB" if samples == 3 else "GRAY"
        headers = [tile_header((p or first).data(JPEG_TABLES), rgb=photometric == RGB) for p in planes]
        same = len(set(headers)) == 1
        fast = tuple(JpegDecoder(h, colour=colour, tile=tile) for h in (headers[:1] if same else headers))
        return fast, np.dtype(np.uint8), samples
    kind = {1: "u", 2: "i", 3: "f"}.get(first.number(SAMPLE_FORMAT, 1))
    known = even and kind and depth in ((16, 32, 64) if kind == "f" else (8, 16, 32, 64))
    if compression == 1 and known and photometric not in (WHITE_IS_ZERO, PALETTE) and first.number(FILL_ORDER, 1) == 1:
        raw = RawDecoder(np.dtype(f"{first.reader.order}{kind}{depth // 8}"), width=tile[1], channels=samples)
        return (raw,), raw.dtype, samples
    segment = SegmentDecoder(first.reader.path, first.offset, first.data(JPEG_TABLES) or None)
    return (segment,), segment.dtype, segment.channels(samples)


def _plane(directory: Directory | None, count: int, sample: int) -> Plane:
    """Return where the `count` tiles of one sample plane lie; the end of the file is checked at once."""
    if directory is None:
        return Plane(lambda: (np.zeros(count, np.int64), np.zeros(count, np.int64)))
    offsets, counts = (TILE_OFFSETS, TILE_COUNTS) if TILE_OFFSETS in directory else (STRIP_OFFSETS, STRIP_COUNTS)
    end = directory.last(offsets) + directory.last(counts)
    if end > directory.reader.size and directory.last(counts):
        raise BadFileError(
            f"{directory.reader.path} is truncated: its last tile would end at byte {end:,}, the file ends at "
            f"{directory.reader.size:,}. Copy it again from its source."
        )
    part = slice(sample * count, (sample + 1) * count)
    return Plane(lambda: (directory.array(offsets)[part], directory.array(counts)[part]))


def _cut(plane: Plane, size: tuple[int, int], rows: int, row_bytes: int) -> Plane:
    def load() -> tuple[NDArray[Any], NDArray[Any]]:
        offsets, counts = plane.load()
        if not len(offsets) or not len(counts):
            return offsets, counts
        offset, length = int(offsets[0]), int(counts[0])
        firsts = np.arange(0, size[0], rows)
        if not length:
            return firsts * 0, firsts * 0
        return offset + firsts * row_bytes, np.minimum(rows, size[0] - firsts) * row_bytes

    return Plane(load)


def _known_series(reader: DirectoryReader, series: int, description: str) -> Contents:
    """Return the contents of an OME-TIFF, an ImageJ stack or pages of equal form, as tifffile sorts them."""
    import tifffile

    try:
        with tifffile.TiffFile(reader.path) as file:
            _check_series(series, len(file.series), reader.path)
            levels = [_series_level(reader, level, str(file.filehandle.path)) for level in file.series[series].levels]
            imagej = dict(file.imagej_metadata or {})
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        if isinstance(error, DHLabError):
            raise
        raise BadFileError(f"{reader.path}: its pages cannot be sorted into images: {error}. Copy it again.") from error
    directories = [directory for directory, _, _ in levels]
    layouts, scales, native = _fill_gaps([layout for _, layout, _ in levels])
    first = directories[0]
    found = Contents(
        layouts=tuple(layouts),
        axes=levels[0][2],
        scales=tuple(scales),
        native=tuple(native),
        vendor="generic",
        photometric=first.number(PHOTOMETRIC),
        profile=_profile(first, layouts[0]),
        tag_spacing=_tag_spacing(first),
    )
    if "<OME" in description:
        return _add_ome(found, description, series, reader.path)
    if imagej:
        unit = TO_MICROMETRES.get(str(imagej.get("unit", "")).replace("\\u00B5", "µ"), 0.0)
        x, y = first.ratio(X_RESOLUTION), first.ratio(Y_RESOLUTION)
        pair = (unit / y, unit / x) if unit and x and y else None
        depth = (_float(imagej.get("spacing")) or 0.0) * unit or 1.0
        return replace(found, vendor="imagej", vendor_spacing=pair, tag_spacing=None, depth_spacing=depth)
    return found


def _series_level(reader: DirectoryReader, level: Any, path: str) -> tuple[Directory, Layout, str]:
    """Return first directory, layout and axes of one level of a tifffile series."""
    axes = level.axes
    pages = list(level.pages)
    present = next((page for page in pages if page is not None), None)
    if present is None:
        raise BadFileError(f"{reader.path}: the image holds no pages. Copy it again from its source.")
    for page in pages:
        if page is not None and str(page.parent.filehandle.path) != path:
            raise BadFileError(
                f"{reader.path} is one of several files of an OME-TIFF set; expected a single file. Convert the set "
                "to one OME-TIFF or OME-Zarr."
            )
    directory = reader.directory(present.offset)
    outer_axes, outer = "", []
    for letter, length in zip(axes, level.shape, strict=True):
        if letter in "YXS" or length == 1:
            continue
        axis = letter.lower() if letter in "TCZ" else "z"
        if axis in outer_axes or (axis == "c" and directory.number(SAMPLES, 1) > 1):
            raise BadFileError(
                f"{reader.path}: axes {axes} of shape {tuple(level.shape)} do not fit t, c, z, y, x. Save the image "
                "with one kind of channel and one stack axis."
            )
        outer_axes += axis
        outer.append(length)
    count = int(np.prod(outer)) if outer else 1
    planes: list[Directory | None] = [None if page is None else reader.directory(page.offset) for page in pages]
    if len(planes) == count:
        layout, own_axes = _layout(planes, tuple(outer), outer_axes)
        return directory, layout, own_axes
    if len(planes) == 1 and level.dataoffset is not None:
        return directory, *_contiguous(directory, int(level.dataoffset), tuple(outer), outer_axes)
    raise BadFileError(
        f"{reader.path}: {len(planes)} pages for an image of {axes} {tuple(level.shape)}. Copy it again."
    )


def _contiguous(directory: Directory, start: int, outer: tuple[int, ...], outer_axes: str) -> tuple[Layout, str]:
    """Return the layout of a stack whose planes follow each other behind a single directory (ImageJ)."""
    layout, axes = _layout([directory], (), "")
    if len(layout.planes) > 1:
        raise BadFileError(f"{directory.reader.path}: a stack with channels apart in every plane is not read.")
    row = layout.size[1] * layout.channels * layout.dtype.itemsize
    step = max(1, STRIP_BYTES // row)

    def plane(number: int) -> Plane:
        offset, length = start + number * row * layout.size[0], row * layout.size[0]
        return _cut(Plane(lambda: (np.array([offset]), np.array([length]))), layout.size, step, row)

    count = int(np.prod(outer))
    tile = min(step, layout.size[0]), layout.size[1]
    stack = replace(layout, outer=outer, tile=tile, planes=tuple(plane(i) for i in range(count)))
    return stack, outer_axes + axes


def _add_ome(found: Contents, description: str, series: int, path: Path) -> Contents:
    """Add pixel sizes, channel names and magnification from OME-XML; nothing else of it is kept."""
    # Expat limits entity expansion, and the text lies in a file that the user chose to open.
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(description)  # noqa: S314 - see above
    except ElementTree.ParseError as error:
        raise BadFileError(f"{path}: its OME-XML cannot be parsed ({error}). Copy it again from its source.") from error
    images = [element for element in root if element.tag.endswith("}Image") or element.tag == "Image"]
    if series >= len(images):
        return replace(found, vendor="ome")
    pixels = next((element for element in images[series] if element.tag.endswith("Pixels")), None)
    if pixels is None:
        return replace(found, vendor="ome")

    def physical(axis: str) -> float | None:
        value = _float(pixels.get(f"PhysicalSize{axis}"))
        unit = TO_MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        return None if value is None or unit is None else value * unit

    x, y = physical("X"), physical("Y")
    names = tuple(element.get("Name", "") for element in pixels if element.tag.endswith("Channel"))
    channels = found.layouts[0].shape[found.axes.index("c")] if "c" in found.axes else 0
    powers = [
        _float(element.get("NominalMagnification")) for element in root.iter() if element.tag.endswith("Objective")
    ]
    return replace(
        found,
        vendor="ome",
        channels=names if len(names) == channels and all(names) and len(set(names)) == channels else found.channels,
        vendor_spacing=(y, x) if x and y else None,
        magnification=next((power for power in powers if power), None),
        depth_spacing=physical("Z") or 1.0,
    )


def _profile(first: Directory, layout: Layout) -> bytes:
    return first.data(ICC_PROFILE) if layout.channels == 3 and layout.dtype == np.uint8 else b""


def _tag_spacing(page: Directory) -> tuple[float, float] | None:
    """Return the pixel size (y, x) in µm that the resolution tags state, unless it is a program's placeholder."""
    per_inch = {2: 1.0, 3: 2.54}.get(page.number(RESOLUTION_UNIT, 2))
    x, y = page.ratio(X_RESOLUTION), page.ratio(Y_RESOLUTION)
    if per_inch is None or x <= 0 or y <= 0:
        return None
    if any(abs(x * per_inch - dpi) < 0.01 for dpi in PLACEHOLDER_DPI):
        return None
    return 25400 / (y * per_inch), 25400 / (x * per_inch)


def _check_series(series: int, count: int, path: Path) -> None:
    if not 0 <= series < count:
        raise BadValueError(
            f"series {series} of {path}; it holds {count} ({'series 0' if count == 1 else f'0 to {count - 1}'}). Label "
            "and macro images: dhlab.io.openslide.associated_images."
        )


def _float(text: Any) -> float | None:
    """Return a number written with a point or a comma, or None."""
    with contextlib.suppress(TypeError, ValueError):
        return float(str(text).strip().replace(",", "."))
    return None
