"""Decoders for tiles and strips that are not plain 8-bit JPEG: raw values here, every other codec through tifffile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["RawDecoder", "SegmentDecoder"]

WHITE_IS_ZERO, PALETTE, YCBCR = 0, 3, 6


class RawDecoder:
    """Takes uncompressed values as they stand in the file.

    Parameters
    ----------
    dtype
        Data type in the file, byte order included.
    width
        Pixels in a row of a stored tile.
    channels
        Samples per pixel.
    """

    def __init__(self, dtype: np.dtype[Any], *, width: int, channels: int) -> None:
        self.stored = dtype
        self.dtype = dtype.newbyteorder("=")
        self.width = width
        self.channels = channels

    def decode(self, data: bytes, index: int, into: NDArray[Any]) -> NDArray[Any]:
        """Return the pixels ``(height, width, channels)`` of a tile; whole rows only, as many as there are."""
        row = self.width * self.channels
        values = np.frombuffer(data, self.stored, len(data) // self.stored.itemsize)
        pixels = values[: len(values) // row * row].reshape(-1, self.width, self.channels)
        if into.shape == pixels.shape:
            into[...] = pixels
            return into
        return pixels


class SegmentDecoder:
    """Decodes tiles or strips by tifffile's knowledge of codecs, predictors and bit depths.

    Parameters
    ----------
    path
        The TIFF file.
    offset
        Where the directory of the image begins.
    tables
        JPEG tables that the image's tiles share; None if there are none.

    Raises
    ------
    BadFileError
        If tifffile cannot read the directory or does not know the codec.
    """

    def __init__(self, path: Path, offset: int, tables: bytes | None = None) -> None:
        import tifffile

        try:
            with tifffile.TiffFile(path) as file:
                file.filehandle.seek(offset)
                page = tifffile.TiffPage(file, 0)
                self._segment = page.decode
                self.photometric = int(page.photometric)
                self.compression = getattr(page.compression, "name", str(page.compression))
                self.bits = int(page.bitspersample)
                stored = page.dtype
                palette = page.colormap
        except (tifffile.TiffFileError, ValueError, KeyError, TypeError, NotImplementedError, OSError) as error:
            raise BadFileError(f"{path}: tifffile cannot read its directory: {error}. Copy it again.") from error
        if stored is None:
            raise BadFileError(f"{path}: {self.bits}-bit values of a kind that tifffile does not read.")
        self.tables = tables
        self.palette: NDArray[np.uint8] | None = None
        if self.photometric == PALETTE and palette is not None:
            self.palette = np.ascontiguousarray((np.asarray(palette).T >> 8).astype(np.uint8))
        self.dtype = np.dtype(np.uint8) if self.palette is not None else np.dtype(stored).newbyteorder("=")

    def channels(self, stored: int) -> int:
        """Return the channels of a decoded pixel that stores `stored` samples: a palette makes three of one."""
        return 3 if self.palette is not None else stored

    def decode(self, data: bytes, index: int, into: NDArray[Any]) -> NDArray[Any]:
        """Return the pixels ``(height, width, channels)`` of a tile or strip."""
        tables = {} if self.tables is None else {"jpegtables": self.tables}
        pixels: NDArray[Any] = self._segment(data, index, **tables)[0][0]  # type: ignore[index] # None is of no data
        if self.palette is not None:
            return self.palette[pixels[..., 0]]
        # Bits are masks: programs write True as 1 whatever the tag says.
        if self.photometric == WHITE_IS_ZERO and pixels.dtype.kind == "u":
            return pixels.dtype.type(2**self.bits - 1) - pixels
        return pixels.astype(self.dtype, copy=False)
