"""JPEG tiles of TIFF files: full size or scaled while decoding, straight into the caller's array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import simplejpeg

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FACTORS", "JpegDecoder", "tile_header"]

# libjpeg scales by these while decoding, by computing fewer DCT coefficients.
FACTORS = (2, 4, 8)
START, END = b"\xff\xd8", b"\xff\xd9"
# An Adobe marker with transform 0: the three components are red, green, blue and need no conversion.
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
# Markers (ITU T.81, table B.1): frames that every browser decodes (baseline, extended, progressive), the scan, and what
# changes nothing else: tables, restarts, JFIF, Adobe, comments. Others may hold a profile or an orientation.
FRAMES, SCAN = (0xC0, 0xC1, 0xC2), 0xDA
HARMLESS = (0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE)


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
    if inner.endswith(END):
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

    def decode(self, data: bytes, index: int, into: NDArray[Any]) -> NDArray[Any]:
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

    def picture(self, data: bytes) -> bytes | None:
        """Return a stored tile as a JPEG file of its own.

        Parameters
        ----------
        data
            The tile's bytes as they stand in the file.

        Returns
        -------
        bytes or None
            None where another program would not show what `decode` gives: scaled while decoding, of another size than
            its neighbours, cut off, or with a colour profile or an orientation of its own.
        """
        stream = b"".join((self.header, memoryview(data)[2:]))
        components = 3 if self.colour == "RGB" else 1
        return stream if self.factor == 1 and _is_plain(stream, (*self.tile, components)) else None

    def _decode(self, stream: bytes, into: NDArray[Any], **size: int) -> NDArray[Any]:
        try:
            pixels = simplejpeg.decode_jpeg(stream, self.colour, buffer=into, **size)
        except ValueError as error:
            # Scanners leave stray bytes before a marker; the pixels are whole.
            if "extraneous bytes" not in str(error):
                raise
            pixels = simplejpeg.decode_jpeg(stream, self.colour, buffer=into, strict=False, **size)
        return into if pixels.shape == into.shape else pixels


def _is_plain(stream: bytes, shape: tuple[int, int, int]) -> bool:
    """Tell whether a JPEG stream is whole and says nothing but pixels, 8 bit, of a height, width and depth."""
    if max(shape) > 0xFFFF or not stream.endswith(END):
        return False
    wanted = b"\x08" + b"".join(n.to_bytes(length, "big") for n, length in zip(shape, (2, 2, 1), strict=True))
    at, framed = 2, False
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == SCAN:
            return framed
        if marker in FRAMES:
            if framed or stream[at + 4 : at + 10] != wanted:
                return False
            framed = True
        elif marker not in HARMLESS:
            return False
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return False
