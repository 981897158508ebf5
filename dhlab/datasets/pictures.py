"""One picture file to pixels: JPEG and PNG straight into the batch, everything else through its reader."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError, BadShapeError, NotFoundError
from dhlab.io import find_reader
from dhlab.io.picture import ORIENTATION, UPRIGHT, PictureLevel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Layout", "decode", "read_layout", "resize"]

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Kinds of PNG that need no conversion: bits and colour type of the header, channels and type of the pixels.
PLAIN_PNG = {(8, 0): (0, "uint8"), (16, 0): (0, "uint16"), (8, 2): (3, "uint8"), (8, 6): (4, "uint8")}
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
HEAD = 1 << 16
# libjpeg scales by these while decoding, by computing fewer DCT coefficients.
FACTORS = (8, 4, 2)


@dataclass(frozen=True)
class Layout:
    """Shape, axes and type of a window as stored.

    Parameters
    ----------
    shape
        Array shape, one number per letter of `axes`.
    axes
        Axis letters.
    dtype
        Type of the pixels.
    """

    shape: tuple[int, ...]
    axes: str
    dtype: str

    def size(self, axis: str) -> int:
        """Return the length of an axis, 0 if there is none."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 0

    def __str__(self) -> str:
        space = " × ".join(str(n) for n, a in zip(self.shape, self.axes, strict=True) if a != "c")
        channels = f" with {self.size('c')} channels" if "c" in self.axes else ""
        return f"{space} px ({self.axes} {self.dtype}{channels})"


def read_layout(path: str) -> Layout:
    """Return what the pixels of a file look like, from its header alone.

    Raises
    ------
    NotFoundError
        If there is no file.
    UnknownNameError
        If no reader knows its suffix.
    BadFileError
        If it is no picture, or a damaged one.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".jpg", ".jpeg", ".png"):
        head = _bytes(path, HEAD)
        found = _jpeg_layout(head) if head.startswith(JPEG) else _png_layout(head)
        if found is not None:
            return found
    if suffix in PICTURES:
        find_reader(Path(path))
        level = PictureLevel(Path(path), frame=0, icc=False)
        return Layout(level.shape, "yxc" if len(level.shape) == 3 else "yx", str(level.dtype))
    scan = find_reader(Path(path))(Path(path), spacing=None, icc=False, series=0)
    return Layout(tuple(map(int, scan.levels[0].shape)), scan.axes, str(scan.dtype))


def decode(
    path: str, *, channels: int | None = None, least: tuple[int, int] | None = None, into: NDArray[Any] | None = None
) -> tuple[NDArray[Any], str]:
    """Read the pixels of a file.

    Parameters
    ----------
    path
        The file.
    channels
        1 (grey, no channel axis) or 3 (colour without alpha) to convert to; None keeps what the file has.
    least
        Height and width in pixels that suffice, so that a JPEG may be decoded smaller, never below them.
    into
        C-contiguous array of the shape expected, ``(*window)``; used where the decoder can write there.

    Returns
    -------
    tuple of ndarray and str
        The pixels (perhaps `into` itself) and their axes.

    Raises
    ------
    NotFoundError
        If there is no file.
    BadFileError
        If it cannot be decoded.
    """
    suffix = Path(path).suffix.lower()
    pixels = None
    if suffix in (".jpg", ".jpeg", ".png"):
        data = _bytes(path)
        if data.startswith(JPEG):
            pixels = _decode_jpeg(data, channels, least, into)
        elif data.startswith(PNG):
            pixels = _decode_png(data, into if channels is None else None)
    if pixels is not None:
        axes = "yxc" if pixels.ndim == 3 else "yx"
    elif suffix in PICTURES:
        # The ordinary reader knows the rest: palettes, transparency, CMYK, and what is wrong with a damaged file.
        find_reader(Path(path))
        pixels = PictureLevel(Path(path), frame=0, icc=False).pixels()
        axes = "yxc" if pixels.ndim == 3 else "yx"
    else:
        scan = find_reader(Path(path))(Path(path), spacing=None, icc=False, series=0)
        pixels, axes = np.asarray(scan.levels[0][...]), scan.axes
    return (pixels, axes) if channels is None else _convert(path, pixels, axes, channels)


def decode_indices(path: str) -> NDArray[np.uint8] | None:
    """Return the palette indices of a picture, ``(height, width)`` uint8; None if it has no palette."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.array(picture) if picture.mode == "P" else None


def resize(pixels: NDArray[Any], axes: str, size: tuple[int, int], *, nearest: bool = False) -> NDArray[Any]:
    """Resize the plane of an array.

    Parameters
    ----------
    pixels
        Array with axes `axes`, of a type that OpenCV resizes (uint8, int16, uint16, float32).
    axes
        Axis letters, ``y`` and ``x`` in this order among them.
    size
        Height and width wanted, in pixels.
    nearest
        Take the nearest pixel (masks); else the mean of the pixels covered where the picture shrinks to half or less,
        linear interpolation elsewhere.

    Returns
    -------
    ndarray
        The same axes and type.
    """
    import cv2

    y, x = axes.index("y"), axes.index("x")
    height, width = pixels.shape[y], pixels.shape[x]
    if (height, width) == size:
        return pixels
    how = cv2.INTER_AREA if height >= 2 * size[0] or width >= 2 * size[1] else cv2.INTER_LINEAR
    how = cv2.INTER_NEAREST_EXACT if nearest else how
    if axes in ("yx", "yxc"):
        resized = cv2.resize(pixels, size[::-1], interpolation=how)
        return resized.reshape(*size, *pixels.shape[2:])
    planes = np.moveaxis(pixels, (y, x), (-2, -1))
    flat = np.ascontiguousarray(planes).reshape(-1, height, width)
    small = np.stack([cv2.resize(plane, size[::-1], interpolation=how) for plane in flat])
    return np.moveaxis(small.reshape(*planes.shape[:-2], *size), (-2, -1), (y, x))


def _bytes(path: str, most: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a Path costs more than reading a small picture
            return file.read(most)
    except FileNotFoundError:
        raise NotFoundError(f"nothing at {path}; expected a picture. Check the path.") from None
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}. Check permissions and source.") from error


def _jpeg_layout(head: bytes) -> Layout | None:
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(head)
    except ValueError:
        return None
    if space not in ("Gray", "YCbCr", "RGB"):
        return None
    if _jpeg_orientation(head) >= 5:
        height, width = width, height
    return Layout((height, width), "yx", "uint8") if space == "Gray" else Layout((height, width, 3), "yxc", "uint8")


def _jpeg_orientation(data: bytes) -> int:
    if data.find(b"Exif\0\0", 0, HEAD) < 0:
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            found = picture.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, KeyError, struct.error):
        return 1
    return found if found in UPRIGHT else 1


def _decode_jpeg(
    data: bytes, channels: int | None, least: tuple[int, int] | None, into: NDArray[Any] | None
) -> NDArray[Any] | None:
    """Decode a JPEG in luma and chroma or grey; None if it is of another kind, or damaged."""
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("Gray", "YCbCr", "RGB"):
            return None
        grey = channels == 1 or (channels is None and space == "Gray")
        turn = _jpeg_orientation(data)
        wanted = (least[::-1] if turn >= 5 else least) if least is not None else (height, width)
        enough = {}
        for factor in FACTORS:
            scaled = -(-height // factor), -(-width // factor)
            if scaled[0] >= wanted[0] and scaled[1] >= wanted[1]:
                enough = {"min_height": scaled[0], "min_width": scaled[1]}
                break
        shape = (height, width) if grey else (height, width, 3)
        fits = into is not None and into.shape == shape and into.dtype == np.uint8 and turn == 1 and not enough
        options = {"buffer": into} if fits else {}
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", **enough, **options)
    except ValueError:
        return None
    return into if fits else UPRIGHT[turn](pixels[..., 0] if grey else pixels)


def _png_layout(head: bytes) -> Layout | None:
    if not head.startswith(PNG) or not _plain_png(head):
        return None
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    channels, dtype = PLAIN_PNG[depth, colour]
    return Layout((height, width, channels), "yxc", dtype) if channels else Layout((height, width), "yx", dtype)


def _plain_png(data: bytes) -> bool:
    """Tell whether a PNG's pixels are what it shows: no palette, no transparent colour, not turned."""
    if len(data) < 33 or tuple(data[24:26]) not in PLAIN_PNG:
        return False
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind == b"IDAT":
            return True
        if kind in (b"tRNS", b"eXIf"):
            return False
        place += 12 + length
    return False


def _decode_png(data: bytes, into: NDArray[Any] | None) -> NDArray[Any] | None:
    """Decode a plain PNG; None if it is of another kind, or damaged."""
    from imagecodecs import PngError, png_decode

    layout = _png_layout(data)
    if layout is None:
        return None
    fits = into is not None and into.shape == layout.shape and into.dtype == layout.dtype
    try:
        pixels: NDArray[Any] = png_decode(data, out=into if fits else None)
    except (PngError, ValueError):
        return None
    return pixels if pixels.shape == layout.shape and pixels.dtype == layout.dtype else None


def _convert(path: str, pixels: NDArray[Any], axes: str, channels: int) -> tuple[NDArray[Any], str]:
    """Return a picture as grey ``yx`` or colour ``yxc``."""
    import cv2

    if axes not in ("yx", "yxc") or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise BadShapeError(
            f"{path} has axes {axes!r} and shape {pixels.shape}; channels={channels} needs a picture of 1, 3 or 4."
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if channels == 3:
        return (pixels[..., :3] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)), "yxc"
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY)
    return pixels, "yx"
