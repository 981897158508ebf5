"""JPEG tiles of TIFF files: full size or scaled while decoding, straight into the caller's array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import simplejpeg

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FACTORS", "JpegDecoder", "tile_header"]

# libjpeg scales by these while decoding, by computing fewer DCT coefficients.
FACTORS = (2, 4, 8)
START = b"\xff\xd8"
# An Adobe marker with transform 0: the three components are red, green, blue and need no conversion.
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def tile_header(tables: bytes, *, rgb: bool) -> bytes:
    """Return what stands before a tile's own bytes (which lose their first two) to make it a whole JPEG stream.

    Parameters
    ----------
    tables
        Value of the JPEGTables tag; may be empty.
    rgb
        The tile stores red, green and blue instead of luma and chroma.
    """
    inner = tables[2:] if tables.startswith(START) else b""
    if inner.endswith(b"\xff\xd9"):
        inner = inner[:-2]
    return START + (ADOBE_RGB if rgb else b"") + inner


class JpegDecoder:
    """Decodes the tiles of one level.

    Parameters
    ----------
    header
        From `tile_header`.
    colour
        ``"RGB"`` or ``"GRAY"``.
    tile
        Height and width of a stored tile, in pixels.
    factor
        1, or a scale of `FACTORS` by which both are divided.
    """

    def __init__(self, header: bytes, *, colour: str, tile: tuple[int, int], factor: int = 1) -> None:
        self.header = header
        self.colour = colour
        self.tile = tile
        self.factor = factor

    def scaled(self, factor: int) -> JpegDecoder:
        """Return a decoder of the same tiles, `factor` times smaller."""
        return JpegDecoder(self.header, colour=self.colour, tile=self.tile, factor=factor)

    def decode(self, data: bytes, index: int, into: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG002
        """Decode one stored tile.

        Parameters
        ----------
        data
            The tile's bytes as they stand in the file.
        index
            Its number; all tiles of a level are alike.
        into
            C-contiguous uint8 array ``(height, width, channels)`` that the pixels go to.

        Returns
        -------
        ndarray
            `into`, or an array over the start of its memory where the file stores a cut tile.

        Raises
        ------
        ValueError
            If the data are damaged, or larger than `into`.
        """
        stream = b"".join((self.header, memoryview(data)[2:]))
        if self.factor == 1:
            return self._decode(stream, into)
        height, width = self.tile[0] // self.factor, self.tile[1] // self.factor
        pixels = self._decode(stream, into, min_height=height, min_width=width)
        if pixels is into or pixels.shape[:2] == (height, width):
            return pixels
        # A tile cut at the edge of the image is smaller than the others, so its scale was chosen too large.
        height, width = simplejpeg.decode_jpeg_header(stream)[:2]
        cut = -(-height // self.factor), -(-width // self.factor)
        return self._decode(stream, into, min_height=cut[0], min_width=cut[1])

    def _decode(self, stream: bytes, into: NDArray[Any], **size: int) -> NDArray[Any]:
        try:
            pixels = simplejpeg.decode_jpeg(stream, self.colour, buffer=into, **size)
        except ValueError as error:
            # Scanners leave stray bytes before a marker; the pixels are whole.
            if "extraneous bytes" not in str(error):
                raise
            pixels = simplejpeg.decode_jpeg(stream, self.colour, buffer=into, strict=False, **size)
        return into if pixels.shape == into.shape else pixels
