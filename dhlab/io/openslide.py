"""Slides of every vendor that OpenSlide reads. Its ``(x, y)`` lives in this module only."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError, BadValueError, NotFoundError
from dhlab.io.icc import apply_profile, check_profile, state_of
from dhlab.io.pool import Stamp, run_all
from dhlab.io.spacing import resolve_spacing
from dhlab.io.tilelevel import read_key
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from openslide import OpenSlide
    from PIL.Image import Image

__all__ = ["SlideLevel", "SlideSource", "associated_images", "read"]

# A longer read is cut into bands of this many pixels, so that memory stays flat.
BAND_PIXELS = 1 << 22


class SlideSource:
    """An open OpenSlide file; pickles by path, opens when first read, and refuses a file that has changed.

    Parameters
    ----------
    path
        The file.
    icc
        Convert to sRGB with the embedded profile.
    """

    def __init__(self, path: Path, *, icc: bool) -> None:
        self.path = path
        self.icc = icc
        self.stamp = Stamp.of(path)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._slide: OpenSlide | None = None
        self._process = 0
        self.profile = b""
        self.background = np.full(3, 255, np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "icc": self.icc, "stamp": self.stamp}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()

    def slide(self) -> OpenSlide:
        """Return the open slide.

        Raises
        ------
        BadFileError
            If OpenSlide cannot open it, or the file has changed.
        """
        with self._lock:
            # A forked worker shares the parent's file position: it opens its own.
            if self._slide is None or self._process != os.getpid():
                self.stamp.check(self.path)
                self._slide = _open(self.path)
                self._process = os.getpid()
                profile = self._slide.color_profile
                self.profile = b"" if profile is None else profile.tobytes()
                colour = self._slide.properties.get("openslide.background-color", "FFFFFF")
                self.background = np.frombuffer(bytes.fromhex(colour), np.uint8)
            return self._slide

    def read(self, corner: tuple[float, float], level: int, out: NDArray[np.uint8]) -> None:
        """Read one window.

        Parameters
        ----------
        corner
            First corner (y, x) in level-0 pixels.
        level
            Level to read.
        out
            ``(height, width, 3)`` uint8; transparent pixels take the slide's background colour.
        """
        import openslide

        slide = self.slide()
        height, width = out.shape[:2]
        rows = max(1, BAND_PIXELS // width)
        scale = slide.level_downsamples[level]
        for top in range(0, height, rows):
            band = out[top : top + rows]
            y, x = round(corner[0] + top * scale), round(corner[1])
            try:
                picture = slide.read_region((x, y), level, (width, len(band)))
            except openslide.OpenSlideError as error:
                with self._lock:
                    # OpenSlide refuses everything after one error; other parts of the slide may be whole.
                    self._slide = None
                raise BadFileError(
                    f"{self.path}: cannot decode level {level} at (y={y}, x={x}): {error}. The file is damaged or "
                    "incomplete: copy it again from its source."
                ) from error
            _flatten(picture, self.background, band)
        if self.icc and self.profile:
            apply_profile(out, self.profile)


class SlideLevel:
    """One resolution of an OpenSlide slide.

    Parameters
    ----------
    source
        The slide.
    number
        Which level of it.
    """

    def __init__(self, source: SlideSource, number: int) -> None:
        slide = source.slide()
        width, height = slide.level_dimensions[number]
        self.source = source
        self.number = number
        self.scale = float(slide.level_downsamples[number])
        self.shape: tuple[int, ...] = (height, width, 3)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __repr__(self) -> str:
        return f"SlideLevel {self.number} of {str(self.source.path)!r}: {self.shape} {self.dtype}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a level lies in a file: an array of it is always a copy.")
        return np.asarray(self[...], dtype)

    def __getitem__(self, key: Any, /) -> NDArray[Any]:
        return read_key(self.shape, key, self._read_block)

    def _read_block(self, starts: Sequence[int], stops: Sequence[int]) -> NDArray[Any]:
        block = np.empty((stops[0] - starts[0], stops[1] - starts[1], 3), np.uint8)
        if block.size:
            self.source.read((starts[0] * self.scale, starts[1] * self.scale), self.number, block)
        return block[..., starts[2] : stops[2]]

    def read_windows(self, starts: NDArray[np.int64], size: Sequence[int], out: NDArray[Any]) -> None:
        """Read many windows, in parallel and in the order in which they lie.

        OpenSlide takes level-0 positions only: where a level's scale is no whole number it shifts the pixels by up to
        half a level-0 pixel, and interpolates.

        Parameters
        ----------
        starts
            ``(N, 2)`` int64, first corners (y, x) in pixels of this level; may lie outside.
        size
            Window height and width in pixels.
        out
            ``(N, height, width, 3)`` uint8.

        Raises
        ------
        BadFileError
            If a part cannot be decoded.
        """
        height, width = self.shape[:2]
        order = np.lexsort((starts[:, 1], starts[:, 0] // max(1, size[0])))

        def work(numbers: Sequence[int]) -> None:
            for number in numbers:
                y, x = (int(v) for v in starts[number])
                y0, x0 = max(y, 0), max(x, 0)
                y1, x1 = min(y + size[0], height), min(x + size[1], width)
                window = out[number]
                if y1 - y0 < size[0] or x1 - x0 < size[1]:
                    window[...] = self.source.background
                if y1 > y0 and x1 > x0:
                    inside = window[y0 - y : y1 - y, x0 - x : x1 - x]
                    self.source.read((y0 * self.scale, x0 * self.scale), self.number, inside)

        run_all(work, order.tolist())


def read(path: Path, *, spacing: float | Sequence[float] | None, icc: bool, series: int) -> Scan:
    """Open a slide with OpenSlide without reading its pixels.

    Parameters
    ----------
    path
        The slide's file (the ``.mrxs`` file beside its folder, any instance of a DICOM series).
    spacing
        Overrides the pixel size, µm.
    icc
        Convert to sRGB while reading.
    series
        OpenSlide knows one image per file: 0.

    Returns
    -------
    Scan
        ``yxc`` uint8 in OpenSlide's level-0 coordinates; ``meta["bounds"]`` holds (y, x, height, width) of the scanned
        region where the vendor states it.

    Raises
    ------
    BadFileError
        If OpenSlide does not know the format or the file is damaged or incomplete.
    BadValueError
        If `series` is not 0, or the spacing is not positive and finite.
    """
    import openslide

    if series != 0:
        raise BadValueError(f"series {series} of {path}; OpenSlide sees one image (series 0) in a file.")
    if spacing is not None:
        resolve_spacing(override=spacing)
    source = SlideSource(path, icc=icc)
    slide = source.slide()
    if icc and source.profile:
        check_profile(source.profile)
    properties = slide.properties
    power = _float(properties.get("openslide.objective-power"))
    y, x = (_float(properties.get(f"openslide.mpp-{axis}")) for axis in "yx")
    pixel = resolve_spacing(override=spacing, vendor=None if y is None or x is None else (y, x), magnification=power)
    bounds = [properties.get(f"openslide.bounds-{name}") for name in ("y", "x", "height", "width")]
    count = slide.level_count
    background = set(source.background.tolist())
    return Scan(
        levels=tuple(SlideLevel(source, number) for number in range(count)),
        axes="yxc",
        spacing=pixel.value,
        unit=pixel.unit,
        scales=tuple((float(scale), float(scale)) for scale in slide.level_downsamples),
        name=path.name,
        fill=background.pop() if len(background) == 1 else 255,
        meta={
            "reader": "openslide",
            "reader_version": f"{openslide.__library_version__} (openslide-python {openslide.__version__})",
            "path": str(path),
            "vendor": properties.get("openslide.vendor", "unknown"),
            "objective": power,
            "spacing_source": pixel.source,
            "levels_native": list(range(count)),
            "icc": state_of(source.profile, applied=icc),
            "bounds": None if None in bounds else [int(value) for value in bounds if value is not None],
        },
    )


def associated_images(path: str | os.PathLike[str]) -> dict[str, NDArray[np.uint8]]:
    """Return label, macro and thumbnail pictures of a slide. The label may show the patient's name.

    Nothing else in dhlab reads, shows or writes these pictures.

    Parameters
    ----------
    path
        The slide.

    Returns
    -------
    dict of str to ndarray
        Pictures ``(height, width, 3)`` uint8 by OpenSlide's names (``"label"``, ``"macro"``, ``"thumbnail"``); empty
        if there are none.

    Raises
    ------
    BadFileError
        If OpenSlide cannot read the file.
    """
    from pathlib import Path

    import openslide

    location = Path(path).expanduser()
    if not location.exists():
        raise NotFoundError(f"nothing at {location}; expected a slide. Check the path.")
    found = {}
    with _open(location) as slide:
        for name in slide.associated_images:
            try:
                picture = slide.associated_images[name]
            except openslide.OpenSlideError as error:
                raise BadFileError(f"{location}: its {name} image is damaged: {error}.") from error
            found[name] = np.empty((picture.height, picture.width, 3), np.uint8)
            _flatten(picture, np.full(3, 255, np.uint8), found[name])
    return found


def _open(path: Path) -> OpenSlide:
    import openslide

    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise BadFileError(
            f"{path} is of no format that OpenSlide {openslide.__library_version__} knows, or misses the files that "
            "belong to it. Check that it is a slide and was copied with its folder."
        ) from error
    except openslide.OpenSlideError as error:
        raise BadFileError(
            f"{path}: {error}. The slide is damaged or incomplete: copy it again with all files that belong to it."
        ) from error


def _flatten(picture: Image, background: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Lay an RGBA picture on the background colour."""
    pixels = np.asarray(picture.convert("RGBA"))
    out[...] = pixels[..., :3]
    alpha = pixels[..., 3]
    if alpha.min(initial=255) == 255:
        return
    clear = alpha == 0
    out[clear] = background
    partly = ~clear & (alpha < 255)
    if partly.any():
        share = alpha[partly].astype(np.float32)[:, None] / 255
        out[partly] = np.rint(out[partly] * share + background * (1 - share)).astype(np.uint8)


def _float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
