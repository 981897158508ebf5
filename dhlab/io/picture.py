"""Ordinary pictures (PNG, JPEG, WebP, BMP, GIF): the header is read on opening, the pixels when first wanted."""

from __future__ import annotations

import struct
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.atomic import atomic_file
from dhlab.errors import BadFileError, BadShapeError, BadValueError
from dhlab.io.icc import apply_profile, check_profile, state_of
from dhlab.io.pool import Stamp
from dhlab.io.spacing import resolve_spacing
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["PictureLevel", "read", "write"]

# A picture is decoded whole; Pillow too takes larger ones for a decompression bomb.
MOST_PIXELS = 178_000_000
LONGEST_SIDE = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}
QUALITY = 92
ORIENTATION = 0x0112
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# How to turn a picture, by the orientation that its camera noted.
UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


class PictureLevel:
    """The pixels of one picture, decoded when first read and then kept; pickles by path.

    Parameters
    ----------
    path
        The file.
    frame
        Which frame of an animation.
    icc
        Convert to sRGB with the embedded profile.
    """

    def __init__(self, path: Path, *, frame: int, icc: bool) -> None:
        self.path = path
        self.frame = frame
        self.icc = icc
        self.stamp = Stamp.of(path)
        with OpenPicture(path, frame) as picture:
            self.profile: bytes = picture.info.get("icc_profile") or b""
            mode, self.dtype = _mode(picture)
            if mode != "RGB":
                self.profile = b""
            self.orientation = _orientation(picture)
            height, width = picture.height, picture.width
            if self.orientation >= 5:
                height, width = width, height
        channels = {"RGB": (3,), "RGBA": (4,)}.get(mode, ())
        self.shape: tuple[int, ...] = (height, width, *channels)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pixels: NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_pixels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()

    def __repr__(self) -> str:
        return f"PictureLevel of {str(self.path)!r}: {self.shape} {self.dtype}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.pixels(), dtype) if copy else np.asarray(self.pixels(), dtype)

    def __getitem__(self, key: Any, /) -> NDArray[Any]:
        return self.pixels()[key]

    def pixels(self) -> NDArray[Any]:
        """Return the whole picture, read-only; decodes it the first time.

        Raises
        ------
        BadFileError
            If it is damaged or has changed since it was opened.
        """
        with self._lock:
            if self._pixels is None:
                self.stamp.check(self.path)
                self._pixels = self._decode()
            return self._pixels

    def _decode(self) -> NDArray[Any]:
        with OpenPicture(self.path, self.frame) as picture:
            mode = _mode(picture)[0]
            try:
                pixels = np.array(picture if picture.mode == mode else picture.convert(mode))
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise BadFileError(
                    f"{self.path} is damaged or truncated: {error}. Copy it again from its source."
                ) from error
        if pixels.dtype != self.dtype:
            pixels = pixels.astype(self.dtype)
        if self.icc and self.profile:
            apply_profile(pixels, self.profile)
        pixels = np.ascontiguousarray(UPRIGHT[self.orientation](pixels))
        pixels.flags.writeable = False
        return pixels


def read(path: Path, *, spacing: float | Sequence[float] | None, icc: bool, series: int) -> Scan:
    """Open a picture as a scan of one level without decoding it.

    Parameters
    ----------
    path
        The file.
    spacing
        Pixel size in µm; pictures rarely know theirs.
    icc
        Convert to sRGB with the embedded profile.
    series
        Frame of an animated picture.

    Returns
    -------
    Scan
        ``yxc`` uint8 for colour (palettes are resolved, alpha is the fourth channel), ``yx`` uint8, uint16, int32 or
        float32 for grey. Turned upright as the camera's orientation says.

    Raises
    ------
    BadFileError
        If the file is no picture, is damaged, or is too large to be decoded whole.
    BadValueError
        If there is no such frame, or the spacing is not positive and finite.
    """
    import PIL

    pixel = resolve_spacing(override=spacing)
    level = PictureLevel(path, frame=series, icc=icc)
    if icc and level.profile:
        check_profile(level.profile)
    channels = {3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
    colour = len(level.shape) == 3
    return Scan(
        levels=(level,),
        axes="yxc" if colour else "yx",
        spacing=pixel.value,
        unit=pixel.unit,
        channels=channels[level.shape[2]] if colour else (),
        name=path.name,
        fill=255 if colour else 0,
        meta={
            "reader": "pillow",
            "reader_version": PIL.__version__,
            "path": str(path),
            "vendor": "generic",
            "objective": None,
            "spacing_source": pixel.source,
            "levels_native": [0],
            "icc": state_of(level.profile, applied=icc),
            "bounds": None,
        },
    )


def write(scan: Scan, path: Path, *, tile: int, compression: str, progress: bool) -> None:
    """Write a small scan as an ordinary picture.

    Parameters
    ----------
    scan
        Axes ``yx``, ``yxc`` or ``cyx`` with 1, 3 or 4 channels; uint8, a mask, or (PNG, grey) uint16.
    path
        ``.png``, ``.jpg``, ``.jpeg`` or ``.webp``; it appears whole.
    tile
        Without meaning for pictures.
    compression
        ``"auto"``, or ``"lossless"`` for WebP.
    progress
        Without meaning for pictures.

    Raises
    ------
    BadShapeError
        If the scan is no picture: other axes, channels or values.
    BadValueError
        If it is too large for the format, or the compression unknown.
    StorageError
        If the disk is full or the folder read-only.
    """
    from PIL import Image

    suffix = path.suffix.lower()
    if compression not in ("auto", "lossless") or (compression == "lossless" and suffix in (".jpg", ".jpeg")):
        raise BadValueError(f"compression {compression!r} for {suffix}; expected 'auto' (or 'lossless': PNG, WebP).")
    if scan.axes not in ("yx", "yxc", "cyx"):
        raise BadShapeError(f"a picture has axes yx, yxc or cyx; got {scan.axes!r}. Save as .ome.zarr or .ome.tif.")
    height, width = scan.shape
    longest = LONGEST_SIDE.get(suffix, MOST_PIXELS)
    if height * width > MOST_PIXELS or max(height, width) > longest:
        raise BadValueError(
            f"{scan.name!r} has {height:,} × {width:,} px; a {suffix} picture holds at most {MOST_PIXELS:,} px and "
            f"{longest:,} px a side. Save as .ome.tif or .ome.zarr, or a smaller picture of it: "
            "Scan.from_array(scan.thumbnail(4096), 'yxc')."
        )
    pixels = np.asarray(scan.levels[0][...])
    if scan.axes == "cyx":
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    deep = pixels.dtype == np.uint16 and pixels.ndim == 2 and suffix == ".png"
    if (pixels.dtype != np.uint8 and not deep) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise BadShapeError(
            f"a {suffix} picture holds 8-bit values of 1, 3 or 4 channels; got {scan.dtype} with "
            f"{pixels.shape[2] if pixels.ndim == 3 else 1} channels. Save as .ome.tif or .ome.zarr."
        )
    if suffix in (".jpg", ".jpeg") and pixels.ndim == 3 and pixels.shape[2] == 4:
        raise BadShapeError("JPEG has no alpha channel. Save as .png or .webp.")
    options: dict[str, Any] = {".webp": {"lossless": compression == "lossless", "quality": QUALITY}}.get(suffix, {})
    if suffix in (".jpg", ".jpeg"):
        options = {"quality": QUALITY, "subsampling": 0}
    form = {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")
    with atomic_file(path) as partial:
        Image.fromarray(np.ascontiguousarray(pixels)).save(partial, form, **options)


def _orientation(picture: Image) -> int:
    """Return how the camera was held, 1 to 8; asks only what opening has read already."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # Pillow would decode the whole picture to look behind it
    try:
        found = picture.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, KeyError, struct.error):
        return 1
    return found if found in UPRIGHT else 1


def _mode(picture: Image) -> tuple[str, np.dtype[Any]]:
    """Return the Pillow mode to decode to and the data type of its values."""
    clear = "transparency" in picture.info
    if picture.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return picture.mode, np.dtype(np.uint16)
    if picture.mode == "I":
        # Pillow opens 16-bit PNG as 32-bit values in some versions.
        return "I", np.dtype(np.uint16 if picture.format == "PNG" else np.int32)
    if picture.mode == "F":
        return "F", np.dtype(np.float32)
    if picture.mode in ("1", "L") and not clear:
        return "L", np.dtype(np.uint8)
    alpha = clear or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    return ("RGBA" if alpha else "RGB"), np.dtype(np.uint8)


class OpenPicture:
    """Context of an open Pillow picture at one frame, its faults told as ours."""

    def __init__(self, path: Path, frame: int) -> None:
        self.path = path
        self.frame = frame
        self.picture: Image | None = None

    def __enter__(self) -> Image:
        from PIL import Image, UnidentifiedImageError

        try:
            with warnings.catch_warnings():
                # Pillow warns of large pictures; MOST_PIXELS is this reader's own limit.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(self.path, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise BadFileError(
                f"{self.path} is not a picture that Pillow knows. Rename it after what it is, or copy it again."
            ) from error
        except Image.DecompressionBombError as error:
            raise BadFileError(self._too_large(str(error))) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise BadFileError(f"{self.path} cannot be opened: {error}. Check permissions and source.") from error
        self.picture = picture
        try:
            if picture.width * picture.height > MOST_PIXELS:
                raise BadFileError(self._too_large(f"{picture.height:,} × {picture.width:,} px"))
            count = getattr(picture, "n_frames", 1)
            if not 0 <= self.frame < count:
                raise BadValueError(f"series {self.frame} of {self.path}; it holds {count} (0 to {count - 1}).")
            if self.frame:
                picture.seek(self.frame)
        except BaseException:
            picture.close()
            raise
        return picture

    def __exit__(self, *_: object) -> None:
        if self.picture is not None:
            self.picture.close()

    def _too_large(self, what: str) -> str:
        return (
            f"{self.path} is too large to be decoded whole ({what}; the limit is {MOST_PIXELS:,} px). Convert it to a "
            "tiled format first, for example with: vips tiffsave in out.tif --tile --pyramid --compression jpeg."
        )
